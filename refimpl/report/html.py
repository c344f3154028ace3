"""The pieces of a report's page: tables, figures, lists of facts; everything escaped."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite
from typing import Any

from refimpl.report.scales import HEIGHT
from refimpl.report.svg import picture

UNKNOWN = "-"
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

    @property
    def svg(self) -> str:
        """The picture."""
        return picture(self.ident, *self.alternative, self.parts, self.height)


def number(value: float, form: str = ".4g") -> str:
    """A number as text, a dash if it is unknown."""
    return format(value, form) if isfinite(value) else UNKNOWN


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
        f'{note}<div class="scroll" role="region" tabindex="0" '
        f'aria-label="{escape(table.caption)}">\n'
        f'<table id="{ident}-n">\n<caption>{escape(table.caption)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


def figure_html(figure: ReportFigure) -> str:
    """A card: title, how to read it, the picture, and its numbers in a part to open."""
    css = "card large" if figure.large else "card"
    tables = [table_html(figure.table, figure.ident)]
    if figure.also is not None:
        tables.append(table_html(figure.also, f"{figure.ident}-also"))
    numbers = "\n".join(tables)
    return (
        f'<figure class="{css}" id="{figure.ident}">\n<figcaption><h3>{escape(figure.title)}</h3>\n'
        f"<p>{escape(figure.note)}</p></figcaption>\n{figure.svg}\n"
        f"<details><summary>The numbers</summary>\n{numbers}\n</details>\n</figure>"
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
