"""Write the tables and figures of the study's pages from the files of cells beside this script.

`python docs/study/page.py` replaces the text between the marks of the pages.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from math import exp
from pathlib import Path

import measured_picture
import measured_table
import numpy as np
from effects import Row, agreement, change, expected_change, harm_of_blocks, nats, share
from grid import CORRECTIONS, LINE, NONE, REPORTED, SEEDS, Cell, best_two, first_half, second_half
from pictures import picture, scatter
from run import HERE, finished

BANDS = (-1.0, -0.25, 0.25, 0.5, 1.1)  # of agreement


def line(row: Row, none: Row | None, name: str, done: Mapping[str, Row]) -> str:
    """One line of a table."""
    like = agreement(row, done)
    texts = [f"{exp(nats(row, text)):.1f}" if text in row else "" for text in ("tuning", *REPORTED)]
    for i, text in enumerate(REPORTED):
        if none is not None and none is not row:
            mean, error = change(row, none, text)
            texts[i + 1] += f" ({mean:+.1f} ± {error:.1f} %)"
    columns = [
        "" if like is None else f"{like:+.2f}",
        *texts,
        share(row, "acc"),
        share(row, "acc_norm"),
    ]
    return f"| {name} | {' | '.join(columns)} |"


def table(cells: Iterable[Cell], done: Mapping[str, Row]) -> list[str]:
    """A table of cells that differ in the correction only; it omits cells that have not run."""
    head = ("correction", "agreement", "tuning", *REPORTED, "acc %", "acc_norm %")
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    for cell in cells:
        none = done.get(str(Cell(cell.model, cell.method, cell.sparsity, cell.base, NONE)))
        if (row := done.get(str(cell))) is not None:
            lines.append(line(row, none, str(cell.correction), done))
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


def brief(rows: Iterable[Row | None], none: Row) -> str:
    """Changes on the reported texts, in percent; the mean of several rows."""
    found = [[change(row, none, text)[0] for text in REPORTED] for row in rows if row is not None]
    return " / ".join(f"{x:+.1f}" for x in np.mean(found, axis=0)) if found else ""


def overview(done: Mapping[str, Row]) -> str:
    """A line per setting: what the best two, their negatives and shuffles, and the line change."""
    first = list(first_half())
    if any(str(cell) not in done for cell in first):
        return ""
    best = best_two({cell: nats(done[str(cell)], "tuning") for cell in first})
    head = ["setting", "none"]
    for correction in best:
        head += [str(correction), "its negative", "shuffled"]
    head.append(str(LINE))
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    settings = dict.fromkeys(replace(cell, correction=NONE) for cell in second_half(best))
    for where in settings:
        if (none := done.get(str(where))) is None:
            continue
        texts = [title(where), " / ".join(f"{exp(nats(none, text)):.1f}" for text in REPORTED)]
        for c in best:
            names = [[""], ["negative"], [f"shuffled {seed}" for seed in SEEDS]]
            for group in names:
                cells = [replace(where, correction=replace(c, change=name)) for name in group]
                texts.append(brief((done.get(str(cell)) for cell in cells), none))
        texts.append(brief([done.get(str(replace(where, correction=LINE)))], none))
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def bands(done: Mapping[str, Row]) -> str:
    """How many corrections helped, by their agreement with divergence; Wanda only."""
    found: list[tuple[float, float]] = []
    for row in done.values():
        cell = Cell(row["model"], row["method"], row["sparsity"], row["base"])
        like, none = agreement(row, done), done.get(str(cell))
        if like is not None and none is not None and row["method"] == "wanda":
            found.append((like, float(np.mean([change(row, none, t)[0] for t in REPORTED]))))
    lines = ["| agreement | corrections | helped | median change |", "| --- | ---: | ---: | ---: |"]
    for low, high in pairwise(BANDS):
        changes = np.array([x for like, x in found if low <= like < high])
        if len(changes):
            helped, middle = np.count_nonzero(changes < 0), np.median(changes)
            top = f"to below {high:g}" if high < 1 else "to 1"
            lines.append(f"| {low:g} {top} | {len(changes)} | {helped} | {middle:+.1f} % |")
    return "\n".join(lines)


def counts(done: Mapping[str, Row]) -> str:
    """The effect of Gaussian noise's corrections, and the largest difference on the questions."""
    noisy: dict[str, list[float]] = {text: [] for text in REPORTED}
    errors: list[float] = []
    for row in done.values():
        where = Cell(row["model"], row["method"], row["sparsity"], row["base"])
        none, c = done.get(str(where)), row["correction"]
        if none is None or row is none:
            continue
        if c["perturbed"] is not None and c["perturbed"]["kind"] == "gaussian":
            for text, changes in noisy.items():
                changes.append(change(row, none, text)[0])
        for rule in ("acc", "acc_norm") if "acc" in row else ():
            d = np.array([int(a) - int(b) for a, b in zip(row[rule], none[rule], strict=True)])
            error = d.std(ddof=1) / np.sqrt(len(d))
            errors.append(abs(d.mean()) / error if error else 0.0)
    lines = ["| Gaussian noise, on | variants | worse | range |", "| --- | ---: | ---: | ---: |"]
    for text, changes in noisy.items():
        if changes:
            x, span = np.array(changes), f"{min(changes):+.1f} to {max(changes):+.1f} %"
            lines.append(f"| {text} | {len(x)} | {np.count_nonzero(x > 0)} | {span} |")
    asked = f"{len(errors)} paired differences of acc or acc_norm"
    most = f"{max(errors, default=0.0):.1f} standard errors."
    return "\n".join([*lines, "", f"The largest of {asked} is {most}"])


