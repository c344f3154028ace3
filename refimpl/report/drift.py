"""Pictures of the experiment: drift over depth, and maps of all pairs of block and depth."""

from math import degrees, isnan, log10

import numpy as np

from refimpl.allocation.scores import Absorption
from refimpl.model.ops import Array
from refimpl.report import scales, svg
from refimpl.report.html import ReportFigure, Table
from refimpl.show.numbers import number

WRITTEN, WIDE = 8, 5  # up to so many blocks, a map holds its numbers; up to so many, in 3 digits


def drift_figure(ident: str, absorption: Absorption) -> ReportFigure:
    """The drift of every perturbed block over depth."""
    count, drift = len(absorption.drift), absorption.drift
    x, more = scales.blocks_axis(count), scales.MORE if count > WRITTEN else 0
    y = scales.vertical(drift[~np.isnan(drift)].tolist(), log=True, bottom=scales.BOTTOM + more)
    parts = svg.axes(x, y, ("after block", "relative drift, log scale"), scales.block_ticks(count))
    ends = []
    for i in range(count):
        points = [(x(k), svg.place(y, drift[i, k])) for k in range(i, count)]
        css = f"s{svg.shade(i, count)} d{i % 4}"
        parts += svg.trail(points, f"line {css}", i, i + 1)
        parts.append(svg.marks(points[:1], svg.DOT, f"f{svg.shade(i, count)}"))
        ends.append(points[-1][1])
    parts += svg.names(ends, x(count - 1), y.start, count > WRITTEN)
    shown = _range(drift)
    return ReportFigure(
        ident,
        "Drift over depth",
        "Each line begins at the block whose output is perturbed. A falling line: later blocks "
        "absorb the perturbation; a rising one: they amplify it. At the right: the block.",
        (
            f"Drift of every perturbed block over depth, {perturbation_words(absorption)}",
            f"{count} lines, one per perturbed block, from that block to the last. {shown}",
        ),
        parts,
        _matrix(drift, "Mean relative drift after each block", ".4g"),
        height=scales.HEIGHT + more,
        large=count > WRITTEN,
    )


def drift_map(ident: str, absorption: Absorption) -> ReportFigure:
    """The drift of all pairs of a perturbed block and a depth."""
    return ReportFigure(
        ident,
        "Drift of all pairs",
        "The same numbers as a map: along a row, one perturbation travels through the blocks.",
        _map_words("Drift", absorption, absorption.drift, ""),
        _map(absorption.drift, ""),
        _matrix(absorption.drift, "Mean relative drift after each block", ".4g"),
    )


def alignment_map(ident: str, absorption: Absorption) -> ReportFigure:
    """The angle to the clean state of all pairs of a perturbed block and a depth."""
    cosines = absorption.alignment
    angles = np.array([[degrees(np.arccos(min(max(a, -1.0), 1.0))) for a in x] for x in cosines])
    return ReportFigure(
        ident,
        "Alignment of all pairs, as an angle",
        "How far the state's direction turns: arccos of the mean alignment, in degrees.",
        _map_words("Angle", absorption, angles, "°"),
        _map(angles, "°"),
        _matrix(angles, "Angle to the clean state after each block, in degrees", ".4g"),
        _matrix(cosines, "Mean alignment after each block: the cosine of that angle", ".7f"),
    )


def _map_words(quantity: str, absorption: Absorption, values: Array, unit: str) -> tuple[str, str]:
    return (
        f"{quantity} for every perturbed block and depth, {perturbation_words(absorption)}",
        f"A triangle: a row per perturbed block, a column per depth. {_range(values, unit)}",
    )


def perturbation_words(absorption: Absorption) -> str:
    """How a state was perturbed, in a few words."""
    return "the pruning perturbation" if absorption.eta is None else f"eta {absorption.eta:g}"


