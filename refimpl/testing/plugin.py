"""The pytest plugin: fixture `refimpl_case`, marker `refimpl`, `--refimpl=PROGRAM`, and cases.

pytest imports it at every start, so only what is called imports NumPy and the oracle.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import pytest

from refimpl.errors import RefimplError
from refimpl.oracle.case_folders import (
    CaseFolder,
    cases_below,
    core_cases,
    family_model,
    matching,
)

if TYPE_CHECKING:
    from refimpl.oracle.check import Report

MARKER = "refimpl(families=[...], steps=[...])"
OPTION = "--refimpl-cases"
ADDED_CASES = pytest.StashKey[list[CaseFolder]]()
FORWARDS = pytest.StashKey[Path]()
REPORTS = pytest.StashKey[list[dict[str, Any]]]()


class CaseFixture:
    """A case for a test: what the test asks of it, and `check`.

    `name`, `folder`, `recipe`, `inputs` and `expected` are those of `refimpl.oracle.case.Case`,
    `model` is the folder of the model; `steps` are those that match the patterns.
    """

    def __init__(
        self,
        selected: CaseFolder,
        patterns: Sequence[str],
        new_folder: Callable[[], Path],
    ) -> None:
        from refimpl.oracle.case import read_case

        case = self.case = read_case(selected.path)
        self.name, self.folder, self.recipe = case.name, case.folder, case.recipe
        self.inputs, self.expected, self.model = (
            case.inputs,
            case.expected,
            case.model.path,
        )
        self.family, self.steps = (
            selected.facts.family,
            tuple(matching(selected.steps, patterns)),
        )
        self._new_folder = new_folder

    def check(
        self, actual: Mapping[str, Any] | str | PathLike[str], dtype: str | None = None
    ) -> Report:
        """Check arrays or torch tensors by the names of the steps, or a safetensors file of them.

        The dtype is that of the coarsest array if None. Arrays that diverge are kept in a file, so
        that `refimpl check` can be run on them.
        """
        __tracebackhide__ = True
        from refimpl.loading.files.safetensors_file import SafetensorsFile, write_arrays
        from refimpl.oracle.check import check
        from refimpl.oracle.measures import array_of

        if isinstance(actual, Mapping):
            path, arrays = None, {name: array_of(x) for name, x in actual.items()}
        else:
            path, arrays = Path(actual), SafetensorsFile(Path(actual)).arrays
        report = check(self.case, arrays, self.steps, dtype)
        if report.verdict != "pass":
            if path is None:
                path = self._new_folder() / "actual.safetensors"
                write_arrays(
                    path, {k: x for k, x in arrays.items() if x.dtype.kind in "fiubV"}
                )
            raise AssertionError(_message(report, path))
        return report


def _message(report: Report, path: Path) -> str:
    """The verdict in a line of its own, which pytest's summary shows; and the table."""
    from refimpl.show.oracle import report_table

    first = report.first
    verdict = (
        f"diverges, first at {first.step}" if first else "is not judged in some steps"
    )
    return f"{report.case.name} {verdict}\n\n{report_table(report, str(path))}"


