"""Which code blocks of the pages run: docs/how-to/contribute.md says why the others do not."""

import re
from collections import Counter
from pathlib import Path

import pytest
from examples import REASON, ROOT, blocks_to_run, problems
from test_examples import PAGES, RUN, blocks, title

PAGE = ROOT / "docs" / "how-to" / "contribute.md"
CODE = (*RUN, "yaml")  # the other languages are formulas, listings and the site's own


def by_ci() -> set[tuple[str, str, int]]:
    """Page, language and number (from 1) of every block that .ci/run executes."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    names = dict(re.findall(r"^(\w+)=(\S+\.md)$", script, re.MULTILINE))
    calls = re.findall(r"fenced \$?(\S+) (\w+) (\d+)", script)
    return {(names.get(page, page), language, int(number)) for page, language, number in calls}


def code(page: Path) -> list[tuple[str, bool, bool]]:
    """First command of every block of code, and whether every run, and CI, executes it."""
    runs, found, numbers, ci = {x.line for x in blocks_to_run(page)}, [], Counter[str](), by_ci()
    for line, language, text in blocks(page):
        if language in CODE:
            numbers[language] += 1
            in_ci = (title(page), language, numbers[language]) in ci
            found.append((text.strip().splitlines()[0], line in runs, in_ci))
    return found


def reasons(page: Path) -> list[tuple[str, str]]:
    """Beginnings of the blocks of a page that a plain run leaves out, each with its marker."""
    rows = REASON.findall(PAGE.read_text("utf-8"))
    return [(first, marker) for where, first, marker in rows if where == title(page)]


def test_every_block_that_is_not_executed_has_a_reason() -> None:
    listed, used = {x[:2] for x in REASON.findall(PAGE.read_text("utf-8"))}, set()
    for page in PAGES:
        for first, runs, in_ci in code(page):
            fits = {x for x in listed if x[0] == title(page) and first.startswith(x[1])}
            assert runs or in_ci or fits, (
                f"{title(page)}: {first}: not executed, and {PAGE} not why"
            )
            used |= set() if runs else fits
    assert listed == used, f"of blocks that are executed, or not there: {listed - used}"


NEEDS = [
    pytest.param(page, marker, marks=getattr(pytest.mark, marker), id=f"{title(page)}-{marker}")
    for page in PAGES
    for marker in sorted({marker for _, marker in reasons(page)} - {"-"})
]


@pytest.mark.parametrize(("page", "marker"), NEEDS)
def test_a_page_runs_with_what_it_needs(page: Path, marker: str) -> None:
    assert problems(page, blocks_to_run(page, marker)) == ""
