"""Plain SVG as text: axes, lines and marks. The stylesheet has the colours and sizes."""

from collections.abc import Iterator, Sequence
from html import escape
from math import isfinite, nan
from textwrap import wrap

from refimpl.report.scales import RIGHT, TOP, WIDTH, AxisScale

SHAPES = (  # so that marks differ without colour
    "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "m-2.8-2.8h5.6v5.6h-5.6z",
    "m0-4.6l4.2 7.2h-8.4z",
    "m0 4.6l4.2-7.2h-8.4z",
    "m0-4l4 4l-4 4l-4-4z",
    "m-3.4-1h2.4v-2.4h2v2.4h2.4v2h-2.4v2.4h-2v-2.4h-2.4z",
    "m-1.9 0a1.9 1.9 0 1 0 3.8 0a1.9 1.9 0 1 0-3.8 0z",
    "m0-6l6 6l-6 6l-6-6z",
    "m-4.2-4.2h8.4v8.4h-8.4z",
)
CIRCLE, SQUARE, UP, DOWN, DIAMOND, PLUS, DOT, LARGE_DIAMOND, LARGE_SQUARE = range(9)
CYCLE = 6  # shapes of the same size
CLASSES = 9  # colours of a ramp
LINE = 15  # height of a line of a heading
FEW_NAMES, MANY_NAMES = 16, 32  # at most, at the ends of lines in a small and a large picture


