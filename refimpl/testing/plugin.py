"""The pytest plugin: fixture `refimpl_case`, marker `refimpl`, and `--refimpl-cases=DIR`.

pytest imports it at every start, so only what is called imports NumPy and the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from refimpl.errors import RefimplError
from refimpl.oracle.case_folders import CaseFolder, SelectedCase, cases_below, core_cases, matching

if TYPE_CHECKING:
    from refimpl.model.ops import Array
    from refimpl.oracle.case import Case
    from refimpl.oracle.check import Report
    from refimpl.oracle.recipe import Recipe

MARKER = "refimpl(families=[...], steps=[...])"
ARGUMENTS: Mapping[str, Sequence[str]] = {"families": (), "steps": ("*",)}
OPTION = "--refimpl-cases"
ADDED_CASES = pytest.StashKey[list[CaseFolder]]()


@dataclass(frozen=True, repr=False)
class CaseFixture:
    """A case for a test, what the test asks of it, and a new folder for arrays that diverged.

    Args:
        name: The case's name.
        folder: The case's folder, for programs that read its files themselves.
        model: The model's folder: `config.json` and safetensors files.
        family: The model's family.
        recipe: The computation: eta, sparsity, and so on.
        inputs: `token_ids` [N, S], int64; `noise` [L, N, S, D], float64, unscaled; further draws.
        expected: Every step in float64.
        steps: Names of the steps that are asked for, in the order of execution.
    """

    name: str
    folder: Path
    model: Path
    family: str
    recipe: Recipe
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]
    steps: tuple[str, ...]
    case: Case
    selected: SelectedCase
    new_folder: Callable[[], Path]

    @classmethod
    def of(cls, selected: SelectedCase, new_folder: Callable[[], Path]) -> CaseFixture:
        """The fixture of a case that a test selected, which is read."""
        from refimpl.loading.files.documents import filled
        from refimpl.oracle.case import read_case

        case, facts = read_case(selected.case.path), selected.case
        return filled(
            cls, case, case=case, selected=selected, new_folder=new_folder, model=case.model.path,
            family=facts.facts.family, steps=tuple(matching(facts.steps, selected.steps)),
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<refimpl case {self.name}>"

    def check(
        self, actual: Mapping[str, Any] | str | PathLike[str], dtype: str | None = None
    ) -> Report:
        """Check arrays or torch tensors by the names of the steps, or a safetensors file of them.

        The dtype is that of the coarsest array if None.
        """
        __tracebackhide__ = True
        from refimpl.oracle.check import check, read_candidate
        from refimpl.oracle.measures import array_of

        if isinstance(actual, Mapping):
            file, arrays = "", {name: array_of(x) for name, x in actual.items()}
        else:
            file, arrays = str(actual), read_candidate(Path(actual))
        report = check(self.case, arrays, self.selected.steps, dtype)
        if report.verdict != "pass":
            raise AssertionError(_message(report, file or str(_saved(arrays, self.new_folder()))))
        return report


def _message(report: Report, candidate: str) -> str:
    """The verdict in a line of its own, which pytest's summary shows; and the table."""
    from refimpl.show.oracle import report_table

    first = report.first
    verdict = f"diverges, first at {first.step}" if first else "is not judged in some steps"
    return f"{report.case.name} {verdict}\n\n{report_table(report, candidate)}"


def _saved(arrays: Mapping[str, Array], folder: Path) -> Path:
    """Write arrays that diverged, so that `refimpl check` can be run on them."""
    from refimpl.loading.files.safetensors_file import write_arrays

    path = folder / "actual.safetensors"
    write_arrays(path, {k: x for k, x in arrays.items() if x.dtype.kind in "fiubV"})
    return path


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for further cases, and that of a file of settings."""
    parser.addini("refimpl_cases", "more folders of cases, relative to this file", "paths", [])
    parser.getgroup("refimpl").addoption(
        OPTION,
        action="append",
        default=[],
        metavar="DIR",
        help="also run refimpl_case on the case in DIR, or on those in its folders; may be given "
        "several times, and as refimpl_cases in the file of settings",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Add the marker; end the run before it begins if a case cannot be used."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}: families and steps (patterns) that are implemented",
    )
    if OPTION in config.invocation_params.args:  # pytest takes DIR for tests, and moves its rootdir
        raise pytest.UsageError(
            f"{OPTION} DIR: pytest would look for its settings in DIR\n"
            f"expected: {OPTION}=DIR, or refimpl_cases in the file of settings\n"
            f"next: write {OPTION}=DIR"
        )
    folders = [config.invocation_params.dir / name for name in config.getoption("refimpl_cases")]
    folders += config.getini("refimpl_cases")
    try:
        added = [case for folder in folders for case in cases_below(folder)]
    except RefimplError as error:
        raise pytest.UsageError(f"{OPTION}: {error}") from error
    config.stash[ADDED_CASES] = added


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each case that its marker selects."""
    if "refimpl_case" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("refimpl")
    try:
        args, kwargs = (marker.args, marker.kwargs) if marker else ((), {})
        core = core_cases("families" in kwargs)  # forwards alone are asked for by family
        every = [*core, *metafunc.config.stash[ADDED_CASES]]
        selected = selected_cases(args, kwargs, every)
    except RefimplError as error:
        text = f"{metafunc.definition.name}: {error}"
        raise pytest.Collector.CollectError(text) from error
    names = [x.case.name for x in selected]
    metafunc.parametrize("refimpl_case", selected, indirect=True, ids=names)


@pytest.fixture(scope="session")
def refimpl_case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> CaseFixture:
    """A case, with `check` for the test's own arrays."""
    try:
        return CaseFixture.of(request.param, lambda: tmp_path_factory.mktemp("refimpl"))
    except RefimplError as error:
        pytest.fail(str(error), pytrace=False)


def selected_cases(
    args: Sequence[object], kwargs: Mapping[str, Any], cases: Iterable[CaseFolder]
) -> list[SelectedCase]:
    """The cases that a marker selects; names and patterns that match nothing are refused."""
    for name, value in kwargs.items():
        texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
        if name not in ARGUMENTS or not texts or not value:
            raise RefimplError(
                f"@pytest.mark.refimpl({name}={value!r})", MARKER, "pass lists of strings"
            )
    if args:
        raise RefimplError(
            f"@pytest.mark.refimpl{tuple(args)!r}", MARKER, f"name the argument: {[*ARGUMENTS]}"
        )
    families, patterns = (tuple(kwargs.get(x, y)) for x, y in ARGUMENTS.items())
    every = list(cases)
    known = {case.facts.family for case in every}
    chosen = [case for case in every if case.facts.family in (families or known)]
    if not chosen:
        raise RefimplError(
            f"no case has one of the families {[*families]}",
            f"one of {sorted(known)}",
            "add a case with --refimpl-cases=DIR; refimpl case make makes one",
        )
    steps = {case.name: matching(case.steps, patterns) for case in chosen}
    for pattern in patterns:
        _check_match(f"steps: {pattern!r}", pattern, [s for case in chosen for s in case.steps])
    return [SelectedCase(case, patterns) for case in chosen if steps[case.name]]


def _check_match(label: str, pattern: str, names: Sequence[str]) -> None:
    """Refuse a pattern that matches none of the names."""
    if not matching(names, [pattern]):
        examples = ", ".join(dict.fromkeys(names[:3]))
        raise RefimplError(
            f"{label} matches nothing", f"such as {examples}", "correct or remove it"
        )
