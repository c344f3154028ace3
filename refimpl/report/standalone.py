"""Pictures of a report in files of their own, each with the CSV files of its numbers."""

import csv
import io
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.report.figure import Section
from refimpl.report.svg import picture
from refimpl.storage.files import whole


def picture_styles() -> str:
    """The rules of pictures, with light colours in place of the page's names for them."""
    colours, rules = (
        files("refimpl.report").joinpath("pictures.css").read_text("utf-8").split("/* Pictures", 1)
    )
    light = dict(re.findall(r"(--[\w-]+): (#\w+)", colours.partition("@media")[0]))
    return "svg { font-family: sans-serif; }\n/* Pictures" + re.sub(
        r"var\((--[\w-]+)\)", lambda name: light[name[1]], rules
    )


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_figures(folder: Path, sections: list[Section]) -> int:
    """Write every picture and its tables to a new folder; the number of its files."""
    if folder.exists():
        raise RefimplError(
            f"--figures {folder} exists", "the path of a new folder", "choose another name"
        )
    contents, styles = {}, picture_styles()
    for figure in (figure for section in sections for figure in section.figures):
        contents[f"{figure.file_name}.svg"] = picture(figure, styles) + "\n"
        for suffix, table in zip(("", "-also"), figure.tables, strict=False):
            # No separators of thousands, so that programs read the numbers.
            rows = [[re.sub(r"(?<=\d),(?=\d{3})", "", x) for x in row] for row in table.rows]
            contents[f"{figure.file_name}{suffix}.csv"] = csv_text([table.columns, *rows])
    with whole(folder) as beside:
        beside.mkdir()
        for name, content in contents.items():
            (beside / name).write_text(content, "utf-8", "backslashreplace")  # as the page
    return len(contents)