def units(value: float) -> str:
    """A coordinate with one decimal, as short as possible: "3", "0" (not "-0"), "12.5"."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def label(x: float, y: float, text: str, css: str = "tick", anchor: str = "start") -> str:
    """A text, escaped: it may come from a file."""
    side = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{css}" x="{units(x)}" y="{units(y)}"{side}>{escape(text)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<path class="{css}" d="M{units(x1)} {units(y1)}L{units(x2)} {units(y2)}"/>'


def level(x: AxisScale, y: AxisScale, value: float, css: str) -> list[str]:
    """A horizontal line at a value of y, and the value at its right end."""
    at = y(value)
    return [
        line(x.start, at, x.end, at, css),
        label(x.end + 4, at, f"{value:.4g}", "tick mid"),
    ]


def axes(
    x: AxisScale,
    y: AxisScale,
    names: tuple[str, str],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float] | None = None,
) -> list[str]:
    """Grid lines, ticks (of y: round values if None), and the names of both axes."""
    parts = []
    for value in y.ticks() if y_ticks is None else y_ticks:
        parts.append(line(x.start, y(value), x.end, y(value), "grid"))
        parts.append(label(x.start - 6, y(value), f"{value:g}", "tick mid", "end"))
    for value in x_ticks:
        parts.append(line(x(value), y.start, x(value), y.start + 4, "grid"))
        parts.append(label(x(value), y.start + 17, f"{value:g}", anchor="middle"))
    parts.append(line(x.start, y.start, x.end, y.start, "axis"))
    parts.append(label((x.start + x.end) / 2, y.start + 36, names[0], "name", "middle"))
    parts.append(label(6, 18, names[1], "name"))
    return parts


def runs(points: Sequence[tuple[float, float]]) -> Iterator[tuple[int, list[tuple[float, float]]]]:
    """Unbroken runs of known points, each with the index of its first point."""
    start = 0
    for i, (x, y) in enumerate([*points, (nan, 0.0)]):
        if not (isfinite(x) and isfinite(y)):
            if i > start:
                yield start, list(points[start:i])
            start = i + 1


def trail(points: Sequence[tuple[float, float]], css: str, row: int, column: int = 0) -> list[str]:
    """A line for every unbroken run of known points; the script reads their table for tooltips.

    The first point is in the table at `row` and `column`, the others to the right of it; with
    column 0 each point has a row of its own, each below the previous one.
    """
    return [
        f'<polyline class="{css}" data-row="{row if column else row + start}" '
        f'data-col="{column and column + start}" '
        f'points="{" ".join(f"{units(x)},{units(y)}" for x, y in run)}"/>'
        for start, run in runs(points)
    ]


def marks(points: Sequence[tuple[float, float]], shape: int, css: str) -> str:
    """Markers at the known points, as one element."""
    shown = "".join(
        f"M{units(x)} {units(y)}{SHAPES[shape]}" for x, y in points if isfinite(x) and isfinite(y)
    )
    return f'<path class="{css}" d="{shown}"/>' if shown else ""


def bars(points: Sequence[tuple[float, float, float]], css: str, sideways: bool = False) -> str:
    """Error bars with caps, as one element: position, from, to; NaN if unknown."""
    shown = []
    for at, low, high in points:
        if isfinite(at) and isfinite(low) and isfinite(high):
            for a, b in (
                ((at, low), (at, high)),
                *(((at - 2, v), (at + 2, v)) for v in (low, high)),
            ):
                (x1, y1), (x2, y2) = (a[::-1], b[::-1]) if sideways else (a, b)
                shown.append(f"M{units(x1)} {units(y1)}L{units(x2)} {units(y2)}")
    return f'<path class="{css}" d="{"".join(shown)}"/>' if shown else ""


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones and at least a gap apart, if there is room for that."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    positions, least, most = list(wanted), low, high
    for i in order:
        positions[i] = least = max(positions[i], least)
        least += gap
    for i in reversed(order):
        positions[i] = most = min(positions[i], most)
        most -= gap
    return positions


def shade(i: int, count: int) -> int:
    """The colour of a block, on a ramp from the first to the last."""
    return round((CLASSES - 1) * i / max(count - 1, 1))


def place(scale: AxisScale, value: float) -> float:
    """A position on a scale; NaN if the value has none."""
    return scale(value) if isfinite(value) and (value > 0 or not scale.log) else nan


def names(ends: Sequence[float], end: float, bottom: float, large: bool = False) -> list[str]:
    """The numbers of the blocks at the right ends of their lines, with a thread to moved ones.

    `ends` are vertical positions, NaN for none. For a picture that is shown large, a second set
    with more names is added; the stylesheet hides one of them.
    """
    parts = []
    for most, gap, css in ((FEW_NAMES, 13.0, " few"), (MANY_NAMES, 7.5, " many"))[: 1 + large]:
        every = -(-len(ends) // most)
        named = [i for i in range(len(ends)) if i % every == 0 and isfinite(ends[i])]
        for i, at in zip(
            named, spread([ends[i] for i in named], gap, TOP + 6, bottom - 2), strict=True
        ):
            shown = css if large else ""
            parts.append(line(end + 3, ends[i], RIGHT + 14, at, f"thread{shown}"))
            parts.append(label(RIGHT + 17, at, str(i), f"end mid{shown}"))
    return parts


def legend(entries: Sequence[tuple[str, int, str]]) -> list[str]:
    """The meaning of the marks, at the top right."""
    parts, at = [], RIGHT + 30
    for css, shape, text in reversed(entries):
        at -= 14 + 7 * len(text)
        parts.append(marks([(at, 14)], shape, css))
        parts.append(label(at + 8, 18, text))
        at -= 12
    return parts


def picture(
    ident: str,
    title: str,
    description: str,
    parts: Sequence[str],
    height: float,
    heading: tuple[str, str],
    alone: bool = False,
) -> str:
    """The SVG element, of the width of all pictures, with a title and description as text.

    The heading, its title and its settings, stands above the picture in a file of its own
    (`alone`), or when the page's script saves it; the page hides it.
    """
    lines = [(line, "title") for line in wrap(heading[0], 58)]
    lines += [(line, "settings") for line in wrap(heading[1], 86)]
    above = 12 + LINE * len(lines)
    frame, whole = f"0 0 {WIDTH} {units(height)}", f"0 -{above} {WIDTH} {units(height + above)}"
    texts = [label(6, 10 + LINE * (n + 1) - above, *line) for n, line in enumerate(lines)]
    size = f'width="{WIDTH}" height="{units(height + above)}"'
    paper = f'<rect class="paper" y="-{above}" {size}/>'
    names = f'xmlns="http://www.w3.org/2000/svg" {size}' if alone else f'data-whole="{whole}"'
    return (
        f'<svg role="img" viewBox="{whole if alone else frame}" {names} '
        f'aria-labelledby="{ident}-t {ident}-d">\n<title id="{ident}-t">{escape(title)}</title>\n'
        f'<desc id="{ident}-d">{escape(description)}</desc>\n'
        f'<g class="heading">{paper}{"".join(texts)}</g>\n'
        + "\n".join(part for part in parts if part)
        + "\n</svg>"
    )
