"""Perplexity against sparsity, by allocation, one panel per pruner and model, as plain SVG."""

from collections.abc import Mapping
from math import log

from effects import Row, nats
from grid import REPORTED
from measured_table import PRUNERS, SHORT, places, usual

COLORS = {
    "uniform": "#666666", "owl": "#3f7f3f", "alphapruning": "#8a5fa8", "dlp": "#1f5fa8",
    "lsa": "#b07a1f", "divergence": "#b2491f",
}  # fmt: skip
DASHES = {"uniform": "2 3", "owl": "6 3", "alphapruning": "8 3 2 3", "dlp": "4 2", "lsa": "1 2"}
WIDTH, HEIGHT, LEFT, TOP, GAP = 210, 240, 56, 46, 70
DRAWN = "wanda", "sparsegpt"  # a row of panels for each, a column for each model
TICKS = (20, 50, 100, 200, 500, 1000, 2000, 5000)


def picture(done: Mapping[str, Row]) -> str:
    """The geometric mean of both texts' perplexities, logarithmic, of the first seed."""
    panels: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for (model, method, sparsity), every in places(done).items():
        for name, row in usual(every).items():
            if name in COLORS and method in DRAWN:
                middle = sum(nats(row, text) for text in REPORTED) / len(REPORTED)
                lines = panels.setdefault((method, model), {})
                lines.setdefault(name, []).append((sparsity, middle))
    found = [middle for lines in panels.values() for line in lines.values() for _, middle in line]
    span = min(found) - 0.1, max(found) + 0.1
    models, bottom = list(SHORT), TOP + len(DRAWN) * (HEIGHT + GAP)
    total = LEFT + len(models) * (WIDTH + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {bottom}" '
        'font-family="sans-serif" font-size="11" role="img">',
        "<title>Perplexity against sparsity, by allocation, with Wanda and SparseGPT</title>",
        "<desc>The numbers are in the table of the page.</desc>",
        f'<rect width="{total}" height="{bottom}" fill="white"/>',
    ]
    for (method, model), lines in panels.items():
        column, row = models.index(model), DRAWN.index(method)
        corner = LEFT + column * (WIDTH + GAP), TOP + row * (HEIGHT + GAP)
        parts += panel(f"{SHORT[model]}, {PRUNERS[method]}", lines, corner, span)
    for i, (name, color) in enumerate(COLORS.items()):
        x, y = LEFT + 110 * i, bottom - 16
        words = "measured divergence" if name == "divergence" else name
        parts.append(
            f'<line x1="{x}" x2="{x + 24}" y1="{y - 4}" y2="{y - 4}" {stroke(name)}/>'
            f'<text x="{x + 28}" y="{y}" fill="{color}">{words}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def stroke(name: str) -> str:
    """How an allocation's line is drawn."""
    width, dashes = 2.5 if name == "divergence" else 1.5, DASHES.get(name, "none")
    color = f'stroke="{COLORS[name]}" fill="none"'
    return f'{color} stroke-width="{width}" stroke-dasharray="{dashes}"'


def panel(
    name: str,
    lines: Mapping[str, list[tuple[float, float]]],
    corner: tuple[int, int],
    span: tuple[float, float],
) -> list[str]:
    """One pruner and model: axes, and a line per allocation."""
    (left, top), (low, high) = corner, span

    def x(sparsity: float) -> float:
        return left + WIDTH * (sparsity - 0.48) / 0.24

    def y(middle: float) -> float:
        return top + HEIGHT * (high - middle) / (high - low)

    parts = [f'<text x="{left}" y="{top - 16}" font-size="13" fill="black">{name}</text>']
    for tick in TICKS:
        if low <= log(tick) <= high:
            at = y(log(tick))
            parts.append(
                f'<line x1="{left}" x2="{left + WIDTH}" y1="{at:.1f}" y2="{at:.1f}" '
                f'stroke="#dddddd"/><text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end" '
                f'fill="black">{tick}</text>'
            )
    for sparsity in (0.5, 0.6, 0.7):
        parts.append(
            f'<text x="{x(sparsity):.1f}" y="{top + HEIGHT + 16}" text-anchor="middle" '
            f'fill="black">{sparsity:.0%}</text>'
        )
    for allocation in COLORS:
        points = [(x(s), y(m)) for s, m in sorted(lines.get(allocation, []))]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" {stroke(allocation)}/>')
        parts += [
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{COLORS[allocation]}"/>'
            for a, b in points
        ]
    return parts
