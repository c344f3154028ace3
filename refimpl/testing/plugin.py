"""pytest's plugin: the fixture `refimpl_case`, the marker `refimpl`, and `--refimpl-cases DIR`.

pytest imports it whenever it starts, so that NumPy and the oracle are imported by the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from refimpl.errors import RefimplError
from refimpl.testing.folders import CaseFolder, cases_below, core_cases, united
from refimpl.testing.selection import MARKER, Wanted, selection, wanted

if TYPE_CHECKING:
    from refimpl.testing.trial import Trial

ADDED = pytest.StashKey[list[CaseFolder]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option for cases of one's own."""
    parser.getgroup("refimpl").addoption(
        "--refimpl-cases",
        action="append",
        default=[],
        metavar="DIR",
        help="run refimpl_case on the case in DIR, or on those in its folders, as well; "
        "may be given several times",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker; and cases that cannot be used end the run before it begins."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}: families and steps (patterns) that are implemented; cases, or case::steps, "
        "that are known to fail",
    )
    folders = [config.invocation_params.dir / name for name in config.getoption("refimpl_cases")]
    config.stash[ADDED] = []
    if folders:
        try:
            added = [case for folder in folders for case in cases_below(folder)]
            united([*core_cases(), *added])
        except RefimplError as error:
            raise pytest.UsageError(f"--refimpl-cases: {error}") from error
        config.stash[ADDED] = added


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each case."""
    if "refimpl_case" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("refimpl")
    try:
        asked = selection(marker.args if marker else (), marker.kwargs if marker else {})
        cases = wanted(asked, united([*core_cases(), *metafunc.config.stash[ADDED]]))
    except RefimplError as error:
        text = f"{metafunc.definition.name}: {error}"
        raise pytest.Collector.CollectError(text) from error
    metafunc.parametrize("refimpl_case", [_parameter(one) for one in cases], indirect=True)


@pytest.fixture
def refimpl_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """A case, and `check`, which holds what was computed against it."""
    from refimpl.testing.trial import trial

    try:
        return trial(request.param, lambda: tmp_path_factory.mktemp("refimpl"))
    except RefimplError as error:
        pytest.fail(str(error), pytrace=False)


def _parameter(one: Wanted) -> object:
    """A parameter that carries the case's name, and what is known of it."""
    known = pytest.mark.xfail(strict=True, raises=AssertionError, reason="in the list of xfail")
    return pytest.param(one, id=one.case.name, marks=[known] if one.fails else [])
