"""The pytest plugin: fixture `refimpl_case`, marker `refimpl`, and `--refimpl-cases=DIR`.

pytest imports it at every start, so only the fixture imports NumPy and the oracle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import pytest

from refimpl.errors import RefimplError
from refimpl.oracle.case_folders import CaseFolder, cases_below, core_cases

if TYPE_CHECKING:
    from refimpl.testing.case_fixture import CaseFixture

OPTION = "--refimpl-cases"
MARKER = "refimpl(families=[...], steps=[...], xfail=[...])"
ADDED_CASES = pytest.StashKey[list[CaseFolder]]()


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
        f"{MARKER}: families and steps (patterns) that are implemented; cases, or case::steps, "
        "that are known to fail",
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
        distinct_cases([*core_cases(True), *added] if added else [])
    except RefimplError as error:
        raise pytest.UsageError(f"{OPTION}: {error}") from error
    config.stash[ADDED_CASES] = added


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each case that its marker selects."""
    if "refimpl_case" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("refimpl")
    try:
        selection = selection_of(marker.args if marker else (), marker.kwargs if marker else {})
        core = core_cases(bool(selection.families))  # forwards alone are asked for by family
        cases = distinct_cases([*core, *metafunc.config.stash[ADDED_CASES]])
        selected = selected_cases(selection, cases)
    except RefimplError as error:
        text = f"{metafunc.definition.name}: {error}"
        raise pytest.Collector.CollectError(text) from error
    metafunc.parametrize("refimpl_case", [_parameter(one) for one in selected], indirect=True)


@pytest.fixture(scope="session")
def refimpl_case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> CaseFixture:
    """A case, with `check` for the test's own arrays."""
    from refimpl.oracle.case import read_case
    from refimpl.testing.case_fixture import CaseFixture

    try:
        case = read_case(request.param.case.path)
        return CaseFixture(case, request.param, lambda: tmp_path_factory.mktemp("refimpl"))
    except RefimplError as error:
        pytest.fail(str(error), pytrace=False)


def _parameter(selected: SelectedCase) -> object:
    """A parameter with the case's name, marked if the case is known to fail."""
    xfail = pytest.mark.xfail(strict=True, raises=AssertionError, reason="in the list of xfail")
    return pytest.param(selected, id=selected.case.name, marks=[xfail] if selected.fails else [])


def distinct_cases(cases: Iterable[CaseFolder]) -> list[CaseFolder]:
    """Cases without copies of one; two different cases of one name are refused."""
    by_name: dict[str, CaseFolder] = {}
    for case in cases:
        other = by_name.setdefault(case.name, case)
        if other.facts != case.facts:
            raise RefimplError(
                f"two cases have the name {case.name}: {other.path} and {case.path}",
                "a different name for each case",
                "rename one of the folders",
            )
    return list(by_name.values())


@dataclass(frozen=True)
class Selection:
    """The arguments of the marker: families, all if empty; patterns of steps; "case::pattern"."""

    families: tuple[str, ...] = ()
    steps: tuple[str, ...] = ("*",)
    xfail: tuple[str, ...] = ()


@dataclass(frozen=True)
class SelectedCase:
    """A case, patterns of the steps that a test asks of it, and what of it is known to fail."""

    case: CaseFolder
    steps: tuple[str, ...]
    fails: bool = False
    failing: tuple[str, ...] = ()


def selection_of(args: Sequence[object], kwargs: Mapping[str, Any]) -> Selection:
    """The arguments of the marker, each by name and a list of strings."""
    names = Selection.__dataclass_fields__
    for name, value in kwargs.items():
        texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
        if name not in names or not texts or not (value or name == "xfail"):
            raise RefimplError(
                f"@pytest.mark.refimpl({name}={value!r})", MARKER, "pass lists of strings"
            )
    if args:
        raise RefimplError(
            f"@pytest.mark.refimpl{tuple(args)!r}", MARKER, f"name the argument: {[*names]}"
        )
    return Selection(**{name: tuple(value) for name, value in kwargs.items()})


def selected_cases(selection: Selection, cases: Iterable[CaseFolder]) -> list[SelectedCase]:
    """The cases that a test runs on; names and patterns that match nothing are refused."""
    every = list(cases)
    chosen = [case for case in every if not selection.families or case.family in selection.families]
    if not chosen:
        raise RefimplError(
            f"no case has one of the families {list(selection.families)}",
            f"one of {sorted({case.family for case in every})}",
            "add a case with --refimpl-cases=DIR; refimpl case make makes one",
        )
    steps = {
        case.name: [s for s in case.steps if any(fnmatchcase(s, p) for p in selection.steps)]
        for case in chosen
    }
    for pattern in selection.steps:
        _check_match(f"steps: {pattern!r}", pattern, [s for case in chosen for s in case.steps])
    failing: dict[str, list[str]] = {case.name: [] for case in chosen}
    for entry in selection.xfail:
        name, _, pattern = entry.partition("::")
        _check_match(f"xfail: {entry!r}", name, list(steps))
        _check_match(f"xfail: {entry!r}", pattern or "*", steps[name])
        failing[name].append(pattern)
    return [
        SelectedCase(
            case, selection.steps, "" in failing[case.name], tuple(filter(None, failing[case.name]))
        )
        for case in chosen
        if steps[case.name]
    ]


def _check_match(label: str, pattern: str, names: Sequence[str]) -> None:
    """Refuse a pattern that matches none of the names."""
    if not any(fnmatchcase(name, pattern) for name in names):
        examples = ", ".join(dict.fromkeys(names[:3]))
        raise RefimplError(
            f"{label} matches nothing", f"such as {examples}", "correct or remove it"
        )
