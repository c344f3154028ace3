"""Pictures of linears: what each was asked to lose, and what it lost."""

from collections.abc import Mapping, Sequence

import numpy as np

from refimpl.model.ops import Array
from refimpl.report import scales, svg
from refimpl.report.html import Figure, Table
from refimpl.report.inputs import Allocated, Pruned, Scored

ROW = 36  # height of a linear's row, in units of the picture
COUNT_NAMES = {
    "requested": "asked",
    "pruned": "pruned",
    "kept_zeros": "kept zeros",
    "zeros": "zeros",
}


def asked_figure(ident: str, scored: Scored, asked: Allocated) -> Figure:
    """What every linear is asked to lose, as long as nothing is known of a pruning."""
    names = list(scored.scores.linears)
    sizes = np.broadcast_to(scored.scores.linear_sizes, asked.linear_pruned.shape)
    counts = {"weights": sizes, "requested": asked.linear_pruned}
    return _linears_figure(
        ident,
        "Requested sparsity of every linear",
        "What the allocation asks of each linear. What pruning achieves stands in pruning.json.",
        names,
        asked.linear_sparsity,
        counts,
    )


def pruned_figure(ident: str, pruned: Pruned) -> Figure:
    """What every linear was asked to lose, and how many zeros its file has."""
    counts = pruned.counts
    off = int(np.abs(counts["pruned"] - counts["requested"]).sum())
    kept = int(counts["kept_zeros"].sum())
    exact = "as many weights as asked" if off == 0 else f"{off:,} weights more or less than asked"
    more = f"; {kept:,} weights that stay are zero" if kept else ""
    return _linears_figure(
        ident,
        f"Requested against achieved, {pruned.name}",
        f"Zeros in the file, as a share of each linear, against what was asked: {exact}{more}.",
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
) -> Figure:
    """A row per linear: requested as open circles, achieved as dots in them."""
    weights = counts["weights"]
    asked = counts["requested"] / weights
    zeros = counts["zeros"] / weights if "zeros" in counts else None
    count, width = asked.shape
    known = [*asked.ravel(), *(() if zeros is None else zeros.ravel())]
    x, low, high = scales.blocks_axis(count), min(known), max(known)
    more = max((high - low) * 0.1, 0.02 - (high - low) / 2)  # rounding shall not look like much
    bottom = scales.TOP + 6 + ROW * width
    parts = [
        svg.label(6, 18, f"fraction pruned, each row {low - more:.3f} to {high + more:.3f}", "name")
    ]
    for j, name in enumerate(names):
        end = scales.TOP + 4 + ROW * (j + 1)
        y = scales.Scale(low - more, high + more, end - 2, end - ROW + 4)
        left, right = x.start + 34, x.end - 8
        across = scales.Scale(x.low, x.high, left, right)
        parts.append(f'<path class="band" d="M{left} {end - 1}H{right}V{end - ROW + 3}H{left}z"/>')
        parts.append(svg.label(left - 6, end - ROW / 2 + 1, name, "tick mid", "end"))
        points = [(across(i), y(asked[i, j])) for i in range(count)]
        parts.append(svg.marks(points, svg.CIRCLE, "open one-hue"))
        total = counts["requested"][:, j].sum() / weights[:, j].sum()
        if zeros is not None:
            inner = [(across(i), y(zeros[i, j])) for i in range(count)]
            parts.append(svg.marks(inner, svg.DOT, "mark other-hue"))
            total = counts["zeros"][:, j].sum() / weights[:, j].sum()
        parts.append(
            svg.label(scales.WIDTH - 2, end - ROW / 2 + 1, f"{total:.1%}", "tick mid", "end")
        )
        parts += svg.trail(points, "hit", j * count)
    across = scales.Scale(x.low, x.high, x.start + 34, x.end - 8)
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
    return Figure(
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
