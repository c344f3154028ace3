"""Figures of the experiment: drift over depth, maps of all pairs, coefficients, the sweep."""

from collections.abc import Mapping
from dataclasses import replace
from math import isnan, nan

import numpy as np

from refimpl.allocation.scores import Absorption, Scores
from refimpl.model.ops import Array
from refimpl.report import figure as fig
from refimpl.show.findings import findings, sinks
from refimpl.show.header import counted
from refimpl.show.numbers import number

FEW = 8  # up to so many blocks, drift is in a small picture
SHAPES = {"absorbs": "down", "amplifies": "up", "neither": "circle"}  # by the side of 1
COEFFICIENT = "absorption coefficient r"
DRIFTS = "Mean relative drift after each block"


def drift_figure(ident: str, absorption: Absorption) -> fig.ReportFigure:
    """The drift of every perturbed block over depth."""
    drift, count = absorption.drift, len(absorption.drift)
    said = f"{count} lines, one per perturbed block, from that block to the last. {_range(drift)}"
    return fig.ReportFigure(
        ident,
        "Drift over depth",
        "Each line begins at the block whose output is perturbed. A falling line: later blocks "
        "absorb the perturbation; a rising one: they amplify it. At the right: the block.",
        (f"Drift of every perturbed block over depth, {perturbation_words(absorption)}", said),
        [_matrix(drift, DRIFTS, ".4g")],
        fig.blocks_axis("after block", count),
        fig.spanning("relative drift", drift.ravel(), log=True),
        [
            fig.Line(str(i), [(k, row[k]) for k in range(i, count)], i, i + 1, every=False)
            for i, row in enumerate(drift)
        ],
        large=count > FEW,
    )


def drift_map(ident: str, absorption: Absorption) -> fig.ReportFigure:
    """The drift of all pairs of a perturbed block and a depth."""
    words = (
        "Drift of all pairs",
        "The same numbers as a map: along a row, one perturbation travels through the blocks.",
    )
    about = f"Drift for every perturbed block and depth, {perturbation_words(absorption)}"
    tables = [_matrix(absorption.drift, DRIFTS, ".4g")]
    return _map(ident, words, about, tables, fig.Cells(absorption.drift))


def alignment_map(ident: str, absorption: Absorption) -> fig.ReportFigure:
    """The angle to the clean state of all pairs of a perturbed block and a depth."""
    cosines = absorption.alignment
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    words = (
        "Alignment of all pairs, as an angle",
        "How far the state's direction turns: arccos of the mean alignment, in degrees.",
    )
    about = f"Angle for every perturbed block and depth, {perturbation_words(absorption)}"
    tables = [
        _matrix(angles, "Angle to the clean state after each block, in degrees", ".4g"),
        _matrix(cosines, "Mean alignment after each block: the cosine of that angle", ".7f"),
    ]
    return _map(ident, words, about, tables, fig.Cells(angles, "°"))


def absorption_figure(ident: str, scores: Scores, absorption: Absorption) -> fig.ReportFigure:
    """Absorption coefficients with their standard errors, and their side of 1."""
    r, error, count = absorption.coefficient, absorption.stderr, len(absorption.coefficient)
    x = fig.blocks_axis("perturbed block", count)
    sides = [_side(value) for value in r]
    points = {side: [(i, r[i]) for i in range(count) if sides[i] == side] for side in SHAPES}
    columns = {
        "block": map(str, range(count)),
        "r": [number(x, ".4f") for x in r],
        "stderr": [number(x, ".4f") for x in error],
        "log r": [number(x, ".4f") for x in absorption.logarithm],
        "side": sides,
        "arrival": map(number, absorption.arrival),
        "divergence": None if (found := absorption.divergence) is None else map(number, found),
        "tokens left out": [f"{n:,}" for n in absorption.left_out],
        "sinks excluded": [f"{n:,}" for n in scores.sinks],
    }
    quiet = scores.without_sinks if absorption is scores.sweep[0] else None
    both: list[fig.Mark] = []
    if quiet is not None and sinks(scores):
        columns["r without noise on sinks"] = [number(x, ".4f") for x in quiet.coefficient]
        columns["its stderr"] = [number(x, ".4f") for x in quiet.stderr]
        name = "without noise on sinks"
        both = [fig.Points([*enumerate(quiet.coefficient)], "open one-hue", "diamond", name)]
    drawn = [*r, *(() if not both or quiet is None else quiet.coefficient)]
    off = [*error, *np.zeros(len(drawn) - count)]
    y = fig.spanning(COEFFICIENT, [0.93, 1.07, *drawn], True, 0.12, [0, 0, *off])
    alone = not np.isfinite(error).any()
    more = "; none here, because it needs two sequences or more" if alone else ""
    return fig.ReportFigure(
        ident,
        "Absorption coefficients",
        "The share of a perturbation that is left after the last block. Above 1 the later blocks "
        f"amplify it, below 1 they absorb it. Bars: one standard error over sequences{more}.",
        (
            f"Absorption coefficient of every block, {perturbation_words(absorption)}",
            " ".join(
                [*findings(absorption, scores.perturbed_samples), *(sinks(scores) * bool(both))]
            ),
        ),
        [fig.Table.of("Absorption coefficient r of every block", columns)],
        x,
        y,
        [
            *fig.level(x, 1, "one"),
            *(fig.Bars([(i, 1, r[i])], f"stem {sides[i]}") for i in range(count)),
            fig.Bars(
                [(i, r[i] - e, r[i] + e) for i, e in enumerate(error) if e > 0], "whisker", True
            ),
            *(fig.Points(points[side], f"dot {side}", shape) for side, shape in SHAPES.items()),
            *(
                fig.Text((i, 1), "?", "name", "middle", (0, -6))
                for i in range(count)
                if isnan(r[i])
            ),
            fig.Text((x.high, y.high), "▲ amplifies", "side amplifies-text", "end", (-2, 12)),
            fig.Text((x.high, y.low), "▼ absorbs", "side absorbs-text", "end", (-2, -7)),
            *both,
            fig.Points([*enumerate(r)], row=0),
        ],
    )


