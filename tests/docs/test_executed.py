"""Which code blocks of the pages run: tests/docs/cases.txt says why the others do not."""

import re
from collections import Counter
from pathlib import Path

import pytest
from examples import ROOT, blocks_to_run, problems
from tables import cases
from test_examples import PAGES, RUN, blocks, title

NOT_RUN = cases(
    "docs", "not_run"
)  # page, beginning, marker of a run with it, and the reason
CODE = (*RUN, "yaml")  # the other languages are formulas, listings and the site's own


def code(page: Path) -> list[tuple[str, bool, bool]]:
    """First command of every block of code, and whether every run, and CI, executes it."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    names = dict(re.findall(r"^(\w+)=(\S+\.md)$", script, re.MULTILINE))
    calls = re.findall(r"fenced \$?(\S+) (\w+) (\d+)", script)
    ci = {(names.get(x, x), language, int(number)) for x, language, number in calls}
    runs, found, numbers = {x.line for x in blocks_to_run(page)}, [], Counter[str]()
    for line, language, text in blocks(page):
        if language in CODE:
            numbers[language] += 1
            in_ci = (title(page), language, numbers[language]) in ci
            found.append((text.strip().splitlines()[0], line in runs, in_ci))
    return found


def test_every_block_that_is_not_executed_has_a_reason() -> None:
    listed, used = {(where, first) for where, first, *_ in NOT_RUN}, set()
    for page in PAGES:
        for first, runs, in_ci in code(page):
            fits = {x for x in listed if x[0] == title(page) and first.startswith(x[1])}
            assert runs or in_ci or fits, (
                f"{title(page)}: {first}: neither executed nor in tests/docs/cases.txt"
            )
            used |= set() if runs else fits
    assert listed == used, f"of blocks that are executed, or not there: {listed - used}"


NEEDS = [
    pytest.param(
        page, marker, marks=getattr(pytest.mark, marker), id=f"{title(page)}-{marker}"
    )
    for page in PAGES
    for marker in sorted(
        {marker for where, _, marker, _ in NOT_RUN if where == title(page)} - {""}
    )
]


@pytest.mark.parametrize(("page", "marker"), NEEDS)
def test_a_page_runs_with_what_it_needs(page: Path, marker: str) -> None:
    assert problems(page, blocks_to_run(page, marker)) == ""
