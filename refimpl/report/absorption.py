"""Pictures of absorption: coefficients with their errors, and the sweep over eta."""

from math import isfinite, isnan, nan

import numpy as np

from refimpl.allocation.scores import Absorption, Scores
from refimpl.report import scales, svg
from refimpl.report.drift import perturbation_words
from refimpl.report.html import ReportFigure, Table
from refimpl.show.findings import findings
from refimpl.show.numbers import number


def absorption_figure(ident: str, scores: Scores, absorption: Absorption) -> ReportFigure:
    """Absorption coefficients with their standard errors, and their side of 1."""
    r, error = absorption.coefficient, absorption.stderr
    count = len(r)
    known = np.isfinite(error)
    edges = np.concatenate([[0.93, 1.07], r, (r - error)[known], (r + error)[known]])
    x, y = scales.blocks_axis(count), scales.vertical(edges.tolist(), log=True, room=0.12)
    names = ("perturbed block", "absorption coefficient r, log scale")
    parts = svg.axes(x, y, names, scales.block_ticks(count)) + svg.level(x, y, 1, "one")
    parts += [
        svg.line(x(i), y(1), x(i), y(r[i]), f"stem {_side(r[i])}")
        for i in range(count)
        if isfinite(r[i])
    ]
    points = [(x(i), y(r[i]) if isfinite(r[i]) else nan) for i in range(count)]
    whiskers = [
        (x(i), y(r[i] - error[i]), y(r[i] + error[i]))
        for i in range(count)
        if isfinite(r[i]) and isfinite(error[i]) and error[i] > 0
    ]
    parts.append(svg.bars(whiskers, "whisker"))
    for shape, css in ((svg.DOWN, "absorbs"), (svg.UP, "amplifies"), (svg.CIRCLE, "neither")):
        chosen = [p for p, value in zip(points, r, strict=True) if _side(value) == css]
        parts.append(svg.marks(chosen, shape, f"dot {css}"))
    parts += [svg.label(x(i), y(1) - 6, "?", "name", "middle") for i in range(count) if isnan(r[i])]
    parts += [
        svg.label(x.end - 2, scales.TOP + 12, "▲ amplifies", "side amplifies-text", "end"),
        svg.label(x.end - 2, scales.BOTTOM - 7, "▼ absorbs", "side absorbs-text", "end"),
    ]
    parts += svg.trail(points, "hit", 0)
    return ReportFigure(
        ident,
        "Absorption coefficients",
        "The share of a perturbation that is left after the last block. Above 1 the later blocks "
        "amplify it, below 1 they absorb it. Bars: one standard error over sequences"
        + ("." if known.any() else "; none here, because it needs two sequences or more."),
        (
            f"Absorption coefficient of every block, {perturbation_words(absorption)}",
            " ".join(findings(absorption)),
        ),
        parts,
        _absorption_table(scores, absorption),
    )


def sweep_figure(ident: str, scores: Scores) -> ReportFigure:
    """Absorption coefficients over eta, a line per block."""
    sweep, count = scores.sweep, scores.num_blocks
    etas = [nan if absorption.eta is None else absorption.eta for absorption in sweep]
    order = np.argsort(etas)
    etas, r = [etas[i] for i in order], np.array([sweep[i].coefficient for i in order])
    least = max(etas[0], scales.LEAST)
    room = max((etas[-1] / least) ** 0.05, 1.05)
    x = scales.AxisScale(least / room, etas[-1] * room, scales.LEFT, scales.RIGHT, True)
    y = scales.vertical([1.0, *r.ravel()], log=True)
    names = ("eta, log scale", "absorption coefficient r, log scale")
    parts = [*svg.axes(x, y, names, etas), svg.line(x.start, y(1), x.end, y(1), "one")]
    for i in range(count):
        points = [(x(eta), svg.place(y, r[j, i])) for j, eta in enumerate(etas)]
        parts += svg.trail(points, f"line s{svg.shade(i, count)} d{i % 4}", i, 1)
        parts.append(svg.marks(points, i % svg.CYCLE, f"mark f{svg.shade(i, count)}"))
    parts += svg.names([svg.place(y, value) for value in r[-1]], x(etas[-1]), y.start)
    above = [f"{number(eta)}: {int((row > 1).sum())}" for eta, row in zip(etas, r, strict=True)]
    return ReportFigure(
        ident,
        "The sweep over eta",
        "The same experiment with perturbations of other sizes, a line per block. Below the line "
        "at 1 the later blocks absorb the perturbation.",
        (
            "Absorption coefficient of every block over eta",
            f"{count} lines. Blocks that amplify, by eta: {'; '.join(above)}.",
        ),
        parts,
        Table(
            "Absorption coefficient r at each eta",
            ["block", *(f"eta {eta:g}" for eta in etas)],
            [[str(i), *(number(value, ".4f") for value in r[:, i])] for i in range(count)],
        ),
    )


def _side(r: float) -> str:
    """The side of 1 that a coefficient is on."""
    if isnan(r):
        return "unknown"
    return "amplifies" if r > 1 else "absorbs" if r < 1 else "neither"


def _absorption_table(scores: Scores, absorption: Absorption) -> Table:
    """All results about the coefficients, a row per block."""
    r, divergence = absorption.coefficient, absorption.divergence
    columns = {
        "r": [number(x, ".4f") for x in r],
        "stderr": [number(x, ".4f") for x in absorption.stderr],
        "log r": [number(x, ".4f") for x in absorption.logarithm],
        "side": [_side(x) for x in r],
        "arrival": [number(x) for x in absorption.arrival],
        **({} if divergence is None else {"divergence": [number(x) for x in divergence]}),
        "tokens left out": [f"{n:,}" for n in absorption.left_out],
        "sinks excluded": [f"{n:,}" for n in scores.sinks],
    }
    rows = [[str(i), *cells] for i, cells in enumerate(zip(*columns.values(), strict=True))]
    return Table("Absorption coefficient r of every block", ["block", *columns], rows)
