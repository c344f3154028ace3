"""The tutorial's pages keep their form, and the code on them is that of pico.py."""

import ast
import inspect
import re
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
from examples import ROOT, blocks_to_run
from regions import regions
from tutorial_sources import PAGES, code, filled, named

LESSONS = [page for page in PAGES if page.name[0].isdigit()]
SIDE = [page for page in PAGES if page not in LESSONS and page.name != "index.md"]
INDEX = (ROOT / "docs" / "tutorial" / "index.md").read_text("utf-8")
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"^!\[.+\]\((\S+\.svg)\)$", re.MULTILINE)
LINES, WIDTH, WORDS = 200, 120, 9_350
WRITES = ("plot.save(", "save_file(", "np.save(")  # files, and prints nothing


def title(page: Path) -> str:
    return page.stem


def test_the_pages_are_listed_and_each_is_linked_to_the_next() -> None:
    assert [page.name[0] for page in LESSONS] == list("01234567")
    listed = re.findall(r"^[-\d]\.? \[.*?\]\((.*?\.md)\)", INDEX, re.MULTILINE)
    assert listed == [page.name for page in (*LESSONS, *SIDE)]
    for page, following in pairwise(LESSONS):
        last = page.read_text("utf-8").splitlines()[-1]
        assert re.fullmatch(rf"Next: \[.*\]\({re.escape(following.name)}\)", last)


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


def test_code_leaves_docstring_and_decorators_out_and_nothing_else() -> None:
    assert (
        code("refimpl.model.ops.relu")
        == "def relu(x: Array) -> Array:\n    return np.maximum(x, 0)"
    )
    assert code("refimpl.method.absorption.surviving_drift").endswith("return ratio(last, first)")
    assert "# compared, not subtracted" in code("refimpl.model.position_tables.causal_bias")
    assert '"""R = ' in code("pico.drift")  # its formula


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_pages_are_short_and_narrow(page: Path) -> None:
    lines = page.read_text("utf-8").splitlines()
    assert len(lines) <= LINES
    assert [line for line in lines if len(line) > WIDTH] == []


@pytest.mark.parametrize("page", LESSONS, ids=title)
def test_a_lesson_has_one_question_one_picture_that_it_draws_and_exercises(page: Path) -> None:
    text = page.read_text("utf-8")
    opening, *_, exercises = re.split(r"^## ", text, flags=re.MULTILINE)
    assert opening.startswith(f"# {page.name[0]} ")
    assert len(re.findall(r"^\*\*Question:\*\* .*\?", opening, re.MULTILINE)) == 1
    assert len(re.findall(r"^\*\*(?:In numbers|Answer):\*\* ", text, re.MULTILINE)) == 1
    pictures = PICTURE.findall(text)
    assert len(pictures) == (page != LESSONS[1])  # which has a diagram of characters
    for picture in pictures:
        assert (page.parent / picture).exists()
        assert f'"{picture}"' in "".join(x for kind, x in FENCED.findall(text) if kind == "python")
    assert exercises.startswith("Exercises\n")
    answers = re.findall(
        r"^\*\*\d\.\*\* .*?^<details>\n<summary>Answer</summary>\n\n(.*?)^</details>$",
        exercises,
        re.MULTILINE | re.DOTALL,
    )
    assert 1 <= len(answers) <= 3
    assert exercises.count("<details>") == len(answers)
    if page not in (LESSONS[0], LESSONS[-1]):  # a case has no step for them
        assert re.search(
            r"refimpl check (fixtures/toy|toy-case) mine.safetensors --only", exercises
        )


def test_the_answer_on_the_first_page_is_what_the_last_one_prints() -> None:
    first, last = (page.read_text("utf-8") for page in (LESSONS[0], LESSONS[-1]))
    (table,) = (text for language, text in FENCED.findall(first) if language == "text")
    assert table in "".join(text for _, text in FENCED.findall(last))


def test_the_tutorial_does_not_grow() -> None:
    """Words of all pages, code included."""
    assert sum(len(page.read_text("utf-8").split()) for page in PAGES) <= WORDS


@pytest.mark.parametrize("page", [*LESSONS, *SIDE], ids=title)
def test_blocks_can_be_pasted_and_show_what_they_print(page: Path) -> None:
    """Without prompts; a notebook and newer shells show no expression but a block's last one."""
    for block in blocks_to_run(page):
        assert block.language in ("python", "bash"), "a console block mixes commands and output"
        if block.language == "python":
            others = ast.parse(block.text).body[:-1]
            writes = block.text.splitlines()[-1].startswith(WRITES)
            assert page in SIDE or block.output or writes, "neither output nor a file"
            for line in (ast.unparse(x) for x in others if isinstance(x, ast.Expr)):
                assert line.startswith((*WRITES, "print(", "sys.path.append(")), f"{line}: hidden"


def test_the_tutorial_is_where_the_docs_say() -> None:
    assert {page.parent for page in PAGES} == {ROOT / "docs" / "tutorial"}
