"""Texts for a terminal: lines, labels with their facts, numbers; and tables, also in Markdown."""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import floor, isfinite, isnan, log10
from textwrap import wrap

from refimpl.errors import printable
from refimpl.loading.samples import TokenFacts

NARROWEST, WIDEST, LABEL = (
    40,
    100,
    12,
)  # columns of a line, and of the label before its facts


def fits_terminal() -> bool:
    """Whether stdout has a width: that of a terminal, or COLUMNS."""
    return "COLUMNS" in os.environ or sys.stdout.isatty()


def terminal_width() -> int:
    """Columns of a line: what COLUMNS or the terminal says, at most `WIDEST`, at least 40."""
    if fits_terminal():
        return max(
            NARROWEST, min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)
        )
    return WIDEST


def fitting(line: str) -> list[str]:
    """Pieces of a line that fit the terminal, with whole words; a command stays on one line."""
    if not fits_terminal() or re.match(r"\w+: +refimpl ", line):
        return [line]
    width = terminal_width()
    return wrap(
        line,
        width,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def counted(number: int, thing: str) -> str:
    """A number of things: "1 block", "2 blocks"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def joined(lines: Iterable[str]) -> str:
    """The text of some lines; what is foreign in a line cannot make another one."""
    return "\n".join(map(printable, lines)) + "\n"


def wrapped(facts: Mapping[str, Sequence[str]]) -> list[str]:
    """Labels and their facts on lines that fit the terminal, broken between facts."""
    lines, width, glue = list[str](), terminal_width() - LABEL, "\N{NO-BREAK SPACE}"
    for label, texts in facts.items():
        shown = map(printable, texts)
        glued = ", ".join(x.replace(" ", glue) if len(x) < width else x for x in shown)
        broken = wrap(glued, width, break_long_words=False, break_on_hyphens=False)
        for i, line in enumerate(broken):
            lines.append(f"{'' if i else label:<{LABEL}}{line.replace(glue, ' ')}")
    return lines


def page_text(*parts: Mapping[str, Sequence[str]] | Iterable[str]) -> str:
    """Parts with an empty line between them: labels and facts, or lines, which fit the terminal."""
    texts = [wrapped(part) if isinstance(part, Mapping) else [*part] for part in parts]
    return joined(line for text in texts if text for line in ("", *text)).removeprefix(
        "\n"
    )


def model_facts(name: str, family: str, num_blocks: int) -> list[str]:
    """Which model it is."""
    return [name, f"family {family}", counted(num_blocks, "block")]


def token_facts(tokens: TokenFacts) -> list[str]:
    """Where tokens came from."""
    shape = f"{tokens.samples} x {tokens.seq_len}"
    return [shape, *tokens.source.split(", "), f"sha256 {tokens.sha256[:12]}"]


def allocation_facts(
    sparsity: float, base: str, options: Mapping[str, object], correct: str | None
) -> list[str]:
    """What an allocation was made for."""
    words = [
        f"{x} {y:g}" if isinstance(y, float) else f"{x} {y}" for x, y in options.items()
    ]
    return [
        f"sparsity {sparsity:g}",
        f"base {base}",
        *words,
        f"correction {correct or 'none'}",
    ]


MARKUP = re.compile(
    r"[\\`*\[\]<>|$&]"
)  # what begins markup, HTML or a formula in Markdown


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
            ("\n".join(wrap(name, 24, break_long_words=False)), cells)
            for name, cells in self.columns.items()
            if any(cells)
        ]
        tables: list[list[tuple[str, Sequence[str]]]] = [[first]]
        for column in others:
            line = aligned([*tables[-1], column], self.left)[0]
            if len(tables[-1]) > 1 and len(line) > terminal_width():
                tables.append([first])
            tables[-1].append(column)
        lines = [
            line.rstrip()
            for table in tables
            for line in ("", *aligned(table, self.left))
        ]
        return lines[1:]

    def markdown(self) -> str:
        """The table in Markdown, in which a foreign text is no markup."""
        rule = ["---"] * self.left + ["---:"] * (len(self.columns) - self.left)
        rows = (self.columns, *self.rows)
        head, *body = (
            [MARKUP.sub(r"\\\g<0>", printable(x)) for x in row] for row in rows
        )
        return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def aligned(columns: Iterable[tuple[str, Sequence[str]]], left: int = 0) -> list[str]:
    """Lines of a table; a text may have several."""
    texts = [[heading, *cells] for heading, cells in columns]
    widths = [
        max(len(line) for text in column for line in text.split("\n"))
        for column in texts
    ]
    lines = list[str]()
    for row in zip(*texts, strict=True):
        for parts in zip_longest(*(text.split("\n") for text in row), fillvalue=""):
            cells = enumerate(zip(parts, widths, strict=True))
            lines.append(
                "  ".join(f"{x:{'<' if i < left else '>'}{n}}" for i, (x, n) in cells)
            )
    return lines


def number(value: float, form: str = ".4g") -> str:
    """A number as text, a dash if it is unknown."""
    return "-" if isnan(value) else format(value, form)


def with_error(value: float, error: float, form: str = ".4g") -> str:
    """A number and its standard error, in the error's first two digits, at most five of both."""
    if not (isfinite(error) and error > 0):
        return number(value, form)
    decimals = min(1 - floor(log10(error)), 4 - floor(log10(abs(value) or error)))
    error = max(error, 10.0**-decimals)
    if decimals < -5:  # zeros that it would end with
        return f"{value:.3g} ± {error:.2g}"
    shown = max(decimals, 0)
    return f"{round(value, decimals):,.{shown}f} ± {round(error, decimals):,.{shown}f}"
