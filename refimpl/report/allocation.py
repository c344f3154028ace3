"""Pictures of allocations: base against corrected, requested against achieved."""

from collections.abc import Mapping, Sequence

import numpy as np

from refimpl.model.ops import Array
from refimpl.report import scales, svg
from refimpl.report.drift import perturbation_words
from refimpl.report.html import ReportFigure, Table
from refimpl.report.inputs import PruningInput, ScoresInput

LINEAR_ROW = 36  # height of a linear's row, in units of the picture
COUNT_NAMES = {
    "requested": "asked",
    "pruned": "pruned",
    "kept_zeros": "kept zeros",
    "zeros": "zeros",
}


def allocation_figure(ident: str, scored: ScoresInput, which: int) -> ReportFigure:
    """Base against corrected sparsity of every block, at one eta."""
    allocation = scored.allocations[which]
    base, final = allocation.base_sparsity, allocation.corrected_sparsity
    document, count = scored.file.document, len(base)
    at = perturbation_words(scored.scores.sweep[which])
    weights = f"{int(scored.scores.linear_sizes.sum()):,}"
    target = float(document["requested_sparsity"])
    x, y = scales.blocks_axis(count), scales.vertical([target, *base, *final], room=0.12)
    parts = svg.axes(x, y, ("block", "fraction pruned"), scales.block_ticks(count))
    parts.append(svg.line(x.start, y(target), x.end, y(target), "target"))
    parts.append(svg.label(x.end + 4, y(target), f"{target:.4g}", "tick mid"))
    pairs = [(x(i), y(base[i]), y(final[i])) for i in range(count)]
    parts += [svg.line(here, a, here, b, "move") for here, a, b in pairs if abs(a - b) > 1]
    points = [(here, b) for here, _, b in pairs]
    parts.append(svg.marks([(here, a) for here, a, _ in pairs], svg.CIRCLE, "open one-hue"))
    parts.append(svg.marks(points, svg.SQUARE, "mark other-hue"))
    parts += svg.legend(
        [("open one-hue", svg.CIRCLE, "base"), ("mark other-hue", svg.SQUARE, "corrected")]
    )
    parts += svg.trail(points, "hit", 0)
    moved = final - base
    most = int(np.abs(moved).argmax())
    correct = document["correct"]
    said = (
        f"Correction {correct}, made at {at}: largest change {moved[most]:+.4f}, block {most}."
        if correct is not None
        else "No correction was requested: both are the same."
    )
    rows = [
        [
            str(i),
            f"{base[i]:.4f}",
            f"{final[i]:.4f}",
            f"{moved[i]:+.4f}",
            f"{allocation.num_pruned[i]:,}",
            weights,
        ]
        for i in range(count)
    ]
    return ReportFigure(
        ident,
        "Base against corrected allocation",
        f"Base {document['base']}, target {target:g} over all weights. {said}",
        svg.picture(
            ident,
            f"Fraction pruned of every block, base {document['base']} and corrected, {at}",
            f"Base from {base.min():.4f} to {base.max():.4f}, corrected from {final.min():.4f} to "
            f"{final.max():.4f}. {said}",
            parts,
            scales.HEIGHT,
        ),
        Table(
            "Sparsity of every block",
            ["block", "base", "corrected", "change", "to prune", "weights"],
            rows,
        ),
    )


def requested_figure(ident: str, scored: ScoresInput, which: int) -> ReportFigure:
    """The sparsity that an allocation requests of every linear, at one eta."""
    allocation, sizes = scored.allocations[which], scored.scores.linear_sizes
    requested = allocation.linear_pruned
    counts = {"weights": np.broadcast_to(sizes, requested.shape), "requested": requested}
    return _linears_figure(
        ident,
        "Requested sparsity of every linear",
        "The allocation of each linear. Add a pruning.json to see what pruning achieved.",
        list(scored.scores.linears),
        allocation.linear_sparsity,
        counts,
    )


def pruned_figure(ident: str, pruned: PruningInput) -> ReportFigure:
    """The requested sparsity of every linear, and the zeros in its file."""
    counts = pruned.counts
    off = int(np.abs(counts["pruned"] - counts["requested"]).sum())
    kept = int(counts["kept_zeros"].sum())
    exact = "exactly as many as requested" if off == 0 else f"{off:,} more or fewer than requested"
    more = f"; {kept:,} kept weights are zero too" if kept else ""
    return _linears_figure(
        ident,
        f"Requested against achieved, {pruned.name}",
        f"Zeros in the file as a share of each linear. Pruned: {exact}{more}.",
        pruned.linears,
        pruned.sparsity,
        counts,
    )