def harms(done: Mapping[str, Row], rows: list[Row]) -> str:
    """The harm of every block, and the change that it predicts for every correction."""
    if not rows:
        return ""
    harm = harm_of_blocks(rows)
    none = done[str(Cell())]
    lines = [
        "| correction | correlation with harm | expected change | change on tuning |",
        "| --- | ---: | ---: | ---: |",
    ]
    for correction in (LINE, *CORRECTIONS):
        row = done.get(str(Cell(correction=correction)))
        if row is not None:
            like = np.corrcoef(row["u"], harm)[0, 1]
            expected, (found, error) = expected_change(row, none, harm), change(row, none, "tuning")
            lines.append(
                f"| {correction} | {like:+.2f} | {expected:+.1f} % | {found:+.1f} ± {error:.1f} % |"
            )
    each = ", ".join(f"{x:.2f}" for x in harm)
    return "\n".join([f"Harm by block (nats per token and unit of sparsity): {each}.", "", *lines])


def replaced(page: Path, parts: Mapping[str, str]) -> None:
    """Write the parts between the marks of a page."""
    text = page.read_text("utf-8")
    for mark, made in parts.items():
        marked = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = marked.sub(lambda m, made=made: f"{m[1]}\n{made}\n\n{m[2]}", text)
    page.write_text(text, "utf-8")


def write(docs: Path) -> None:
    """Replace the tables of the study's pages, and draw their pictures, from the cells."""
    folder = docs / "study"
    done, harm = finished(folder / "cells.jsonl"), folder / "harm.jsonl"
    rows = [json.loads(line) for line in harm.read_text().splitlines()] if harm.exists() else []
    parts = {
        "counts": counts(done),
        "overview": overview(done),
        "bands": bands(done),
        "tables": tables(done),
        "harm": harms(done, rows),
    }
    replaced(folder / "fixed-size.md", parts)
    (folder / "effects.svg").write_text(picture(done), "utf-8")
    (folder / "agreement.svg").write_text(scatter(done), "utf-8")
    strength = finished(folder / "measured.jsonl")
    replaced(docs / "study.md", {"headline": measured_table.headline(strength)})
    parts = {
        "seeds": measured_table.seeds(strength),
        "probes": measured_table.probes(strength),
        "predicted": measured_table.predictions(strength),
        "cost": measured_table.cost(strength),
        "searched": measured_table.searched(finished(folder / "search.jsonl"), strength),
        "cells": measured_table.every_cell(strength),
    }
    replaced(folder / "measured.md", parts)
    (folder / "measured.svg").write_text(measured_picture.picture(strength), "utf-8")


if __name__ == "__main__":
    write(HERE.parent)
