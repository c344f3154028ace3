"""The pieces of a report's page: tables, figures, lists of facts; everything escaped."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from refimpl.report.scales import HEIGHT
from refimpl.report.svg import picture

SHOWN = 10  # values of a list of facts


@dataclass(frozen=True)
class Table:
    """Numbers as text.

    Args:
        columns: Headings; that of the names of the rows first.
        rows: A text per column in each; "" for an empty cell.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class ReportFigure:
    """A picture, how to read it, and its numbers.

    Args:
        ident: Its id, unique in the page.
        note: How to read it.
        alternative: Title and description of the picture, as text.
        parts: SVG elements of the picture.
        also: A second table, of the numbers from which the first one is computed.
        height: Height of the picture, in its units.
        large: Whether it is shown larger than others if there is room.
        settings: How its numbers were made, for a picture in a file of its own.
    """

    ident: str
    title: str
    note: str
    alternative: tuple[str, str]
    parts: Sequence[str]
    table: Table
    also: Table | None = None
    height: float = HEIGHT
    large: bool = False
    settings: str = ""

    @property
    def file_name(self) -> str:
        """The name of its files, without an ending."""
        return f"{self.ident}-{re.sub('[^a-z0-9]+', '-', self.title.lower()).strip('-')}"

    def svg(self, alone: bool = False) -> str:
        """The picture: in the page, or alone with its heading."""
        heading = self.title, self.settings
        return picture(self.ident, *self.alternative, self.parts, self.height, heading, alone)

    @property
    def tables(self) -> tuple[Table, ...]:
        """Its numbers."""
        return (self.table,) if self.also is None else (self.table, self.also)


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, title, pictures, and HTML after them."""

    ident: str
    title: str
    figures: Sequence[ReportFigure] = ()
    html: str = ""
    css: str = "grid"


def table_html(table: Table, ident: str) -> str:
    """A table that scrolls sideways; with scripts, readers can sort and filter it."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    note = f"<p>{escape(table.note)}</p>\n" if table.note else ""
    return (
        f'{note}<div class="scroll" role="group" tabindex="0" '
        f'aria-label="{escape(table.caption)}">\n'
        f'<table id="{ident}-n">\n<caption>{escape(table.caption)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


def figure_html(figure: ReportFigure) -> str:
    """A card: title, how to read it, the picture, and its numbers in a part to open."""
    css = "card large" if figure.large else "card"
    idents = (figure.ident, f"{figure.ident}-also")
    numbers = "\n".join(map(table_html, figure.tables, idents))
    return (
        f'<figure class="{css}" id="{figure.ident}" data-file="{escape(figure.file_name)}">\n'
        f"<figcaption><h3>{escape(figure.title)}</h3>\n<p>{escape(figure.note)}</p></figcaption>\n"
        f"{figure.svg()}\n<details><summary>The numbers</summary>\n{numbers}\n</details>\n</figure>"
    )


def grid_html(figures: Iterable[ReportFigure], css: str = "grid") -> str:
    """Cards side by side, as many as fit."""
    return f'<div class="{css}">\n' + "\n".join(map(figure_html, figures)) + "\n</div>\n"


def facts_html(facts: Mapping[str, Any], css: str = "") -> str:
    """A list of names and values, without those that are None; lists and objects in words."""
    rows = "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(words(value))}</dd></div>"
        for name, value in facts.items()
        if value is not None
    )
    opening = f'<dl class="{css}">' if css else "<dl>"
    return f"{opening}\n{rows}\n</dl>"


def words(value: Any) -> str:
    """A value from JSON in words: `{"m": 5.0}` is "m 5"."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.6g}"
        case Mapping():
            return ", ".join(f"{key} {words(inner)}" for key, inner in value.items()) or "none"
        case list() | tuple():
            more = [f"and {len(value) - SHOWN} more"] if len(value) > SHOWN else []
            return ", ".join([*map(words, value[:SHOWN]), *more]) or "none"
    return str(value)
