"""The picture of pruning papers: perplexity against sparsity, a line per pruner and allocation."""

from collections.abc import Iterator, Sequence
from math import isfinite

from refimpl.pruning.inspection import allocation_name
from refimpl.report import scales, svg
from refimpl.report.html import ReportFigure, Table
from refimpl.report.inputs import EvaluationInput
from refimpl.report.results import FACTOR
from refimpl.show.header import counted
from refimpl.show.numbers import measured, number


def quality_figures(evaluated: Sequence[EvaluationInput]) -> Iterator[ReportFigure]:
    """A picture per text on which a pruned model was evaluated."""
    for i, text in enumerate(dict.fromkeys(one.text for one in evaluated if one.text is not None)):
        same = [one for one in evaluated if one.text == text]
        if any(one.pruning is not None for one in same):
            yield _quality(f"quality-{i}", text[0], same)


def _series(one: EvaluationInput) -> str:
    """The line that an evaluation belongs to."""
    return "dense" if one.pruning is None else f"{one.pruning['method']}, {_allocation(one)}"


def _allocation(one: EvaluationInput) -> str:
    return "" if one.pruning is None else allocation_name(one.pruning)


def _sparsity(one: EvaluationInput) -> float:
    return 0.0 if one.pruning is None else float(one.pruning["sparsity"])


def _quality(ident: str, text: str, evaluated: Sequence[EvaluationInput]) -> ReportFigure:
    """Perplexity over the share of zeros; the model that was not pruned is a level."""
    rows = sorted(evaluated, key=lambda one: (_series(one), _sparsity(one)))
    perplexity = [one.measures["perplexity"] for one in rows]
    names = [name for name in dict.fromkeys(map(_series, rows)) if name != "dense"]
    known = [x.value for x in perplexity if isfinite(x.value)]
    log = bool(known) and min(known) > 0 and max(known) / min(known) > FACTOR
    pruned = [_sparsity(one) for one in rows if one.pruning is not None]
    edge = max(0.02, 0.1 * (max(pruned) - min(pruned)))
    x = scales.AxisScale(min(pruned) - edge, max(pruned) + edge, scales.LEFT, scales.RIGHT)
    edges = [x.value + side * x.error for x in perplexity for side in (-1, 1)]
    y = scales.vertical([*known, *edges], log)
    title = "perplexity, log scale" if log else "perplexity"
    parts = svg.axes(x, y, ("fraction of zeros among the prunable weights", title), x.ticks(5))
    for j, name in enumerate(names):
        at = [n for n, one in enumerate(rows) if _series(one) == name]
        points = [(x(_sparsity(rows[n])), svg.place(y, perplexity[n].value)) for n in at]
        color, below = svg.shade(j, len(names)), scales.HEIGHT + 8 + 16 * j
        css = f"line s{color} d{j % 4}"
        parts += svg.trail(points, css, at[0])
        parts.append(
            svg.bars(
                [
                    (here, svg.place(y, p.value - p.error), svg.place(y, p.value + p.error))
                    for (here, _), p in zip(points, (perplexity[n] for n in at), strict=True)
                ],
                f"s{color}",
            )
        )
        parts.append(svg.marks(points, j % svg.CYCLE, f"mark f{color}"))
        parts.append(svg.line(scales.LEFT, below, scales.LEFT + 32, below, css))
        parts.append(svg.marks([(scales.LEFT + 16, below)], j % svg.CYCLE, f"mark f{color}"))
        parts.append(svg.label(scales.LEFT + 40, below, name, "tick mid"))
    dense = [p.value for one, p in zip(rows, perplexity, strict=True) if one.pruning is None]
    below = scales.HEIGHT + 8 + 16 * len(names)
    for value in filter(isfinite, dense[:1]):
        parts += svg.level(x, y, value, "target")
        parts.append(svg.line(scales.LEFT, below, scales.LEFT + 32, below, "target"))
        parts.append(svg.label(scales.LEFT + 40, below, "dense", "tick mid"))
    said = "; ".join(
        f"{one.name}: {number(p.value)}" for one, p in zip(rows, perplexity, strict=True)
    )
    return ReportFigure(
        ident,
        "Perplexity against sparsity",
        f"Lower is better. A line per pruner and allocation. On {text}.",
        (f"Perplexity over sparsity, {counted(len(rows), 'evaluation')}", f"{said}."),
        parts,
        Table(
            "Perplexity at each sparsity",
            ["line", "sparsity", "perplexity", "with its error", "pruner", "allocation"],
            [
                [
                    _series(one),
                    number(_sparsity(one), ".4g"),
                    number(p.value, ".6g"),
                    measured(p.value, p.error),
                    "-" if one.pruning is None else str(one.pruning["method"]),
                    _allocation(one) or "-",
                ]
                for one, p in zip(rows, perplexity, strict=True)
            ],
        ),
        height=below + (16 if dense else 0),
    )
