"""Pictures with a line per eta, per file or per pruning, over the blocks."""

from collections.abc import Mapping

from refimpl.model.ops import Array
from refimpl.report import scales, svg
from refimpl.report.html import ReportFigure, Table, number
from refimpl.show.header import counted


def compared_figure(ident: str, title: str, note: str, rows: Mapping[str, Array]) -> ReportFigure:
    """Coefficients of every block, a line per row."""
    return _lines_figure(ident, title, note, rows, ("absorption coefficient r", 1.0), log=True)


def sparsities_figure(
    ident: str, title: str, note: str, rows: Mapping[str, Array], target: float
) -> ReportFigure:
    """Sparsity of every block, a line per row."""
    return _lines_figure(ident, title, note, rows, ("fraction pruned", target), log=False)


def _lines_figure(
    ident: str,
    title: str,
    note: str,
    rows: Mapping[str, Array],
    level: tuple[str, float],
    log: bool,
) -> ReportFigure:
    """A line per row over the blocks, with a legend below, and a level to compare with."""
    count, (name, at) = max(map(len, rows.values())), level
    known = [float(v) for row in rows.values() for v in row]
    x, y = scales.blocks_axis(count), scales.vertical([at, *known], log)
    scale = f"{name}, log scale" if log else name
    parts = svg.axes(x, y, ("block", scale), scales.block_ticks(count))
    parts.append(svg.line(x.start, y(at), x.end, y(at), "one"))
    parts.append(svg.label(x.end + 4, y(at), f"{at:.4g}", "tick mid"))
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
        svg.picture(
            ident,
            title,
            f"{len(rows)} lines over {counted(count, 'block')}: {'; '.join(rows)}.",
            parts,
            scales.HEIGHT + 16 * len(rows),
        ),
        Table(
            f"{name} of every block".capitalize(),
            ["line", *(f"block {i}" for i in range(count))],
            [
                [whose, *(number(v, ".4f") for v in row), *[""] * (count - len(row))]
                for whose, row in rows.items()
            ],
        ),
    )
