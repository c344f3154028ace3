"""Which code blocks of the pages run: docs/how-to/contribute.md counts them and explains the rest.

If the number of blocks changes, `PYTHONPATH=tests python tests/docs/test_executed.py` updates them.
"""

import re
from collections import Counter
from pathlib import Path

import pytest
from examples import DOCSTRINGS, REASON, ROOT, blocks_to_run, problems
from test_examples import PAGES, RUN, SOURCES, blocks, title

PAGE = ROOT / "docs" / "how-to" / "contribute.md"
SHARES = re.compile(r"(?<=<!-- executed -->\n).*?(?=<!-- end -->)", re.DOTALL)
CODE = (*RUN, "yaml")  # the other languages are formulas, listings and the site's own
LINES = "`>>>` lines of docstrings"


def by_ci() -> set[tuple[str, str, int]]:
    """Page, language and number (from 1) of every block that .ci/run executes."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    names = dict(re.findall(r"^(\w+)=(\S+\.md)$", script, re.MULTILINE))
    calls = re.findall(r"fenced \$?(\S+) (\w+) (\d+)", script)
    return {(names.get(page, page), language, int(number)) for page, language, number in calls}


def code(page: Path) -> list[tuple[str, str, str]]:
    """Language and first command of every block of code, and what executes it, or nothing."""
    runs, needs = {x.line for x in blocks_to_run(page)}, reasons(page)
    found, numbers, ci = [], Counter[str](), by_ci()
    for line, language, text in blocks(page):
        if language in CODE:
            numbers[language] += 1
            by = "a marker" if any(m != "-" and text.startswith(f) for f, m in needs) else ""
            if (title(page), language, numbers[language]) in ci:
                by = "CI"
            if line in runs:
                by = "every run"
            found.append((language, text.strip().splitlines()[0], by))
    return found


def reasons(page: Path) -> list[tuple[str, str]]:
    """Beginnings of the blocks of a page that a plain run leaves out, each with its marker."""
    rows = REASON.findall(PAGE.read_text("utf-8"))
    return [(first, marker) for where, first, marker in rows if where == title(page)]


def shares() -> str:
    """The table of the page, counted."""
    there, ran, marked = Counter[str](), Counter[str](), Counter[str]()
    for language, _, by in (block for page in PAGES for block in code(page)):
        there[language] += 1
        ran[language] += by in ("CI", "every run")
        marked[language] += by == "a marker"
    for document in map(DOCSTRINGS.parse, SOURCES):
        sessions = "".join(example.parsed for example in document.examples())
        there[LINES] += len(re.findall(r"^ *>>> ", document.text, re.MULTILINE))
        ran[LINES] += len(re.findall(r"^ *>>> ", sessions, re.MULTILINE))
    rows = (f"| {x} | {there[x]} | {ran[x]} | {marked[x]} |\n" for x in (*CODE, LINES))
    head = "| code | there are | in every run | with a marker |\n|---|---|---|---|\n"
    return head + "".join(rows)


def test_the_shares_are_those_of_the_pages() -> None:
    found = SHARES.search(PAGE.read_text("utf-8"))
    assert found
    assert found[0] == shares(), "run PYTHONPATH=tests python tests/docs/test_executed.py"


def test_every_block_that_is_not_executed_has_a_reason() -> None:
    listed, used = {x[:2] for x in REASON.findall(PAGE.read_text("utf-8"))}, set()
    for page in PAGES:
        for _, first, by in code(page):
            fits = {x for x in listed if x[0] == title(page) and first.startswith(x[1])}
            assert by or fits, f"{title(page)}: {first}: not executed, and {PAGE} not why"
            used |= set() if by == "every run" else fits
    assert listed == used, f"of blocks that are executed, or not there: {listed - used}"


NEEDS = [
    pytest.param(page, marker, marks=getattr(pytest.mark, marker), id=f"{title(page)}-{marker}")
    for page in PAGES
    for marker in sorted({marker for _, marker in reasons(page)} - {"-"})
]


@pytest.mark.parametrize(("page", "marker"), NEEDS)
def test_a_page_runs_with_what_it_needs(page: Path, marker: str) -> None:
    assert problems(page, blocks_to_run(page, marker)) == ""


if __name__ == "__main__":
    PAGE.write_text(SHARES.sub(lambda _: shares(), PAGE.read_text("utf-8")), "utf-8")
