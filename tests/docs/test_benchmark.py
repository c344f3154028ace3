"""The table of the benchmark is that of its results."""

import json

import benchmark
from pages import regions


def test_the_page_is_what_its_results_make() -> None:
    results = json.loads(benchmark.RESULTS.read_text())
    assert regions(benchmark.PAGE.read_text())["figures"] == benchmark.table(results)
    keys = {benchmark.key_of(row) for row in benchmark.ROWS}
    assert {key for machine in results.values() for key in machine["rows"]} <= keys
