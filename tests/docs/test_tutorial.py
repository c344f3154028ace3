"""The tutorial's pages keep their form, and the code on them is that of pico.py."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest
from examples import ROOT
from regions import regions
from tutorial_sources import PAGES, filled, named

LESSONS = [page for page in PAGES if page.name[0].isdigit()]
SIDE = [page for page in PAGES if page not in LESSONS and page.name != "index.md"]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def title(page: Path) -> str:
    return page.stem


@pytest.mark.parametrize("page", [*LESSONS, *SIDE], ids=title)
def test_the_code_is_not_typed(page: Path) -> None:
    text = page.read_text("utf-8")
    assert filled(text) == text, "run python tests/tools/tutorial_sources.py"
    shown_regions = regions(text)
    assert text.count("<!-- source ") == len(shown_regions) == text.count("<!-- end -->")
    for full_name, region in shown_regions.items():
        name = full_name.removeprefix("source ")
        assert name.startswith("pico.") or page in SIDE, "a lesson's listings are lines of pico.py"
        ((language, shown),) = FENCED.findall(region)
        whole = textwrap.dedent(inspect.getsource(named(name)))
        assert language == "text"
        left = iter(whole.splitlines())
        assert all(line in left for line in shown.splitlines()), f"{name}: not its lines, in order"
        (function,) = ast.parse(whole).body
        assert isinstance(function, ast.FunctionDef)
        function.decorator_list = []  # they check arguments
        if not name.startswith("pico."):
            function.body = function.body[bool(ast.get_docstring(function)) :]
        assert ast.dump(ast.parse(shown)) == ast.dump(ast.Module([function], [])), name


def test_every_function_of_pico_is_on_a_page_or_is_its_frame() -> None:
    shown = {name for page in LESSONS for name in regions(page.read_text("utf-8"))}
    source = (ROOT / "docs" / "tutorial" / "pico.py").read_text("utf-8")
    functions = {x.name for x in ast.parse(source).body if isinstance(x, ast.FunctionDef)}
    assert functions - {name.rpartition(".")[2] for name in shown} == {
        "read", "samples", "rotate", "ln_p", "continued", "main",
    }  # fmt: skip


def test_the_answer_on_the_first_page_is_what_the_last_one_prints() -> None:
    first, last = (page.read_text("utf-8") for page in (LESSONS[0], LESSONS[-1]))
    (table,) = (text for language, text in FENCED.findall(first) if language == "text")
    assert table in "".join(text for _, text in FENCED.findall(last))