def _range(values: Array, unit: str = "") -> str:
    """The least and the greatest of all pairs, in a sentence."""
    if np.isnan(values).all():
        return "No value is known."
    ends = []
    for word, at in (("Least", int(np.nanargmin(values))), ("greatest", int(np.nanargmax(values)))):
        row, column = divmod(at, values.shape[1])
        ends.append(
            f"{word} {values[row, column]:.3g}{unit} (block {row} perturbed, after block {column})"
        )
    return ", ".join(ends) + "."


def _map(values: Array, unit: str) -> list[str]:
    """The cells of a triangle, a path per colour, and the legend in the free corner."""
    count = len(values)
    known = values[np.isfinite(values) & (values > scales.LEAST)]
    low, high = (float(known.min()), float(known.max())) if known.size else (1.0, 1.0)
    width, height = (scales.RIGHT - scales.LEFT) / count, (scales.BOTTOM - scales.TOP) / count
    cells: list[list[str]] = [[] for _ in range(svg.CLASSES)]
    written = []
    for i in range(count):
        for k in range(i, count):
            value = values[i, k]
            if isnan(value):
                continue
            css = _class(value, low, high)
            cells[css].append(f"M{k} {i}h1v1h-1z")
            if count <= WRITTEN:
                at = scales.LEFT + (k + 0.5) * width, scales.TOP + (i + 0.5) * height + 4
                written.append(
                    svg.label(
                        *at,
                        format(value, ".3g" if count <= WIDE else ".2g"),
                        f"in i{css}",
                        "middle",
                    )
                )
    parts = [
        f'<g class="cells" data-count="{count}" transform="translate({scales.LEFT} {scales.TOP}) '
        f'scale({width:.4f} {height:.4f})">',
        *(f'<path class="q{css}" d="{"".join(d)}"/>' for css, d in enumerate(cells) if d),
        "</g>",
        *written,
    ]
    for i in (int(tick) for tick in scales.block_ticks(count)):
        x, y = scales.LEFT + (i + 0.5) * width, scales.TOP + (i + 0.5) * height
        parts.append(svg.label(x, scales.BOTTOM + 17, str(i), anchor="middle"))
        parts.append(svg.label(scales.LEFT - 6, y, str(i), "tick mid", "end"))
    middle = (scales.LEFT + scales.RIGHT) / 2
    parts.append(svg.label(middle, scales.BOTTOM + 36, "after block", "name", "middle"))
    parts.append(svg.label(6, 18, "perturbed block", "name"))
    return [*parts, *_legend(low, high, unit)] if count > 2 else parts


def _legend(low: float, high: float, unit: str) -> list[str]:
    """The meaning of the colours of a map, in its free corner."""
    left, top, size = scales.LEFT + 14, scales.BOTTOM - 32, 13
    parts = [
        f'<rect class="q{css}" x="{left + size * css}" y="{top}" width="{size}" height="{size}"/>'
        for css in range(svg.CLASSES)
    ]
    end = left + size * svg.CLASSES
    parts.append(svg.label(left, top + size + 13, f"{low:.2g}{unit}"))
    parts.append(svg.label(end, top + size + 13, f"{high:.2g}{unit}", anchor="end"))
    parts.append(svg.label(left, top - 6, "log scale"))
    return parts


def _class(value: float, low: float, high: float) -> int:
    """The colour of a value, from 0, on a logarithmic scale."""
    if value <= low or high <= low:
        return 0 if high > low else svg.CLASSES // 2
    share = log10(value / low) / log10(high / low)
    return min(int(share * svg.CLASSES), svg.CLASSES - 1)


def _matrix(values: Array, caption: str, form: str) -> Table:
    """A table with a row per perturbed block and a column per depth."""
    count = len(values)
    return Table(
        caption,
        ["perturbed", *(f"after {k}" for k in range(count))],
        [
            [str(i), *("" if k < i else number(values[i, k], form) for k in range(count))]
            for i in range(count)
        ],
        "A row is a perturbed block, a column the block after which the state is measured.",
    )
