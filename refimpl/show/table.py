"""A table of texts in its forms for a terminal and in Markdown; and numbers as texts."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import floor, isfinite, isnan, log10
from textwrap import wrap

from refimpl.errors import printable
from refimpl.show.header import terminal_width

UNKNOWN = "-"
HEADING = 24  # characters on a line of a heading, if its words are shorter
LARGE = 5  # zeros that a rounded number may end with
MARKUP = re.compile(r"[\\`*\[\]<>|$&]")  # what begins markup, HTML or a formula in Markdown


@dataclass(frozen=True)
class Table:
    """Texts by their headings, a column each; the first `left` columns are aligned to the left."""

    columns: Mapping[str, Sequence[str]]
    left: int = 0

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The texts of each row."""
        return [*zip(*self.columns.values(), strict=True)]

    def lines(self) -> list[str]:
        """Lines without empty columns; what does not fit follows, again with the first column."""
        first, *others = [
            ("\n".join(wrap(name, HEADING, break_long_words=False)), cells)
            for name, cells in self.columns.items()
            if any(cells)
        ]
        tables: list[list[tuple[str, Sequence[str]]]] = [[first]]
        for column in others:
            line = aligned([*tables[-1], column], self.left)[0]
            if len(tables[-1]) > 1 and len(line) > terminal_width():
                tables.append([first])
            tables[-1].append(column)
        lines = [line.rstrip() for table in tables for line in ("", *aligned(table, self.left))]
        return lines[1:]

    def markdown(self) -> str:
        """The table in Markdown, in which a foreign text is no markup."""
        rule = ["---"] * self.left + ["---:"] * (len(self.columns) - self.left)
        head, *body = ([markdown_text(x) for x in row] for row in (self.columns, *self.rows))
        return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def markdown_text(text: str) -> str:
    """A foreign text on one line of Markdown, as text."""
    return MARKUP.sub(r"\\\g<0>", printable(text))


def aligned(columns: Iterable[tuple[str, Sequence[str]]], left: int = 0) -> list[str]:
    """Lines of a table; a text may have several."""
    texts = [[heading, *cells] for heading, cells in columns]
    widths = [max(len(line) for text in column for line in text.split("\n")) for column in texts]
    lines = list[str]()
    for row in zip(*texts, strict=True):
        for parts in zip_longest(*(text.split("\n") for text in row), fillvalue=""):
            cells = enumerate(zip(parts, widths, strict=True))
            lines.append("  ".join(f"{x:{'<' if i < left else '>'}{n}}" for i, (x, n) in cells))
    return lines


def number(value: float, form: str = ".4g") -> str:
    """A number as text, a dash if it is unknown."""
    return UNKNOWN if isnan(value) else format(value, form)


def measured(value: float, error: float, form: str = ".4g") -> str:
    """A number and its standard error, in the digits that the error deserves: its first two.

    Beyond five digits of the number, both are rounded: an error of few samples can be as small as
    what rounding changes. It is at least a unit of the last digit.
    """
    if not (isfinite(error) and error > 0):
        return number(value, form)
    decimals = min(1 - floor(log10(error)), 4 - floor(log10(abs(value) or error)))
    error = max(error, 10.0**-decimals)
    if decimals < -LARGE:
        return f"{value:.3g} ± {error:.2g}"
    shown = max(decimals, 0)
    return f"{round(value, decimals):,.{shown}f} ± {round(error, decimals):,.{shown}f}"
