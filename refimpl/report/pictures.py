"""Figures of scores, prunings and evaluations: costs, drift, coefficients, zeros, quality."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isnan, nan
from typing import get_args

import numpy as np

from refimpl.allocation.request import Correction
from refimpl.allocation.scores import Absorption, Scores
from refimpl.bases.base import bases
from refimpl.bases.uniform import UNIFORM
from refimpl.method.equal_marginals import growth
from refimpl.pruning.record import COUNTS
from refimpl.report import figure as fig
from refimpl.report.inputs import EvaluationInput, MeasuredValue, PruningInput, ScoresInput
from refimpl.show.blocks import costs, findings, sinks
from refimpl.show.table import Table, number

SHAPES = {"absorbs": "down", "amplifies": "up", "neither": "circle"}  # by the side of 1
COEFFICIENT = "absorption coefficient r"
KL = "divergence, nats"


def cost_figures(ident: str, scored: ScoresInput) -> list[fig.ReportFigure]:
    """The divergence of every block with its errors, and its growth, if it was measured."""
    scores, allocation = scored.scores, scored.allocations[0]
    found, error = scores.sweep[0].divergence, scores.sweep[0].divergence_stderr
    if found is None or error is None:
        return []
    said = " ".join(costs(scores, allocation.errors))
    count, probes = len(found), scores.probes
    blocks = [str(i) for i in range(count)]
    columns = {
        "block": blocks,
        "divergence": [number(x) for x in found],
        "stderr": [number(x) for x in error],
    }
    figures = [
        fig.ReportFigure(
            f"{ident}-divergence",
            "What each block costs",
            "The mean KL divergence of the next-token distributions when the block alone is pruned "
            "as the base says. Bars: one standard error over sequences.",
            ("Divergence of every block that is pruned alone", said),
            Table(columns, caption="Divergence of every block"),
            fig.blocks_axis("block pruned alone", count),
            fig.spanning(KL, found, None, np.nan_to_num(error)),
            [
                fig.Bars(fig.whiskers(found, error), "whisker", True),
                fig.Points([*enumerate(found)], "mark other-hue", "circle"),
            ],
        )
    ]
    d = None if probes is None or allocation.growth is None else probes.divergence
    if probes is None or d is None or probes.sparsity.ndim > 2:
        return figures
    at = np.flatnonzero(~np.isnan(d).any(axis=0))
    s, d = probes.sparsity[:, at], d[:, at]
    grows = growth(d, s)
    fit = grows.level * np.exp(grows.rate * (s - s[1]))
    columns = {"block": [blocks[i] for i in at]}
    columns |= {f"at {s[k].mean():.3g}": [number(x) for x in d[k]] for k in range(3)}
    columns["kappa"] = [number(x) for x in grows.rate]
    columns["residual"] = [number(x) for x in grows.residual]
    figures.append(
        fig.ReportFigure(
            f"{ident}-growth",
            "How the divergence grows",
            "Dots: measured, at three sparsities of some blocks. Lines: the fit, with slope kappa; "
            f"the allocation uses the median of them, {grows.common_rate:.3g}.",
            ("Divergence of every block over its sparsity", f"{len(at)} lines, one per block."),
            Table(columns, caption="Divergence at each sparsity, and its growth"),
            fig.spanning("fraction pruned", s.ravel()),
            fig.spanning(KL, d.ravel(), True),
            [
                *(
                    fig.Line(blocks[i], [*zip(s[:, k], fit[:, k], strict=True)], every=False)
                    for k, i in enumerate(at)
                ),
                fig.Points([*zip(s.ravel(), d.ravel(), strict=True)], "mark other-hue", "circle"),
            ],
        )
    )
    return figures


def drift_figure(ident: str, absorption: Absorption) -> fig.ReportFigure:
    """The drift of every perturbed block over depth."""
    drift, count = absorption.drift, len(absorption.drift)
    columns = {"perturbed": [str(i) for i in range(count)]}
    for k in range(count):
        columns[f"after {k}"] = [number(x) if i <= k else "" for i, x in enumerate(drift[:, k])]
    return fig.ReportFigure(
        ident,
        "Drift over depth",
        "Each line begins at the block whose output is perturbed. A falling line: later blocks "
        "absorb the perturbation; a rising one: they amplify it. At the right: the block.",
        (
            f"Drift of every perturbed block over depth, {perturbation_words(absorption)}",
            f"{count} lines, one per perturbed block, from that block to the last.",
        ),
        Table(columns, caption="Mean relative drift after each block"),
        fig.blocks_axis("after block", count),
        fig.spanning("relative drift", drift.ravel(), log=True),
        [
            fig.Line(str(i), [(k, row[k]) for k in range(i, count)], every=False)
            for i, row in enumerate(drift)
        ],
    )


def absorption_figure(ident: str, scores: Scores, absorption: Absorption) -> fig.ReportFigure:
    """Absorption coefficients with their standard errors, and their side of 1."""
    r, error, count = absorption.coefficient, absorption.stderr, len(absorption.coefficient)
    x = fig.blocks_axis("perturbed block", count)
    sides = [_side(value) for value in r]
    points = {side: [(i, r[i]) for i in range(count) if sides[i] == side] for side in SHAPES}
    columns = {
        "block": [str(i) for i in range(count)],
        "r": [number(x, ".4f") for x in r],
        "stderr": [number(x, ".4f") for x in error],
        "log r": [number(x, ".4f") for x in absorption.logarithm],
        "side": sides,
        "drift at the end": [number(x) for x in absorption.drift[:, -1]],
        "tokens left out": [f"{n:,}" for n in absorption.left_out],
        "sinks excluded": [f"{n:,}" for n in scores.sinks],
    }
    y = fig.spanning(COEFFICIENT, [0.93, 1.07, *r], True, [0, 0, *np.nan_to_num(error)])
    alone = not np.isfinite(error).any()
    more = "; none here, because it needs two sequences or more" if alone else ""
    said = [*findings(absorption, scores.measured_samples), *sinks(scores)]
    return fig.ReportFigure(
        ident,
        "Absorption coefficients",
        "The share of a perturbation that is left after the last block. Above 1 the later blocks "
        f"amplify it, below 1 they absorb it. Bars: one standard error over sequences{more}.",
        (
            f"Absorption coefficient of every block, {perturbation_words(absorption)}",
            " ".join(said),
        ),
        Table(columns, caption="Absorption coefficient r of every block"),
        x,
        y,
        [
            *fig.level(x, 1, "one"),
            *(fig.Bars([(i, 1, r[i])], f"stem {sides[i]}") for i in range(count)),
            fig.Bars(fig.whiskers(r, error), "whisker", True),
            *(fig.Points(points[side], f"dot {side}", shape) for side, shape in SHAPES.items()),
            *(
                fig.Text((i, 1), "?", "name", "middle", (0, -6))
                for i in range(count)
                if isnan(r[i])
            ),
            fig.Text((x.high, y.high), "▲ amplifies", "side amplifies-text", "end", (-2, 12)),
            fig.Text((x.high, y.low), "▼ absorbs", "side absorbs-text", "end", (-2, -7)),
        ],
    )


def sweep_figure(ident: str, scores: Scores) -> fig.ReportFigure:
    """Absorption coefficients over eta, a line per block."""
    sweep = sorted((nan if x.eta is None else x.eta, x.coefficient.tolist()) for x in scores.sweep)
    etas, lines = [eta for eta, _ in sweep], [*zip(*(r for _, r in sweep), strict=True)]
    x = replace(fig.spanning("eta", etas, True), texts={eta: f"{eta:g}" for eta in etas})
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
        Table(columns, caption="Absorption coefficient r at each eta"),
        x,
        fig.spanning(COEFFICIENT, [1.0, *np.ravel(lines)], log=True),
        [
            fig.level(x, 1, "one")[0],
            *(fig.Line(str(i), [*zip(etas, r, strict=True)]) for i, r in enumerate(lines)),
        ],
    )


def allocation_figure(ident: str, scored: ScoresInput, which: int) -> fig.ReportFigure:
    """Base against corrected sparsity of every block, at one eta."""
    allocation, document = scored.allocations[which], scored.file.document
    base, final = allocation.base_sparsity, allocation.corrected_sparsity
    at, count = perturbation_words(scored.scores.sweep[which]), len(base)
    target, correct = float(document["requested_sparsity"]), document["correct"]
    x, moved = fig.blocks_axis("block", count), final - base
    most = int(np.abs(moved).argmax())
    said = (
        f"Correction {correct}, made at {at}: largest change {moved[most]:+.4f}, block {most}."
        if correct is not None
        else "No correction was requested: both are the same."
    )
    columns = {
        "block": [str(i) for i in range(count)],
        "base": [f"{s:.4f}" for s in base],
        "corrected": [f"{s:.4f}" for s in final],
        "change": [f"{change:+.4f}" for change in moved],
        "to prune": [f"{n:,}" for n in allocation.num_pruned],
        "weights": [f"{n:,}" for n in scored.scores.linear_sizes.sum(axis=1).tolist()],
    }
    error = np.zeros(count) if allocation.errors is None else allocation.errors.sparsity
    if allocation.errors is not None:
        columns["stderr"] = [number(e, ".4f") for e in error]
    return fig.ReportFigure(
        ident,
        "Base against corrected allocation",
        f"Base {document['base']}, target {target:g} over all weights. {said}",
        (
            f"Fraction pruned of every block, base {document['base']} and corrected, {at}",
            f"Base from {base.min():.4f} to {base.max():.4f}, corrected from {final.min():.4f} to "
            f"{final.max():.4f}. {said}",
        ),
        Table(columns, caption="Sparsity of every block"),
        x,
        fig.spanning("fraction pruned", [target, *base, *final]),
        [
            *fig.level(x, target, "target"),
            fig.Bars([*zip(range(count), base, final, strict=True)], "move"),
            fig.Bars(fig.whiskers(final, error), "whisker", True),
            fig.Points([*enumerate(base)], "open one-hue", "circle", "base"),
            fig.Points([*enumerate(final)], "mark other-hue", "square", "corrected"),
        ],
    )


def perturbation_words(absorption: Absorption) -> str:
    """How a state was perturbed, in a few words."""
    return "the pruning perturbation" if absorption.eta is None else f"eta {absorption.eta:g}"


def _side(r: float) -> str:
    """The side of 1 that a coefficient is on."""
    if isnan(r):
        return "unknown"
    return "amplifies" if r > 1 else "absorbs" if r < 1 else "neither"


MEASURES = {  # with their titles, and how to read them
    "perplexity": ("Perplexity", "Lower is better."),
    "acc": ("Accuracy", "The share of correct answers."),
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
    for measure, (title, note) in MEASURES.items():
        sources = [one.sources.get(measure) for one in evaluated]
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
