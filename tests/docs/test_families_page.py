"""The table of families says what the code does."""

from pathlib import Path

import families_page
import pytest
from families_page import PAGE, lists, table
from gates import GATES, UNRECORDED
from regions import regions

Row = dict[str, str]


def rows(text: str) -> dict[str, Row]:
    """A table's rows by their first cell."""
    head, _, *body = (
        [c.strip() for c in line.strip("| ").split(" | ")] for line in text.split("\n") if line
    )
    return {cells[0]: dict(zip(head[1:], cells[1:], strict=True)) for cells in body}


def test_the_table_of_families_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the graphs, which tests/onnx/test_export.py runs for every fixture."""
    monkeypatch.setattr(families_page, "runs_as_graph", lambda case, _: case not in UNRECORDED)
    written, made = rows(regions(PAGE.read_text("utf-8"))["families"]), rows(table())
    for dtype, gate in GATES.items():
        for family, row in made.items():  # other processors round otherwise, but not much
            stated, measured = float(written[family].pop(dtype)), float(row.pop(dtype))
            assert measured / 10 <= stated <= min(10 * measured, gate), (family, dtype)
    assert written == made, "run PYTHONPATH=.:tests python tests/tools/families_page.py"


@pytest.mark.parametrize(("page", "texts"), lists().items())
def test_the_lists_of_families_are_those_of_the_code(page: Path, texts: dict[str, str]) -> None:
    written = regions(page.read_text("utf-8"))
    assert written == written | texts, "run PYTHONPATH=.:tests python tests/tools/families_page.py"
    assert texts.keys() <= written.keys()