def sweep_figure(ident: str, scores: Scores) -> fig.ReportFigure:
    """Absorption coefficients over eta, a line per block."""
    sweep = sorted((nan if x.eta is None else x.eta, x.coefficient.tolist()) for x in scores.sweep)
    etas, lines = [eta for eta, _ in sweep], [*zip(*(r for _, r in sweep), strict=True)]
    x = replace(fig.spanning("eta", etas, True, 0.05), texts={eta: f"{eta:g}" for eta in etas})
    above = [f"{number(eta)}: {sum(value > 1 for value in r)}" for eta, r in sweep]
    columns = {"block": [str(i) for i in range(len(lines))]}
    columns |= {f"eta {eta:g}": [number(value, ".4f") for value in r] for eta, r in sweep}
    return fig.ReportFigure(
        ident,
        "The sweep over eta",
        "The same experiment with perturbations of other sizes, a line per block. Below the line "
        "at 1 the later blocks absorb the perturbation.",
        (
            "Absorption coefficient of every block over eta",
            f"{len(lines)} lines. Blocks that amplify, by eta: {'; '.join(above)}.",
        ),
        [fig.Table.of("Absorption coefficient r at each eta", columns)],
        x,
        fig.spanning(COEFFICIENT, [1.0, *np.ravel(lines)], log=True),
        [
            fig.level(x, 1, "one")[0],
            *(fig.Line(str(i), [*zip(etas, r, strict=True)], i, 1) for i, r in enumerate(lines)),
        ],
    )


def lines_figure(
    ident: str, title: str, note: str, rows: Mapping[str, Array], target: float | None = None
) -> fig.ReportFigure:
    """Sparsities and their target, or without one, coefficients of every block; a line per row."""
    name, at = (COEFFICIENT, 1.0) if target is None else ("fraction pruned", target)
    count = max(map(len, rows.values()))
    x = fig.blocks_axis("block", count)
    table = [
        [whose, *(number(v, ".4f") for v in row), *[""] * (count - len(row))]
        for whose, row in rows.items()
    ]
    heads = ["line", *(f"block {i}" for i in range(count))]
    lines = [fig.Line(name, [*enumerate(r)], j, 1) for j, (name, r) in enumerate(rows.items())]
    return fig.ReportFigure(
        ident,
        title,
        note,
        (title, f"{len(rows)} lines over {counted(count, 'block')}: {'; '.join(rows)}."),
        [fig.Table(f"{name} of every block".capitalize(), heads, table)],
        x,
        fig.spanning(name, [at, *(v for row in rows.values() for v in row)], target is None),
        [*fig.level(x, at, "one"), *lines],
        below=True,
    )


def perturbation_words(absorption: Absorption) -> str:
    """How a state was perturbed, in a few words."""
    return "the pruning perturbation" if absorption.eta is None else f"eta {absorption.eta:g}"


def _map(
    ident: str, words: tuple[str, str], about: str, tables: list[fig.Table], cells: fig.Cells
) -> fig.ReportFigure:
    """A map of all pairs of a perturbed block and a depth; words are its title and its note."""
    x = fig.blocks_axis("after block", len(cells.values))
    y = replace(x, name="perturbed block", low=x.high, high=x.low)
    shown = _range(cells.values, cells.unit)
    said = f"A triangle: a row per perturbed block, a column per depth. {shown}"
    return fig.ReportFigure(ident, *words, (about, said), tables, x, y, [cells], grid="")


def _range(values: Array, unit: str = "") -> str:
    """The least and the greatest of all pairs, in a sentence."""
    if np.isnan(values).all():
        return "No value is known."
    ends = []
    for word, at in {"Least": np.nanargmin(values), "greatest": np.nanargmax(values)}.items():
        i, k = divmod(int(at), values.shape[1])
        ends.append(f"{word} {values[i, k]:.3g}{unit} (block {i} perturbed, after block {k})")
    return ", ".join(ends) + "."


def _side(r: float) -> str:
    """The side of 1 that a coefficient is on."""
    if isnan(r):
        return "unknown"
    return "amplifies" if r > 1 else "absorbs" if r < 1 else "neither"


def _matrix(values: Array, caption: str, form: str) -> fig.Table:
    """A table with a row per perturbed block and a column per depth."""
    count = len(values)
    return fig.Table(
        caption,
        ["perturbed", *(f"after {k}" for k in range(count))],
        [
            [str(i), *("" if k < i else number(values[i, k], form) for k in range(count))]
            for i in range(count)
        ],
        "A row is a perturbed block, a column the block after which the state is measured.",
    )
