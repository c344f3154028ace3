"""The picture of an allocation: base against corrected."""

import numpy as np

from refimpl.report import scales, svg
from refimpl.report.html import Figure, Table
from refimpl.report.inputs import Allocated, Scored


def allocation_figure(ident: str, scored: Scored, allocated: Allocated, push: str) -> Figure:
    """Base against corrected sparsity of every block."""
    base, final = allocated.base, allocated.corrected
    document, count = scored.given.document, len(base)
    target = float(document["requested_sparsity"])
    x, y = scales.blocks_axis(count), scales.vertical([target, *base, *final], room=0.12)
    parts = svg.axes(x, y, ("block", "fraction pruned"), scales.block_ticks(count))
    parts.append(svg.line(x.start, y(target), x.end, y(target), "target"))
    parts.append(svg.label(x.end + 4, y(target), f"{target:.4g}", "tick mid"))
    pairs = [(x(i), y(base[i]), y(final[i])) for i in range(count)]
    parts += [svg.line(at, a, at, b, "move") for at, a, b in pairs if abs(a - b) > 1]
    points = [(at, b) for at, _, b in pairs]
    parts.append(svg.marks([(at, a) for at, a, _ in pairs], svg.CIRCLE, "open one-hue"))
    parts.append(svg.marks(points, svg.SQUARE, "mark other-hue"))
    parts += svg.legend(
        [("open one-hue", svg.CIRCLE, "base"), ("mark other-hue", svg.SQUARE, "corrected")]
    )
    parts += svg.trail(points, "hit", 0)
    moved = final - base
    most = int(np.abs(moved).argmax())
    correct = document["correct"]
    said = (
        f"Correction {correct}, made at {push}: largest change {moved[most]:+.4f}, block {most}."
        if correct is not None
        else "No correction was asked for: both are the same."
    )
    rows = [
        [
            str(i),
            f"{base[i]:.4f}",
            f"{final[i]:.4f}",
            f"{moved[i]:+.4f}",
            f"{int(allocated.pruned[i]):,}",
            f"{int(scored.scores.linear_sizes.sum()):,}",
        ]
        for i in range(count)
    ]
    return Figure(
        ident,
        "Base against corrected allocation",
        f"Base {document['base']}, target {target:g} over all weights. {said}",
        svg.picture(
            ident,
            f"Fraction pruned of every block, base {document['base']} and corrected, {push}",
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
