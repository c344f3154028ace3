"""Write the tables of `docs/study.md` and its picture from `cells.jsonl`.

`python docs/study/page.py` replaces what stands between the marks of the page.
"""

import re
from collections.abc import Iterator, Mapping
from math import exp, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from grid import (
    CORRECTIONS,
    LINE,
    NONE,
    Cell,
    Correction,
    best_two,
    controls,
    first_half,
    second_half,
)
from run import HERE, REPORTED, finished, nats

Row = Mapping[str, Any]
COLORS = {"speech": "#1f5fa8", "novel": "#b2491f"}  # told apart by shape, too


def change(row: Row, none: Row, text: str) -> tuple[float, float]:
    """Change of the perplexity against no correction in percent, and its standard error.

    ``100 (exp(d) - 1)``, d the mean over windows of the difference in nats per token.
    """
    tokens = np.array(row[f"{text}_tokens"])
    d = (np.array(row[text]) - np.array(none[text])) / tokens
    error = float(d.std(ddof=1)) / sqrt(len(d))
    return 100 * (exp(d.mean()) - 1), 100 * exp(d.mean()) * error


def share(row: Row, rule: str) -> str:
    """Percent of questions answered rightly, with its standard error."""
    right = np.array([int(x) for x in row[rule]])
    return f"{100 * right.mean():.0f} ± {100 * right.std(ddof=1) / sqrt(len(right)):.0f}"


def line(row: Row, none: Row | None, name: str) -> str:
    """One line of a table."""
    texts = [f"{exp(nats(row, text)):.1f}" if text in row else "" for text in ("tuning", *REPORTED)]
    for i, text in enumerate(REPORTED):
        if none is not None and none is not row:
            mean, error = change(row, none, text)
            texts[i + 1] += f" ({mean:+.1f} ± {error:.1f} %)"
    return f"| {name} | {' | '.join(texts)} | {share(row, 'acc')} | {share(row, 'acc_norm')} |"


def table(cells: Iterator[Cell] | list[Cell], done: Mapping[str, Row]) -> list[str]:
    """A table of cells that share everything but the correction; cells not run are left out."""
    head = ("correction", "tuning", *REPORTED, "acc %", "acc_norm %")
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    for cell in cells:
        none = done.get(str(Cell(cell.model, cell.method, cell.sparsity, cell.base, NONE)))
        if (row := done.get(str(cell))) is not None:
            lines.append(line(row, none, str(cell.correction)))
    return lines


def title(cell: Cell) -> str:
    """What the cells of a table share."""
    return f"{cell.model}, {cell.method}, {cell.sparsity:.0%}, base {cell.base}"


def tables(done: Mapping[str, Row]) -> str:
    """All tables that have cells."""
    first = list(first_half())
    order = (NONE, LINE, *CORRECTIONS)
    lines: list[str] = []
    for base in ("uniform", "owl"):
        group = [Cell(base=base, correction=c) for c in order]
        lines += [f"### {title(group[0])}", "", *table(group, done), ""]
    if all(str(cell) in done for cell in first):
        best = best_two({cell: nats(done[str(cell)], "tuning") for cell in first})
        lines += [f"The best two by the rule: {best[0]}; {best[1]}.", ""]
        groups: dict[str, list[Cell]] = {}
        for cell in second_half(best):
            groups.setdefault(title(cell), []).append(cell)
        for name, group in groups.items():
            if group[0].correction != NONE:  # the first half has the others
                shared = [NONE, LINE, *best]
                group = [
                    Cell(c.model, c.method, c.sparsity, c.base, s)
                    for c in group[:1]
                    for s in shared
                ] + group
            if sum(str(cell) in done for cell in group) > 1:
                lines += [f"### {name}: the best two and the controls", "", *table(group, done), ""]
    return "\n".join(lines).strip()


def picture(done: Mapping[str, Row]) -> str:
    """Change of the perplexity by every correction on SmolLM2, uniform base, 60 %."""
    none = done[str(Cell(correction=NONE))]
    shown: list[Correction] = [LINE, *CORRECTIONS]
    if all(str(cell) in done for cell in first_half()):
        shown += controls(best_two({c: nats(done[str(c)], "tuning") for c in first_half()}))
    rows = [c for c in shown if str(Cell(correction=c)) in done]
    changes = {
        (c, text): change(done[str(Cell(correction=c))], none, text)
        for c in rows
        for text in REPORTED
    }
    low = min(0.0, *(m - 2 * e for m, e in changes.values()))
    high = max(0.0, *(m + 2 * e for m, e in changes.values()))
    left, width, step, top = 420, 420, 18, 46
    height = top + step * len(rows) + 16

    def x(value: float) -> float:
        return left + width * (value - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" '
        'font-family="sans-serif" font-size="11" role="img">',
        "<title>Change of the perplexity by each correction, SmolLM2-135M, Wanda, 60 %</title>",
        "<desc>The numbers are in the tables of the page.</desc>",
        f'<rect width="{left + width + 20}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="14" fill="black">change of perplexity, %, with two standard errors: '
        f'<tspan fill="{COLORS["speech"]}">&#9679; speech</tspan> '
        f'<tspan fill="{COLORS["novel"]}">&#9632; novel</tspan></text>',
    ]
    ticks = np.arange(np.ceil(low / 5) * 5, high + 1e-9, 5)
    for tick in ticks:
        color = "black" if tick == 0 else "#cccccc"
        parts.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top - 8}" y2="{height - 8}" '
            f'stroke="{color}"/><text x="{x(tick):.1f}" y="{top - 14}" text-anchor="middle" '
            f'fill="black">{tick:+.0f}</text>'
        )
    for i, c in enumerate(rows):
        y = top + step * i + step / 2
        parts.append(
            f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end" fill="black">{c}</text>'
        )
        for text, shift in (("speech", -3), ("novel", 3)):
            mean, error = changes[c, text]
            parts.append(
                f'<line x1="{x(mean - 2 * error):.1f}" x2="{x(mean + 2 * error):.1f}" '
                f'y1="{y + shift}" y2="{y + shift}" stroke="{COLORS[text]}" stroke-width="1.5"/>'
            )
            at = x(mean)
            parts.append(
                f'<circle cx="{at:.1f}" cy="{y + shift}" r="3" fill="{COLORS[text]}"/>'
                if text == "speech"
                else f'<rect x="{at - 2.5:.1f}" y="{y + shift - 2.5}" width="5" height="5" '
                f'fill="{COLORS[text]}"/>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(page: Path, cells: Path) -> None:
    """Replace the tables of the page, and draw the picture beside the cells."""
    done = finished(cells)
    marked = re.compile(r"(<!-- tables -->\n).*?(<!-- end -->)", re.DOTALL)
    text, made = page.read_text("utf-8"), tables(done)
    page.write_text(marked.sub(lambda m: f"{m[1]}\n{made}\n\n{m[2]}", text), "utf-8")
    (cells.parent / "effects.svg").write_text(picture(done), "utf-8")


if __name__ == "__main__":
    write(HERE.parent / "study.md", HERE / "cells.jsonl")
