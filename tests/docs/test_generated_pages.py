"""What programs write on pages is what they write now."""

from pathlib import Path

import pages
import pytest
from gates import GATES

Row = dict[str, str]
AGAIN = "run python tests/tools/pages.py"


@pytest.mark.parametrize("path", made := pages.pages(), ids=lambda path: path.name)
def test_a_page_is_what_the_programs_write(path: Path) -> None:
    assert path.read_text("utf-8") == made[path], AGAIN


def rows(text: str) -> dict[str, Row]:
    """A table's rows by their first cell."""
    head, _, *body = (
        [c.strip() for c in line.strip("| ").split(" | ")]
        for line in text.split("\n")
        if line
    )
    return {cells[0]: dict(zip(head[1:], cells[1:], strict=True)) for cells in body}


def test_the_table_of_families_is_that_of_the_code() -> None:
    page = pages.regions(pages.FAMILIES_PAGE.read_text("utf-8"))["families"]
    written, measured_now = rows(page), rows(pages.families_table())
    for dtype, gate in GATES.items():
        for (
            family,
            row,
        ) in measured_now.items():  # other processors round otherwise, but not much
            stated, measured = float(written[family].pop(dtype)), float(row.pop(dtype))
            assert measured / 10 <= stated <= min(10 * measured, gate), (family, dtype)
    assert written == measured_now, f"{AGAIN} families"
