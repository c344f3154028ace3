"""The tutorial's pages keep their form, and the code on them is that of pico.py."""

import ast
import re

from examples import ROOT
from pages import TUTORIAL as PAGES
from pages import named, regions

LESSONS = [page for page in PAGES if page.name[0].isdigit()]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_function_of_pico_is_on_a_page_or_is_its_frame() -> None:
    shown = {name for page in LESSONS for name in regions(page.read_text("utf-8"))}
    source = (ROOT / "docs" / "tutorial" / "pico.py").read_text("utf-8")
    functions = {
        x.name for x in ast.parse(source).body if isinstance(x, ast.FunctionDef)
    }
    assert functions - {name.rpartition(".")[2] for name in shown} == {
        "read",
        "samples",
        "start",
        "ln_p",
        "compared",
        "continued",
        "main",
    }


def test_the_answer_on_the_first_page_is_what_a_later_one_prints() -> None:
    first, later = (LESSONS[i].read_text("utf-8") for i in (0, 7))
    (table,) = (text for language, text in FENCED.findall(first) if language == "text")
    assert table in "".join(text for _, text in FENCED.findall(later))


def test_every_exercise_has_a_stub_on_a_page_and_is_graded() -> None:
    texts = "".join(page.read_text("utf-8") for page in LESSONS)
    stubs = re.findall(r"^def (\w+)\(.*\n    \.\.\.\n\ngrade\(\1\)$", texts, re.M)
    assert stubs == [*named("grade.EXERCISES")]
    assert len(stubs) == 12
