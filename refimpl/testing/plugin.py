"""The pytest plugin: fixture `refimpl_case`, marker `refimpl`, and `--refimpl-cases=DIR`.

pytest imports it at every start, so only the fixture imports NumPy and the oracle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from refimpl.errors import RefimplError
from refimpl.oracle.case_folders import (
    CaseFolder,
    SelectedCase,
    cases_below,
    core_cases,
    matching,
)

if TYPE_CHECKING:
    from refimpl.testing.case_fixture import CaseFixture

MARKER = "refimpl(families=[...], steps=[...], xfail=[...])"
ARGUMENTS: Mapping[str, Sequence[str]] = {"families": (), "steps": ("*",), "xfail": ()}
OPTION = "--refimpl-cases"
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
        args, kwargs = (marker.args, marker.kwargs) if marker else ((), {})
        core = core_cases("families" in kwargs)  # forwards alone are asked for by family
        every = distinct_cases([*core, *metafunc.config.stash[ADDED_CASES]])
        selected = selected_cases(args, kwargs, every)
    except RefimplError as error:
        text = f"{metafunc.definition.name}: {error}"
        raise pytest.Collector.CollectError(text) from error
    fails = pytest.mark.xfail(strict=True, raises=AssertionError, reason="in the list of xfail")
    cases = [pytest.param(x, id=x.case.name, marks=[fails] * ("" in x.failing)) for x in selected]
    metafunc.parametrize("refimpl_case", cases, indirect=True)


@pytest.fixture(scope="session")
def refimpl_case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> CaseFixture:
    """A case, with `check` for the test's own arrays."""
    from refimpl.testing.case_fixture import CaseFixture

    try:
        return CaseFixture.of(request.param, lambda: tmp_path_factory.mktemp("refimpl"))
    except RefimplError as error:
        pytest.fail(str(error), pytrace=False)


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


def selected_cases(
    args: Sequence[object], kwargs: Mapping[str, Any], cases: Iterable[CaseFolder]
) -> list[SelectedCase]:
    """The cases that a marker selects; names and patterns that match nothing are refused."""
    for name, value in kwargs.items():
        texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
        if name not in ARGUMENTS or not texts or not (value or name == "xfail"):
            raise RefimplError(
                f"@pytest.mark.refimpl({name}={value!r})", MARKER, "pass lists of strings"
            )
    if args:
        raise RefimplError(
            f"@pytest.mark.refimpl{tuple(args)!r}", MARKER, f"name the argument: {[*ARGUMENTS]}"
        )
    families, patterns, xfail = (tuple(kwargs.get(x, y)) for x, y in ARGUMENTS.items())
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
    failing: dict[str, list[str]] = {case.name: [] for case in chosen}
    for entry in xfail:
        name, _, pattern = entry.partition("::")
        _check_match(f"xfail: {entry!r}", name, list(steps))
        _check_match(f"xfail: {entry!r}", pattern or "*", steps[name])
        failing[name].append(pattern)
    asked = [case for case in chosen if steps[case.name]]
    return [SelectedCase(x, patterns, tuple(failing[x.name])) for x in asked]


def _check_match(label: str, pattern: str, names: Sequence[str]) -> None:
    """Refuse a pattern that matches none of the names."""
    if not matching(names, [pattern]):
        examples = ", ".join(dict.fromkeys(names[:3]))
        raise RefimplError(
            f"{label} matches nothing", f"such as {examples}", "correct or remove it"
        )
