"""The tutorial's pages keep their form, and the code on them is the library's."""

import ast
import inspect
import re
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
from examples import ROOT
from regions import regions
from tutorial_sources import PAGES, code, filled, named

INDEX, *LESSONS = sorted(PAGES, key=lambda page: page.name != "index.md")
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINES, WIDTH = 200, 120


def title(page: Path) -> str:
    return page.stem


def test_there_are_eight_pages_each_linked_to_the_next() -> None:
    assert [page.name[0] for page in LESSONS] == list("12345678")
    listed = re.findall(r"^\d\. \[.*?\]\((.*?)\)", INDEX.read_text("utf-8"), re.MULTILINE)
    assert listed == [page.name for page in LESSONS]
    for page, following in pairwise(LESSONS):
        last = page.read_text("utf-8").splitlines()[-1]
        assert re.fullmatch(rf"Next: \[.*\]\({re.escape(following.name)}\)", last)


@pytest.mark.parametrize("page", LESSONS, ids=title)
def test_the_code_is_the_librarys(page: Path) -> None:
    text = page.read_text("utf-8")
    assert filled(text) == text, "run python tests/tools/tutorial_sources.py"
    shown_regions = regions(text)
    assert shown_regions
    assert text.count("<!-- source ") == len(shown_regions) == text.count("<!-- end -->")
    for full_name, region in shown_regions.items():
        name = full_name.removeprefix("source ")
        ((language, shown),) = FENCED.findall(region)
        whole = textwrap.dedent(inspect.getsource(named(name)))
        assert language == "text"
        left = iter(whole.splitlines())
        assert all(line in left for line in shown.splitlines()), f"{name}: not its lines, in order"
        (function,) = ast.parse(whole).body
        assert isinstance(function, ast.FunctionDef)
        function.decorator_list = []  # they check arguments
        function.body = function.body[bool(ast.get_docstring(function)) :]
        function.decorator_list = []
        assert ast.dump(ast.parse(shown)) == ast.dump(ast.Module([function], [])), name


def test_code_leaves_docstring_and_decorators_out_and_nothing_else() -> None:
    assert (
        code("refimpl.model.ops.relu")
        == "def relu(x: Array) -> Array:\n    return np.maximum(x, 0)"
    )
    assert code("refimpl.method.absorption.surviving_drift").endswith("return ratio(last, first)")
    assert "# compared, not subtracted" in code("refimpl.model.position_tables.causal_bias")


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_pages_are_short_and_narrow(page: Path) -> None:
    lines = page.read_text("utf-8").splitlines()
    assert len(lines) <= LINES
    assert [line for line in lines if len(line) > WIDTH] == []


@pytest.mark.parametrize("page", LESSONS, ids=title)
def test_pages_open_and_close_alike(page: Path) -> None:
    text = page.read_text("utf-8")
    opening, *steps, exercises = re.split(r"^## ", text, flags=re.MULTILINE)
    assert opening.startswith(f"# {page.name[0]} ")
    assert re.findall(r"^- \*\*You will( learn| need)?\*\* ", opening, re.MULTILINE) == [
        "", " learn", " need"
    ]  # fmt: skip
    assert exercises.startswith("Exercises\n")
    answers = re.findall(
        r"^\*\*\d\.\*\* .*?^<details>\n<summary>Answer</summary>\n\n(.*?)^</details>$",
        exercises,
        re.MULTILINE | re.DOTALL,
    )
    assert 2 <= len(answers) <= 3
    assert exercises.count("<details>") == len(answers)
    for answer in answers:
        assert [language for language, _ in FENCED.findall(answer)] in (["python"], ["console"])
    ran = [step for step in steps if re.search(r"^```(python|console)$", step, re.MULTILINE)]
    assert len(ran) >= len(steps) - 1  # one step of a page may be a reason only
    assert 2 * sum("Formula" in step for step in steps) > len(steps)


@pytest.mark.parametrize("page", LESSONS, ids=title)
def test_every_session_shows_what_it_prints(page: Path) -> None:
    sessions = [
        text for language, text in FENCED.findall(page.read_text("utf-8")) if language == "python"
    ]
    for session in sessions:
        assert session.startswith(">>> ")
        assert not session.splitlines()[-1].startswith((">>> ", "... "))
        assert "  def " not in session, "the library's functions are included, not typed"


def test_the_tutorial_is_where_the_docs_say() -> None:
    assert {page.parent for page in PAGES} == {ROOT / "docs" / "tutorial"}
