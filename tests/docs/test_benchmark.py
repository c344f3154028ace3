"""The benchmark: its table is that of its results, and each side runs on a small model."""

import json

import benchmark
import pytest
from conftest import FIXTURES
from regions import regions

SIDES = sorted({side for *_, sides in benchmark.ROWS for side in sides})


def test_the_page_is_what_its_results_make() -> None:
    results = json.loads(benchmark.RESULTS.read_text())
    assert regions(benchmark.PAGE.read_text())["figures"] == benchmark.table(results)
    keys = {benchmark.key_of(row) for row in benchmark.ROWS}
    assert {key for machine in results.values() for key in machine["rows"]} <= keys


def test_a_table_has_ratios_and_medians() -> None:
    key = benchmark.key_of(benchmark.ROWS[0])
    row = {"seconds": {"score": [1.0, 2.0, 4.0], "hooked_score": [2.0, 8.0, 4.0]}}
    (line,) = benchmark.table({"here": {"rows": {key: row}}}).strip().split("\n")[2:]
    assert line.endswith(" | 2.00 (1.00 to 4.00) | 2 s | 4 s |")


@pytest.mark.parametrize(
    "side",
    [pytest.param(x, marks=[pytest.mark.torch] if x in benchmark.AGAINST else []) for x in SIDES],
)
@pytest.mark.thorough
def test_each_side_runs(side: str) -> None:
    found = benchmark.run_side(side, str(FIXTURES / "llama"), 2, 16)
    assert found["seconds"] > 0
    assert found["MB"] > 10
