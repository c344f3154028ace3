"""Pictures of allocations: base against corrected, requested against achieved."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from refimpl.model.config import kind_of
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
MARKS = {  # classes, shape and name of the shares that are drawn
    "requested": ("open one-hue", svg.CIRCLE, "asked"),
    "zeros": ("mark other-hue", svg.DOT, "zeros"),
}


def allocation_figure(ident: str, scored: ScoresInput, which: int) -> ReportFigure:
    """Base against corrected sparsity of every block, at one eta."""
    allocation = scored.allocations[which]
    base, final = allocation.base_sparsity, allocation.corrected_sparsity
    document, count = scored.file.document, len(base)
    at = perturbation_words(scored.scores.sweep[which])
    weights = [f"{n:,}" for n in scored.scores.linear_sizes.sum(axis=1).tolist()]
    target = float(document["requested_sparsity"])
    x, y = scales.blocks_axis(count), scales.vertical([target, *base, *final], room=0.12)
    parts = svg.axes(x, y, ("block", "fraction pruned"), scales.block_ticks(count))
    parts += svg.level(x, y, target, "target")
    pairs = [(x(i), y(base[i]), y(final[i])) for i in range(count)]
    parts += [svg.line(here, a, here, b, "move") for here, a, b in pairs if abs(a - b) > 1]
    points = [(here, b) for here, _, b in pairs]
    css, other = "open one-hue", "mark other-hue"
    parts.append(svg.marks([(here, a) for here, a, _ in pairs], svg.CIRCLE, css))
    parts.append(svg.marks(points, svg.SQUARE, other))
    parts += svg.legend([(css, svg.CIRCLE, "base"), (other, svg.SQUARE, "corrected")])
    parts += svg.trail(points, "hit", 0)
    moved = final - base
    most = int(np.abs(moved).argmax())
    correct = document["correct"]
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
        "weights": weights,
    }
    return ReportFigure(
        ident,
        "Base against corrected allocation",
        f"Base {document['base']}, target {target:g} over all weights. {said}",
        (
            f"Fraction pruned of every block, base {document['base']} and corrected, {at}",
            f"Base from {base.min():.4f} to {base.max():.4f}, corrected from {final.min():.4f} to "
            f"{final.max():.4f}. {said}",
        ),
        parts,
        Table("Sparsity of every block", [*columns], [*zip(*columns.values(), strict=True)]),
    )


def requested_figure(ident: str, scored: ScoresInput, which: int) -> ReportFigure:
    """The sparsity that an allocation requests of every linear, at one eta."""
    allocation = scored.allocations[which]
    counts = {"weights": scored.scores.linear_sizes, "requested": allocation.linear_pruned}
    return _linears_figure(
        ident,
        "Requested sparsity of every linear",
        "The allocation of each linear. Add a pruning.json to see what pruning achieved.",
        scored.scores.linears,
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


def by_kind(linears: Sequence[Iterable[str]], numbers: Array) -> dict[str, Array]:
    """Sums of numbers per linear, [L, linears], over the experts of each block: [L] by name."""
    sums: dict[str, Array] = {}
    for i, names in enumerate(linears):
        for name, number in zip(names, numbers[i], strict=False):
            sums.setdefault(kind_of(name), np.zeros(len(numbers)))[i] += number
    return sums


def table(columns: Mapping[str, Array]) -> Array:
    """Columns, [L] each, side by side."""
    return np.stack([*columns.values()], axis=1)


def _linears_figure(
    ident: str,
    title: str,
    note: str,
    linears: Sequence[Iterable[str]],
    sparsity: Array,
    counts: Mapping[str, Array],
) -> ReportFigure:
    """A row per linear: requested sparsities are open circles, achieved ones dots in them.

    The experts of a block are one linear here.
    """
    allotted = by_kind(linears, sparsity * counts["weights"])
    names, counts = list(allotted), {key: table(by_kind(linears, x)) for key, x in counts.items()}
    weights = np.where(counts["weights"] > 0, counts["weights"], np.nan)  # NaN: not in this block
    sparsity, there = table(allotted) / weights, ~np.isnan(weights)
    first = np.cumsum(there.sum(axis=0)) - there.sum(axis=0)  # row of the table, per linear
    shares = {key: counts[key] / weights for key in MARKS if key in counts}
    count, width = weights.shape
    alike: dict[bytes, list[int]] = {}  # linears whose shares are the same in every block: one row
    for j in range(width):
        alike.setdefault(
            np.array([share[:, j].round(4) for share in shares.values()]).tobytes(), []
        ).append(j)
    drawn = list(alike.values())
    low, high = (float(f(list(shares.values()))) for f in (np.nanmin, np.nanmax))
    more = max((high - low) * 0.1, 0.02 - (high - low) / 2)  # rounding must not look large
    low, high, bottom = low - more, high + more, scales.TOP + 6 + LINEAR_ROW * len(drawn)
    left, right = scales.LEFT + 34, scales.RIGHT - 8
    x = replace(scales.blocks_axis(count), start=left, end=right)
    parts = [svg.label(6, 18, f"fraction pruned, each row {low:.3f} to {high:.3f}", "name")]
    for row, members in enumerate(drawn):
        j, end = members[0], scales.TOP + 4 + LINEAR_ROW * (row + 1)
        name = (
            names[j]
            if len(members) == 1
            else f"{names[j].removesuffix('_proj')} +{len(members) - 1}"
        )
        y, middle = scales.AxisScale(low, high, end - 2, end - LINEAR_ROW + 4), end - LINEAR_ROW / 2
        band = f"M{left} {end - 1}H{right}V{end - LINEAR_ROW + 3}H{left}z"
        parts.append(f'<path class="band" d="{band}"/>')
        parts.append(svg.label(left - 6, middle + 1, name, "tick mid", "end"))
        blocks = np.flatnonzero(there[:, j]).tolist()
        for key, share in shares.items():
            css, shape, _ = MARKS[key]
            parts.append(svg.marks([(x(i), y(share[i, j])) for i in blocks], shape, css))
            total = f"{counts[key][:, members].sum() / np.nansum(weights[:, members]):.1%}"
        parts.append(svg.label(scales.WIDTH - 2, middle + 1, total, "tick mid", "end"))
        points = [(x(i), y(shares["requested"][i, j])) for i in blocks]
        parts += svg.trail(points, "hit", int(first[j]))
    for tick in scales.block_ticks(count):
        parts.append(svg.label(x(tick), bottom + 14, f"{tick:g}", anchor="middle"))
    parts.append(svg.label((left + right) / 2, bottom + 33, "block", "name", "middle"))
    parts += svg.legend([MARKS[key] for key in shares])
    shown = [key for key in COUNT_NAMES if key in counts]
    rows = [
        [
            f"{name} {i}",
            name,
            str(i),
            f"{int(weights[i, j]):,}",
            f"{sparsity[i, j]:.4f}",
            *(f"{int(counts[key][i, j]):,}" for key in shown),
            *(f"{share[i, j]:.4f}" for share in shares.values()),
        ]
        for j, name in enumerate(names)
        for i in np.flatnonzero(there[:, j]).tolist()
    ]
    heads = ["linear and block", "linear", "block", "weights", "allocated"]
    heads += [COUNT_NAMES[key] for key in shown] + [f"{MARKS[key][2]} share" for key in shares]
    said = "".join(
        f" {MARKS[key][2].capitalize()} from {np.nanmin(share):.4f} to {np.nanmax(share):.4f}."
        for key, share in shares.items()
    )
    groups = [", ".join(names[j] for j in members) for members in drawn if len(members) > 1]
    return ReportFigure(
        ident,
        title,
        note + "".join(f" One row for {group}, which are the same." for group in groups),
        (title, f"A row per linear ({', '.join(names)}), a place per block.{said}"),
        parts,
        Table(title, heads, rows),
        height=bottom + 46,
    )
