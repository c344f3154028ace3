"""Which code blocks of the pages run: docs/how-to/contribute.md counts them and explains the rest.

If the number of blocks changes, `PYTHONPATH=tests python tests/docs/test_executed.py` updates them.
"""

import re
from collections import Counter
from pathlib import Path

from examples import DOCSTRINGS, MARKDOWN, ROOT
from test_examples import PAGES, RUN, SOURCES, blocks, title

PAGE = ROOT / "docs" / "how-to" / "contribute.md"
SHARES = re.compile(r"(?<=<!-- executed -->\n).*?(?=<!-- end -->)", re.DOTALL)
REASON = re.compile(r"^\| `([^`]+\.md)` \| `([^`]+)` \| \S.* \|$", re.MULTILINE)
CODE = (*RUN, "bash", "yaml")  # the other languages are formulas, listings and the site's own
LINES = "`>>>` lines of docstrings"


def by_ci() -> set[tuple[str, str, int]]:
    """Page, language and number (from 1) of every block that .ci/run executes."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    names = dict(re.findall(r"^(\w+)=(\S+\.md)$", script, re.MULTILINE))
    calls = re.findall(r"fenced \$?(\S+) (\w+) (\d+)", script)
    return {(names.get(page, page), language, int(number)) for page, language, number in calls}


def code(page: Path) -> list[tuple[str, str, bool]]:
    """Language and first command of every block of code, and whether something executes it."""
    collected = {example.line for example in MARKDOWN.parse(page).examples()}
    found, numbers, ci = [], Counter[str](), by_ci()
    for line, language, text in blocks(page):
        if language in CODE:
            numbers[language] += 1
            executed = line in collected or (title(page), language, numbers[language]) in ci
            found.append((language, text.strip().splitlines()[0], executed))
    return found


def shares() -> str:
    """The table of the page, counted."""
    there, ran = Counter[str](), Counter[str]()
    for language, _, executed in (block for page in PAGES for block in code(page)):
        there[language] += 1
        ran[language] += executed
    for document in map(DOCSTRINGS.parse, SOURCES):
        sessions = "".join(example.parsed for example in document.examples())
        there[LINES] += len(re.findall(r"^ *>>> ", document.text, re.MULTILINE))
        ran[LINES] += len(re.findall(r"^ *>>> ", sessions, re.MULTILINE))
    rows = (f"| {x} | {there[x]} | {ran[x]} | {ran[x] / there[x]:.0%} |\n" for x in (*CODE, LINES))
    return "| code | there are | executed | share |\n|---|---|---|---|\n" + "".join(rows)


def test_the_shares_are_those_of_the_pages() -> None:
    found = SHARES.search(PAGE.read_text("utf-8"))
    assert found
    assert found[0] == shares(), "run PYTHONPATH=tests python tests/docs/test_executed.py"


def test_every_block_that_is_not_executed_has_a_reason() -> None:
    reasons, used = set(REASON.findall(PAGE.read_text("utf-8"))), set()
    for page in PAGES:
        for _, first, executed in code(page):
            fits = {x for x in reasons if x[0] == title(page) and first.startswith(x[1])}
            assert executed or fits, f"{title(page)}: {first}: not executed, and {PAGE} not why"
            used |= set() if executed else fits
    assert reasons == used, f"of blocks that are executed, or not there: {reasons - used}"


if __name__ == "__main__":
    PAGE.write_text(SHARES.sub(lambda _: shares(), PAGE.read_text("utf-8")), "utf-8")
