"""The pieces of a report's page: tables, figures, lists of facts; everything escaped."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from refimpl.report.figure import ReportFigure, Table
from refimpl.report.svg import picture

SHOWN = 10  # values of a list of facts


def table_html(table: Table, ident: str) -> str:
    """A table that scrolls sideways; its heading and its row names stay in view."""
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
    details = f"<details><summary>The numbers</summary>\n{numbers}\n</details>"
    return (
        f'<figure class="{css}" id="{figure.ident}">\n'
        f"<figcaption><h3>{escape(figure.title)}</h3>\n<p>{escape(figure.note)}</p></figcaption>\n"
        f"{picture(figure)}\n{details}\n</figure>"
    )


def grid_html(cards: Iterable[str], css: str) -> str:
    """Cards side by side, as many as fit; nothing if there is none."""
    inner = "\n".join(cards)
    return f'<div class="{css}">\n{inner}\n</div>\n' if inner else ""


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