class ProgramOnCase(pytest.Item):
    """The program is run on a case, and the file that it writes is checked as by the command."""

    def __init__(self, *, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self.folder = folder

    def runtest(self) -> None:
        """Fail unless the program exits with 0, and its file passes."""
        from refimpl.oracle.candidates import checked_file
        from refimpl.show.oracle import report_document

        actual = Path(mkdtemp(prefix="refimpl-")) / "actual.safetensors"
        words = [sys.executable] * (self.path.suffix == ".py") + [str(self.path)]
        try:
            subprocess.run([*words, str(self.folder), "-o", str(actual)], check=True)
            report = checked_file(self.folder, actual)
        except (OSError, subprocess.CalledProcessError, RefimplError) as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        self.config.stash[REPORTS].append(report_document(report, str(actual)))
        if report.verdict != "pass":
            pytest.fail(_message(report, actual), pytrace=False)
        rmtree(actual.parent)


def pytest_collection_modifyitems(
    session: pytest.Session, items: list[pytest.Item]
) -> None:
    """Add a test of the program for each core case, and for those that are added."""
    for name in session.config.getoption("refimpl"):
        path = session.config.invocation_params.dir / name
        for case in (*core_cases(), *session.config.stash[ADDED_CASES]):
            how: Any = {
                "nodeid": f"{name}::{case.name}",
                "path": path,
                "folder": case.path,
            }
            items.append(ProgramOnCase.from_parent(session, name=case.name, **how))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what `refimpl check --json` prints, of each case."""
    if name := session.config.getoption("refimpl_report"):
        content = json.dumps(session.config.stash[REPORTS], indent=1)
        (session.config.invocation_params.dir / name).write_text(
            content + "\n", "utf-8"
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, and that of a file of settings."""
    parser.addini(
        "refimpl_cases", "more folders of cases, relative to this file", "paths", []
    )
    group = parser.getgroup("refimpl")
    group.addoption(
        "--refimpl",
        action="append",
        default=[],
        metavar="PROGRAM",
        help="run PROGRAM CASE -o FILE on each case, and check the file; no test is needed",
    )
    group.addoption(
        "--refimpl-report", metavar="FILE", help="write the reports on PROGRAM as JSON"
    )
    group.addoption(
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
        "markers", f"{MARKER}: families and step patterns that are implemented"
    )
    if (
        OPTION in config.invocation_params.args
    ):  # pytest takes DIR for tests, and moves its rootdir
        raise pytest.UsageError(
            f"{OPTION} DIR: pytest would look for its settings in DIR\n"
            f"expected: {OPTION}=DIR, or refimpl_cases in the file of settings\n"
            f"next: write {OPTION}=DIR"
        )
    folders = [
        config.invocation_params.dir / name
        for name in config.getoption("refimpl_cases")
    ]
    folders += config.getini("refimpl_cases")
    try:
        added = [case for folder in folders for case in cases_below(folder)]
    except RefimplError as error:
        raise pytest.UsageError(f"{OPTION}: {error}") from error
    config.stash[ADDED_CASES], config.stash[REPORTS] = added, []
    if (
        config.getoption("refimpl")
        and config.args_source is not pytest.Config.ArgsSource.ARGS
    ):
        config.args = []  # the program alone


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each case that its marker selects."""
    if "refimpl_case" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("refimpl")
    try:
        args, kwargs = (marker.args, marker.kwargs) if marker else ((), {})
        selected = selected_cases(args, kwargs, metafunc.config)
    except RefimplError as error:
        text = f"{metafunc.definition.name}: {error}"
        raise pytest.Collector.CollectError(text) from error
    names = [case.name for case, _ in selected]
    metafunc.parametrize("refimpl_case", selected, indirect=True, ids=names)


@pytest.fixture(scope="session")
def refimpl_case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> CaseFixture:
    """A case, with `check` for the test's own arrays."""
    try:
        found, patterns = request.param
        return CaseFixture(found, patterns, lambda: tmp_path_factory.mktemp("refimpl"))
    except RefimplError as error:
        pytest.fail(str(error), pytrace=False)


def selected_cases(
    args: Sequence[object], kwargs: Mapping[str, Any], config: pytest.Config
) -> list[tuple[CaseFolder, Sequence[str]]]:
    """The cases that a marker selects, and patterns of steps; what matches nothing is refused."""
    lists = [x for x in kwargs.values() if x and isinstance(x, list | tuple)]
    texts = all(isinstance(text, str) for x in lists for text in x)
    if (
        args
        or kwargs.keys() - {"families", "steps"}
        or len(lists) < len(kwargs)
        or not texts
    ):
        raise RefimplError(
            f"@pytest.mark.refimpl with {args or kwargs}",
            MARKER,
            "pass lists of strings, and name the argument",
        )
    families, patterns = (
        tuple(kwargs.get("families", ())),
        tuple(kwargs.get("steps", ("*",))),
    )
    cases = [*core_cases(), *config.stash[ADDED_CASES]]
    have = {case.facts.family for case in cases}
    for family in (
        x for x in dict.fromkeys(families) if x not in have and family_model(x)
    ):
        from refimpl.oracle.case import forward_case

        if FORWARDS not in config.stash:  # a folder that the run removes
            config.stash[FORWARDS] = Path(mkdtemp(prefix="refimpl"))
            config.add_cleanup(partial(rmtree, config.stash[FORWARDS]))
        cases.append(forward_case(family, config.stash[FORWARDS] / family))
    chosen = [case for case in cases if not families or case.facts.family in families]
    if not chosen:
        raise RefimplError(
            f"no case has one of the families {[*families]}",
            f"one of {sorted({x.facts.family for x in cases})}, or another family of refimpl",
            "add a case with --refimpl-cases=DIR; refimpl case make makes one",
        )
    every = [step for case in chosen for step in case.steps]
    for pattern in patterns:
        if not matching(every, [pattern]):
            raise RefimplError(
                f"steps: {pattern!r} matches nothing",
                f"such as {', '.join(every[:3])}",
                "correct or remove it",
            )
    return [(case, patterns) for case in chosen if matching(case.steps, patterns)]
