"""Nothing on a page rots in silence: blocks are run or allowed by name."""

import re
from pathlib import Path

import pytest
from examples import (
    DOCSTRINGS,
    MARKDOWN,
    ROOT,
    blocks_to_run,
    matches,
    problems,
    reader,
    run_session,
    shell,
)
from pages import REGION
from tables import cases

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = sorted((ROOT / "refimpl").rglob("*.py"))
RUN = (
    "python",
    "console",
    "bash",
)  # tests/docs/test_executed.py asks for a reason otherwise
# What is not run: formulas, listings; .ci/run runs the recipe of docs/how-to/oracle-in-ci.md.
NOT_RUN_ANYWHERE = ("math", "text", "yaml", "output")
SITE = (
    "{toctree}",
    "{include}",
    "{literalinclude}",
    "{eval-rst}",
)  # which .ci/run builds


def title(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """Line, language and text of every fenced block, found line by line."""
    found: list[tuple[int, str, str]] = []
    inside = False
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            if not inside:
                found.append((number, line.strip().removeprefix("```"), ""))
            inside = not inside
        elif inside:
            start, language, text = found[-1]
            found[-1] = start, language, f"{text}{line}\n"
        else:
            indented = line.startswith("    ") and not line.lstrip().startswith(
                ("-", "*", "|")
            )
            assert not indented, (
                f"{page}:{number}: an indented block is not run; fence it"
            )
            assert "~~~" not in line, f"{page}:{number}: fence blocks with backticks"
    assert not inside, f"{page}: a block is not closed"
    return found


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_block_is_run_or_allowed(page: Path) -> None:
    for number, language, _ in blocks(page):
        allowed = language.split("}")[0] + "}" in SITE or language in (
            *RUN,
            *NOT_RUN_ANYWHERE,
        )
        assert allowed, (
            f"{title(page)}:{number}: ```{language} is neither run nor allowed"
        )


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_block_to_run_is_collected(page: Path) -> None:
    assert MARKDOWN.should_parse(page)
    collected = [x.line for one in MARKDOWN.parse(page).examples() for x in one.parsed]
    assert collected == [x.line for x in blocks_to_run(page)]
    shown = [x.output for x in blocks_to_run(page) if x.output is not None]
    assert [x for _, language, x in blocks(page) if language == "output"] == shown
    to_run = [number for number, language, _ in blocks(page) if language in RUN]
    assert set(collected) <= set(to_run)
    assert {n for n, language, _ in blocks(page) if language in RUN[:2]} <= set(
        collected
    )


def test_every_docstring_example_is_collected() -> None:
    for source in SOURCES:
        assert DOCSTRINGS.should_parse(source), source
        document = DOCSTRINGS.parse(source)
        sessions = [example.parsed for example in document.examples()]
        in_sessions = sum(
            len(re.findall(r"^ *>>> ", s, re.MULTILINE)) for s in sessions
        )
        assert in_sessions == len(
            re.findall(r"^ *>>> ", document.text, re.MULTILINE)
        ), source


# The machinery itself


def test_a_wrong_session_is_seen() -> None:
    assert run_session(">>> 1 + 1\n2\n", {}, "page", 1) == ""
    assert "Got:\n    2" in run_session(">>> 1 + 1\n3\n", {}, "page", 1)
    assert "ZeroDivisionError" in run_session(">>> 1 / 0\n", {}, "page", 1)
    assert 'File "page", line 8' in run_session(">>> 1\n1\n>>> x\n", {}, "page", 6)


@pytest.mark.parametrize(("block", "seen"), cases("docs", "blocks"))
def test_a_wrong_block_is_seen(block: str, seen: str, tmp_path: Path) -> None:
    (page := tmp_path / "page.md").write_text(f"```{block}```\n")
    found = problems(page, blocks_to_run(page))
    assert seen in found
    assert bool(seen) == bool(found)


@pytest.mark.parametrize(("expected", "got", "same"), cases("docs", "compared"))
def test_output_is_compared(expected: str, got: str, same: bool) -> None:
    assert matches(expected, got) == same


def test_examples_leave_nothing_behind() -> None:
    before = sorted(path.name for path in ROOT.iterdir())
    with reader() as folder:
        assert shell("refimpl --version > version.txt\n", folder).returncode == 0
        assert run_session('>>> open("left.txt", "w").close()\n', {}, "page", 1) == ""
    assert sorted(path.name for path in ROOT.iterdir()) == before


def test_a_page_runs_in_order_in_one_folder(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nfrom pathlib import Path\nx = Path('a').write_text('1\\n')\n```\n\n"
        "```console\n$ cat a\n1\n```\n\n"
        "<!-- goes on -->\n```python\nassert x == 2\n```\n\n"
        "```bash\nrm a\nls a\n```\n\n"
    )
    found = problems(page, blocks_to_run(page))
    assert re.findall(r"page.md:(\d+): (?s:.*)No such file", found) == ["16"]


def test_a_session_goes_on_in_the_names_of_the_one_before(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    first, second = "```python\nx = 1\n```\n", "```python\nx\n```\n```output\n1\n```\n"
    page.write_text(f"{first}<!-- goes on -->\n{second}")
    assert problems(page, blocks_to_run(page)) == ""
    page.write_text(first + second)
    with pytest.raises(NameError, match="'x' is not defined"):
        problems(page, blocks_to_run(page))


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = r"`(?:tests/)?((?:docs|fixtures|refimpl|tests)/[\w/.-]+|\w+/test_\w+\.py)"
    for path in re.findall(named, page.read_text("utf-8")):
        assert (ROOT / path).exists() or (ROOT / "tests" / path).exists(), path


def test_pages_fit_into_their_budgets() -> None:
    """Words that are written by hand, listings too; pages of the site; a release's lines."""
    generated = re.compile(
        REGION.pattern.replace("-- ([", "-- (?!source )(["), re.DOTALL
    )
    words = {
        page: len(generated.sub(" ", page.read_text("utf-8")).split()) for page in PAGES
    }
    site = set(PAGES) - {ROOT / "docs" / name for name in ("contents.md", "readme.md")}
    assert sum(words.values()) <= 45_000
    assert len(site) <= 60
    assert words[ROOT / "README.md"] <= 800
    releases = re.split(
        r"^## ", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE
    )
    assert max(len(release.splitlines()) for release in releases[1:]) <= 60
