"""Figures of prunings and evaluations: zeros, perplexity and accuracy with standard errors."""

import re
from collections.abc import Iterator, Sequence
from math import nan
from typing import get_args

import numpy as np

from refimpl.allocation.request import Correction
from refimpl.bases.base import bases
from refimpl.bases.uniform import UNIFORM
from refimpl.pruning.record import COUNTS
from refimpl.report import figure as fig
from refimpl.report.inputs import EvaluationInput, MeasuredValue, PruningInput
from refimpl.show.table import Table, number

# Of each measure: what it was measured on, its title, and how to read it.
MEASURES = {
    "perplexity": ("text", "Perplexity", "Lower is better."),
    "acc": ("questions", "Accuracy", "The share of correct answers."),
}


def pruned_figure(ident: str, pruned: PruningInput) -> fig.ReportFigure:
    """The requested sparsity of every linear, and the zeros in its file, over the blocks."""
    title = f"Requested against achieved, {pruned.name}"
    rows = [(i, x) for i, block in enumerate(pruned.blocks) for x in block.linears]
    off = sum(abs(x.pruned - x.requested) for _, x in rows)
    exact = f"{off:,} more or fewer than requested" if off else "exactly as many as requested"
    asked, zeros = (
        np.array([getattr(x, key) / x.weights for _, x in rows]) for key in ("requested", "zeros")
    )
    columns = {
        "linear": [f"{i}.{x.name}" for i, x in rows],
        "allocated": [f"{x.sparsity:.4f}" for _, x in rows],
        **{key.replace("_", " "): [f"{getattr(x, key):,}" for _, x in rows] for key in COUNTS},
        "requested share": [f"{x:.4f}" for x in asked],
        "zeros share": [f"{x:.4f}" for x in zeros],
    }
    points = [[(i, x) for (i, _), x in zip(rows, y, strict=True)] for y in (asked, zeros)]
    said = f"Requested from {asked.min():.4f} to {asked.max():.4f}"
    said += f", zeros from {zeros.min():.4f} to {zeros.max():.4f}."
    return fig.ReportFigure(
        ident,
        title,
        "Zeros in the file as a share of each linear: a dot in a circle has as many as requested. "
        f"Pruned: {exact}.",
        (title, said),
        Table(columns, caption=title),
        fig.blocks_axis("block", len(pruned.blocks)),
        fig.spanning("fraction of a linear", [*asked, *zeros]),
        [
            fig.Points(points[0], "open one-hue", "circle", "requested"),
            fig.Points(points[1], "mark other-hue", "dot", "zeros"),
        ],
    )


def allocation_style(name: str) -> int:
    """The style of an allocation's line, whatever else is in the picture."""
    known = [*bases(), *get_args(Correction)]
    found = [known.index(word) for word in re.findall(r"\w+", name) if word in known]
    if len(found) > 1 and known[found[0]] == UNIFORM.name:  # what a correction alone stands for
        del found[0]
    return sum(found) if found else len(known)


def quality_figures(evaluated: Sequence[EvaluationInput]) -> Iterator[fig.ReportFigure]:
    """A measure against sparsity, a picture per text or questions that a pruned model was asked."""
    for measure, (kind, title, note) in MEASURES.items():
        sources = [getattr(one, kind) for one in evaluated]
        for i, source in enumerate(dict.fromkeys(filter(None, sources))):
            same = [
                (one.pruning, one.measures[measure])
                for one, other in zip(evaluated, sources, strict=True)
                if other == source
            ]
            rows = [(f"{x.method}, {x.allocation}", x.sparsity, value) for x, value in same if x]
            dense = next((value.value for x, value in same if x is None), nan)
            if rows:
                said = f"{note} A line per pruner and allocation. On {source[0]}."
                full = f"{title} against sparsity"
                yield over_sparsity(f"{measure}-{i}", full, said, title.lower(), rows, dense)


def over_sparsity(
    ident: str,
    title: str,
    note: str,
    measure: str,
    rows: Sequence[tuple[str, float, MeasuredValue]],
    dense: float,
) -> fig.ReportFigure:
    """A line per name in the rows (name, sparsity, value); the dense model's value is a level."""
    names = [*dict.fromkeys(name for name, *_ in rows)]
    rows = sorted(rows, key=lambda row: (names.index(row[0]), row[1]))
    values, errors = ([getattr(x, which) for *_, x in rows] for which in ("value", "error"))
    x, marks = fig.spanning("fraction pruned", [at for _, at, _ in rows]), []
    for name in names:
        part = [(at, value) for other, at, value in rows if other == name]
        points = [(at, value.value) for at, value in part]
        style = allocation_style(name)
        marks.append(fig.Line(name, points, [value.error for _, value in part], style=style))
    said = [f"{name} at {at:.4g}: {number(value.value)}" for name, at, value in rows]
    columns = {
        "line": [name for name, *_ in rows],
        "sparsity": [number(at) for _, at, _ in rows],
        measure: [number(value, ".6g") for value in values],
        "stderr": [number(error) for error in errors],
    }
    return fig.ReportFigure(
        ident,
        title,
        note,
        (title, f"{'; '.join(said)}."),
        Table(columns, caption=title),
        x,
        fig.spanning(measure, [*values, dense], None, errors=[*errors, 0]),
        [*marks, *fig.level(x, dense, "target", "dense")],
    )