def _linears_figure(
    ident: str,
    title: str,
    note: str,
    names: Sequence[str],
    sparsity: Array,
    counts: Mapping[str, Array],
) -> ReportFigure:
    """A row per linear: requested sparsities are open circles, achieved ones dots in them."""
    weights = counts["weights"]
    asked = counts["requested"] / weights
    zeros = counts["zeros"] / weights if "zeros" in counts else None
    count, width = asked.shape
    known = [*asked.ravel(), *(() if zeros is None else zeros.ravel())]
    x, low, high = scales.blocks_axis(count), min(known), max(known)
    more = max((high - low) * 0.1, 0.02 - (high - low) / 2)  # rounding must not look large
    bottom = scales.TOP + 6 + LINEAR_ROW * width
    parts = [
        svg.label(6, 18, f"fraction pruned, each row {low - more:.3f} to {high + more:.3f}", "name")
    ]
    for j, name in enumerate(names):
        end = scales.TOP + 4 + LINEAR_ROW * (j + 1)
        y = scales.AxisScale(low - more, high + more, end - 2, end - LINEAR_ROW + 4)
        left, right = x.start + 34, x.end - 8
        across = scales.AxisScale(x.low, x.high, left, right)
        parts.append(
            f'<path class="band" d="M{left} {end - 1}H{right}V{end - LINEAR_ROW + 3}H{left}z"/>'
        )
        parts.append(svg.label(left - 6, end - LINEAR_ROW / 2 + 1, name, "tick mid", "end"))
        points = [(across(i), y(asked[i, j])) for i in range(count)]
        parts.append(svg.marks(points, svg.CIRCLE, "open one-hue"))
        total = counts["requested"][:, j].sum() / weights[:, j].sum()
        if zeros is not None:
            inner = [(across(i), y(zeros[i, j])) for i in range(count)]
            parts.append(svg.marks(inner, svg.DOT, "mark other-hue"))
            total = counts["zeros"][:, j].sum() / weights[:, j].sum()
        parts.append(
            svg.label(scales.WIDTH - 2, end - LINEAR_ROW / 2 + 1, f"{total:.1%}", "tick mid", "end")
        )
        parts += svg.trail(points, "hit", j * count)
    across = scales.AxisScale(x.low, x.high, x.start + 34, x.end - 8)
    for tick in scales.block_ticks(count):
        parts.append(svg.label(across(tick), bottom + 14, f"{tick:g}", anchor="middle"))
    parts.append(svg.label((across.start + across.end) / 2, bottom + 33, "block", "name", "middle"))
    legend = [("open one-hue", svg.CIRCLE, "asked")]
    if zeros is not None:
        legend.append(("mark other-hue", svg.DOT, "zeros"))
    parts += svg.legend(legend)
    rows = [
        [
            f"{name} {i}",
            name,
            str(i),
            f"{int(weights[i, j]):,}",
            f"{sparsity[i, j]:.4f}",
            *(f"{int(counts[key][i, j]):,}" for key in COUNT_NAMES if key in counts),
            f"{asked[i, j]:.4f}",
            *([] if zeros is None else [f"{zeros[i, j]:.4f}"]),
        ]
        for j, name in enumerate(names)
        for i in range(count)
    ]
    shown = [title for key, title in COUNT_NAMES.items() if key in counts]
    shares = ["asked share", *([] if zeros is None else ["zeros share"])]
    said = "" if zeros is None else f" Zeros from {zeros.min():.4f} to {zeros.max():.4f}."
    return ReportFigure(
        ident,
        title,
        note,
        svg.picture(
            ident,
            title,
            f"A row per linear ({', '.join(names)}), a place per block. "
            f"Asked from {asked.min():.4f} to {asked.max():.4f}.{said}",
            parts,
            bottom + 46,
        ),
        Table(
            title,
            ["linear and block", "linear", "block", "weights", "allocated", *shown, *shares],
            rows,
        ),
    )
