"""Pictures with a line per eta, per file or per pruning, over the blocks."""

from collections.abc import Mapping

from refimpl.model.ops import Array
from refimpl.report import scales, svg
from refimpl.report.html import ReportFigure, Table
from refimpl.show.header import counted
from refimpl.show.numbers import number


def lines_figure(
    ident: str, title: str, note: str, rows: Mapping[str, Array], target: float | None = None
) -> ReportFigure:
    """Sparsities and their target, or without one, coefficients of every block; a line per row."""
    log, at = target is None, 1.0 if target is None else target
    name = "absorption coefficient r" if log else "fraction pruned"
    count = max(map(len, rows.values()))
    values = [float(v) for row in rows.values() for v in row]
    x, y = scales.blocks_axis(count), scales.vertical([at, *values], log)
    names = ("block", f"{name}, log scale" if log else name)
    parts = svg.axes(x, y, names, scales.block_ticks(count)) + svg.level(x, y, at, "one")
    for j, (whose, row) in enumerate(rows.items()):
        points = [(x(i), svg.place(y, v)) for i, v in enumerate(row)]
        color, below = svg.shade(j, len(rows)), scales.HEIGHT + 16 * j
        css = f"line s{color} d{j % 4}"
        parts += svg.trail(points, css, j, 1)
        parts.append(svg.marks(points, j % svg.CYCLE, f"mark f{color}"))
        parts.append(svg.line(scales.LEFT, below, scales.LEFT + 32, below, css))
        parts.append(svg.marks([(scales.LEFT + 16, below)], j % svg.CYCLE, f"mark f{color}"))
        parts.append(svg.label(scales.LEFT + 40, below, whose, "tick mid"))
    return ReportFigure(
        ident,
        title,
        note,
        (title, f"{len(rows)} lines over {counted(count, 'block')}: {'; '.join(rows)}."),
        parts,
        Table(
            f"{name} of every block".capitalize(),
            ["line", *(f"block {i}" for i in range(count))],
            [
                [whose, *(number(v, ".4f") for v in row), *[""] * (count - len(row))]
                for whose, row in rows.items()
            ],
        ),
        height=scales.HEIGHT + 16 * len(rows),
    )
