"""The benchmark: its table is that of its results, and each side runs on a small model."""

import json

import benchmark
import pytest
from conftest import FIXTURES
from pages import regions

SIDES = sorted({side for *_, sides in benchmark.ROWS for side in sides})


def test_the_page_is_what_its_results_make() -> None:
    results = json.loads(benchmark.RESULTS.read_text())
    assert regions(benchmark.PAGE.read_text())["figures"] == benchmark.table(results)
    keys = {benchmark.key_of(row) for row in benchmark.ROWS}
    assert {key for machine in results.values() for key in machine["rows"]} <= keys


@pytest.mark.parametrize(
    "side",
    [pytest.param(x, marks=[pytest.mark.torch] if x in benchmark.AGAINST else []) for x in SIDES],
)
@pytest.mark.thorough
def test_each_side_runs(side: str) -> None:
    found = benchmark.run_side(side, str(FIXTURES / "llama"), 2, 16)
    assert found["seconds"] > 0
    assert found["MB"] > 10
