"""The study's pictures, as plain SVG; their numbers are in the page's tables."""

from collections.abc import Mapping

import numpy as np
from effects import Row, agreement, change, nats
from grid import (
    CORRECTIONS,
    LINE,
    NONE,
    REPORTED,
    SIZE,
    Cell,
    Correction,
    best_two,
    controls,
    first_half,
)

COLORS = {"speech": "#1f5fa8", "novel": "#b2491f"}  # told apart by shape, too
EDGE = 40  # percent; larger changes are written at the edge, so that the others can be read
MODELS = ("#1f5fa8", "#b2491f", "#3f7f3f")


def signed(number: float) -> str:
    """A whole number with its sign, but for 0."""
    return f"{number:+.0f}" if number else "0"


def picture(done: Mapping[str, Row]) -> str:
    """Change of the perplexity by every correction on SmolLM2, uniform base, 60 %."""
    none = done[str(Cell(correction=NONE))]
    shown: list[Correction] = [LINE, *CORRECTIONS]
    if all(str(cell) in done for cell in first_half()):
        shown += controls(best_two({c: nats(done[str(c)], "tuning") for c in first_half()}))
    rows = [c for c in shown if str(Cell(correction=c)) in done]
    changes = {
        (c, text): change(done[str(Cell(correction=c))], none, text)
        for c in rows
        for text in REPORTED
    }
    low = min(0.0, *(m - 2 * e for m, e in changes.values()))
    high = min(EDGE, max(0.0, *(m + 2 * e for m, e in changes.values())))
    left, width, step, top = 420, 420, 18, 46
    height = top + step * len(rows) + 16

    def x(value: float) -> float:
        return left + width * (value - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" '
        'font-family="sans-serif" font-size="11" role="img">',
        "<title>Change of the perplexity for each correction, SmolLM2-135M, Wanda, 60 %</title>",
        "<desc>The numbers are in the tables of the page.</desc>",
        f'<rect width="{left + width + 20}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="14" fill="black">change of perplexity, %, with two standard errors: '
        f'<tspan fill="{COLORS["speech"]}">&#9679; speech</tspan> '
        f'<tspan fill="{COLORS["novel"]}">&#9632; novel</tspan></text>',
    ]
    for tick in np.arange(np.ceil(low / 10) * 10, high + 1e-9, 10):
        color = "black" if tick == 0 else "#cccccc"
        parts.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top - 8}" y2="{height - 8}" '
            f'stroke="{color}"/><text x="{x(tick):.1f}" y="{top - 14}" text-anchor="middle" '
            f'fill="black">{signed(tick)}</text>'
        )
    for i, c in enumerate(rows):
        y = top + step * i + step / 2
        parts.append(
            f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end" fill="black">{c}</text>'
        )
        for text, shift in (("speech", -3), ("novel", 3)):
            mean, error = changes[c, text]
            if mean > high:
                parts.append(
                    f'<text x="{left + width - (64 if text == "speech" else 0)}" y="{y + 4:.0f}" '
                    f'text-anchor="end" fill="{COLORS[text]}">{mean:+.0f} &#9656;</text>'
                )
                continue
            parts.append(
                f'<line x1="{x(mean - 2 * error):.1f}" x2="{x(mean + 2 * error):.1f}" '
                f'y1="{y + shift}" y2="{y + shift}" stroke="{COLORS[text]}" stroke-width="1.5"/>'
            )
            at = x(mean)
            parts.append(
                f'<circle cx="{at:.1f}" cy="{y + shift}" r="3" fill="{COLORS[text]}"/>'
                if text == "speech"
                else f'<rect x="{at - 2.5:.1f}" y="{y + shift - 2.5}" width="5" height="5" '
                f'fill="{COLORS[text]}"/>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def scatter(done: Mapping[str, Row]) -> str:
    """Change of the perplexity on `speech` against agreement with divergence, size 0.03."""
    points = []
    for row in done.values():
        none = done.get(str(Cell(row["model"], row["method"], row["sparsity"], row["base"], NONE)))
        like, c = agreement(row, done), row["correction"]
        if none is not None and like is not None and c["size"] == SIZE:
            points.append((like, change(row, none, "speech")[0], row))
    width, height, left, top = 560, 340, 60, 40
    high = max([1.0, *(y for _, y, _ in points)]) + 1
    low = min([-1.0, *(y for _, y, _ in points)]) - 1

    def at(like: float, y: float) -> tuple[float, float]:
        return left + (like + 1) / 2 * width, top + (high - y) / (high - low) * height

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} '
        f'{top + height + 50}" font-family="sans-serif" font-size="11" role="img">',
        "<title>Change of the perplexity over agreement with divergence</title>",
        "<desc>The numbers are in the tables of the page.</desc>",
        f'<rect width="{left + width + 20}" height="{top + height + 50}" fill="white"/>',
        f'<text x="{left}" y="16">change of perplexity on speech, %; corrections of size 0.03'
        "</text>",
        f'<text x="{left}" y="{top + height + 36}">agreement: correlation over the blocks with '
        "divergence</text>",
    ]
    for like in (-1, -0.5, 0, 0.5, 1):
        x, y = at(like, low)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{y:.1f}" stroke="#cccccc"/>'
            f'<text x="{x:.1f}" y="{y + 14:.1f}" text-anchor="middle">{like:+g}</text>'
        )
    for value in np.arange(np.ceil(low / 5) * 5, high, 5):
        x, y = at(-1, value)
        color = "black" if value == 0 else "#cccccc"
        parts.append(
            f'<line x1="{x}" x2="{x + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="{color}"/>'
            f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{signed(value)}</text>'
        )
    models = list(dict.fromkeys(row["model"] for *_, row in points))
    for like, y_value, row in points:
        x, y = at(like, y_value)
        control = row["correction"]["change"] or row["correction"]["quantity"] == "line"
        color = MODELS[models.index(row["model"]) % 3]
        fill = "none" if control else color
        name = f"{row['cell']}: {y_value:+.1f} %, agreement {like:+.2f}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{fill}" stroke="{color}">'
            f"<title>{name}</title></circle>"
        )
    for i, model in enumerate(models):
        color = MODELS[i % 3]
        parts.append(f'<text x="{left + 8}" y="{top + 14 + 14 * i}" fill="{color}">{model}</text>')
    open_ones = top + 14 + 14 * len(models)
    parts.append(f'<text x="{left + 8}" y="{open_ones}">open circles: controls</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
