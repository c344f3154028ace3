"""A figure as SVG. Axes, marks and legends are drawn here only; the stylesheet has the colours."""

from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from itertools import pairwise
from math import isfinite, nan
from textwrap import wrap

import numpy as np

from refimpl.report import figure as fig

WIDTH, TOP, BELOW = 440, 34, 46  # of a picture; above and below the part with the marks
MORE = 60  # additional height of a large picture
SHAPES = {  # so that marks differ without colour; the first ones, of one size, for lines
    "circle": "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "square": "m-2.8-2.8h5.6v5.6h-5.6z",
    "up": "m0-4.6l4.2 7.2h-8.4z",
    "down": "m0 4.6l4.2-7.2h-8.4z",
    "diamond": "m0-4l4 4l-4 4l-4-4z",
    "plus": "m-3.4-1h2.4v-2.4h2v2.4h2.4v2h-2.4v2.4h-2v-2.4h-2.4z",
    "dot": "m-1.9 0a1.9 1.9 0 1 0 3.8 0a1.9 1.9 0 1 0-3.8 0z",
    "large diamond": "m0-6l6 6l-6 6l-6-6z",
    "large square": "m-4.2-4.2h8.4v8.4h-8.4z",
}
CYCLE = [*SHAPES][:6]
CLASSES = 9  # colours of a ramp
LINE = 15  # height of a line of a heading
ENTRY = 16  # height of a line of a legend
NAMES = 16  # at most, at the ends of lines
WRITTEN, WIDE = 8, 5  # up to so many blocks, cells hold their numbers; up to so many, in 3 digits


def units(value: float) -> str:
    """A coordinate with one decimal, as short as possible: "3", "0" (not "-0"), "12.5"."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _text(x: float, y: float, text: str, css: str = "tick", anchor: str = "start") -> str:
    """A text, escaped: it may come from a file."""
    side = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{css}" x="{units(x)}" y="{units(y)}"{side}>{escape(text)}</text>'


def _marks(points: Sequence[fig.Point], shape: str, css: str) -> str:
    """Markers at the known points, as one element; none without a shape."""
    known = [f"{units(x)} {units(y)}" for x, y in points if shape and isfinite(x + y)]
    shown = "".join(f"M{at}{SHAPES[shape]}" for at in known)
    return f'<path class="{css}" d="{shown}"/>' if shown else ""


def _trail(points: Sequence[fig.Point], css: str, row: int, column: int = 0) -> list[str]:
    """A line for every unbroken run of known points; the script reads their table for tooltips."""
    gaps = [-1, *(i for i, at in enumerate(points) if not isfinite(sum(at))), len(points)]
    return [
        f'<polyline class="{css}" data-row="{row if column else row + start + 1}" '
        f'data-col="{column and column + start + 1}" '
        f'points="{" ".join(f"{units(x)},{units(y)}" for x, y in points[start + 1 : end])}"/>'
        for start, end in pairwise(gaps)
        if end > start + 1
    ]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones and at least a gap apart, if there is room for that."""
    order, count = np.argsort(wanted, kind="stable"), len(wanted)
    steps = min(gap, (high - low) / max(count - 1, 1)) * np.arange(count)
    least = np.maximum.accumulate(np.maximum(np.array(wanted)[order] - steps, low))
    most = np.minimum(least, high - steps[-1:])
    return (most + steps)[np.argsort(order)].tolist()


class _Drawing:
    """The elements of a figure: its axes, its marks in their order, and legends."""

    def __init__(self, figure: fig.ReportFigure) -> None:
        self.figure, self.parts = figure, list[str]()
        self.left, self.right = figure.edges
        self.bottom = TOP + figure.height + MORE * figure.large
        self.height = self.bottom + BELOW  # of the picture; a legend adds to it
        self.x = partial(figure.x.position, start=self.left, end=self.right)
        self.y = partial(figure.y.position, start=self.bottom, end=TOP)
        self.lines = [mark for mark in figure.marks if isinstance(mark, fig.Line)]
        self.axes()
        for mark in figure.marks:
            self.draw(mark)
        if not figure.below:
            self.ends()
        self.legend()

    def at(self, points: Sequence[fig.Point]) -> list[fig.Point]:
        """Positions of points."""
        return [(self.x(a), self.y(b)) for a, b in points]

    def line(self, css: str, *points: fig.Point) -> None:
        """A line through positions."""
        way = "L".join(f"{units(x)} {units(y)}" for x, y in points)
        self.parts.append(f'<path class="{css}" d="M{way}"/>')

    def text(self, x: float, y: float, text: str, css: str = "tick", anchor: str = "start") -> None:
        """Words at a position, if there are any."""
        self.parts += [_text(x, y, text, css, anchor)] if text else []

    def axes(self) -> None:
        """Grid lines, ticks, and the names of both axes."""
        left, right, bottom, grid = self.left, self.right, self.bottom, self.figure.grid
        x, y = (
            axis.texts or {tick: f"{tick:g}" for tick in axis.ticks()}
            for axis in (self.figure.x, self.figure.y)
        )
        for value, text in y.items():
            at = self.y(value)
            if "y" in grid:
                self.line("grid", (left, at), (right, at))
            self.text(left - 6, at, text, "tick mid", "end")
        for value, text in x.items():
            at = self.x(value)
            self.line("grid", (at, TOP if "x" in grid else bottom), (at, bottom + 4))
            self.text(at, bottom + 17, text, anchor="middle")
        self.line("axis", (left, bottom), (right, bottom))
        self.text((left + right) / 2, bottom + 36, self.figure.x.name, "name", "middle")
        self.text(6, 18, self.figure.y.name, "name")

    def draw(self, mark: fig.Mark) -> None:
        """A mark."""
        match mark:
            case fig.Line(name, points, row, column, errors, every, style):
                i, points = self.lines.index(mark), self.at(points)
                color = round((CLASSES - 1) * i / max(len(self.lines) - 1, 1))
                color = color if style is None else style % CLASSES
                css, dot = f"line s{color} d{i % 4}", f"mark f{color}" if every else f"f{color}"
                shape = CYCLE[(i if style is None else style) % len(CYCLE)] if every else "dot"
                self.parts += _trail(points, css, row, column)
                ends = zip(mark.points, errors, strict=False)
                self.draw(
                    fig.Bars([(x, y - e, y + e) for (x, y), e in ends], f"s{color}", caps=True)
                )
                self.parts.append(_marks(points if every else points[:1], shape, dot))
                if self.figure.below:
                    self.entry(name, css, shape, dot)
            case fig.Points(points, css, shape, _, row):
                self.parts.append(_marks(self.at(points), shape, css))
                self.parts += [] if row is None else _trail(self.at(points), "hit", row)
            case fig.Bars(spans, css, _, _, name):
                path = "".join(stroke for span in spans for stroke in self.strokes(mark, *span))
                self.parts += [f'<path class="{css}" d="{path}"/>'] if path else []
                if name:
                    self.entry(name, css)
            case fig.Text(point, text, css, anchor, (right, down)):
                self.text(self.x(point[0]) + right, self.y(point[1]) + down, text, css, anchor)
            case fig.Cells():
                self.cells(mark)

    def strokes(self, bars: fig.Bars, at: float, *ends: float) -> Iterator[str]:
        """The strokes of a bar, none if it is unknown; what is outside ends at the edge."""
        along, across, axis = self.x, self.y, self.figure.y
        if bars.sideways:
            along, across, axis = self.y, self.x, self.figure.x
        middle = along(at)
        a, b = (across(max(end, axis.low) if axis.log else end) for end in ends)
        if isfinite(middle + a + b):
            caps = [((middle - 2, end), (middle + 2, end)) for end in (a, b) if bars.caps]
            for pair in [((middle, a), (middle, b)), *caps]:
                (x1, y1), (x2, y2) = (point[:: -1 if bars.sideways else 1] for point in pair)
                yield f"M{units(x1)} {units(y1)}L{units(x2)} {units(y2)}"

    def cells(self, mark: fig.Cells) -> None:
        """Cells, a path per colour, their numbers if there is room, and what tooltips read."""
        values, count = mark.values, len(mark.values)
        known = values[np.isfinite(values) & (values > fig.LEAST)]
        low, high = (float(known.min()), float(known.max())) if known.size else (1.0, 1.0)
        scale = fig.AxisScale("", low, high, log=True)
        width, height = (self.right - self.left) / count, (self.bottom - TOP) / count
        paths, written = [""] * CLASSES, list[fig.Text]()
        for i, k in zip(*np.nonzero(~np.isnan(values)), strict=True):
            color = CLASSES // 2
            if high > low:
                color = min(int(scale.position(max(values[i, k], low), 0, CLASSES)), CLASSES - 1)
            corner = f"M{units(self.left + k * width)} {units(TOP + i * height)}"
            paths[color] += f"{corner}h{units(width)}v{units(height)}h-{units(width)}z"
            text = f"{values[i, k]:{'.3g' if count <= WIDE else '.2g'}}"
            written.append(fig.Text((k, i), text, f"in i{color}", "middle", (0, 4)))
        self.parts.append('<g class="cells">')
        self.parts += [f'<path class="q{css}" d="{d}"/>' for css, d in enumerate(paths) if d]
        self.parts.append("</g>")
        for number in written if count <= WRITTEN else ():
            self.draw(number)
        for i, row in enumerate(values):
            points = [(k, i if isfinite(row[k]) else nan) for k in range(i, count)]
            self.parts += _trail(self.at(points), "hit", i, i + 1)
        if count > 2:  # the meaning of the colours, in the free corner
            left, top, size = self.left + 14, self.bottom - 32, 13
            for css in range(CLASSES):
                corner = f'x="{left + size * css}" y="{top}" width="{size}" height="{size}"'
                self.parts.append(f'<rect class="q{css}" {corner}/>')
            self.text(left, top + size + 13, f"{low:.2g}{mark.unit}")
            right = left + size * CLASSES
            self.text(right, top + size + 13, f"{high:.2g}{mark.unit}", anchor="end")
            self.text(left, top - 6, "log scale")

    def entry(self, name: str, css: str, shape: str = "", mark: str = "") -> None:
        """A line of the legend below the picture."""
        left, at = self.figure.edges[0], self.height + 8
        self.line(css, (left, at), (left + 32, at))
        self.parts.append(_marks([(left + 16, at)], shape, mark))
        self.text(left + 40, at, name, "tick mid")
        self.height += ENTRY

    def legend(self) -> None:
        """The meaning of the marks, at the top right."""
        points = (mark for mark in self.figure.marks if isinstance(mark, fig.Points) and mark.name)
        at = self.right + 30
        for css, shape, text in reversed(dict.fromkeys((x.css, x.shape, x.name) for x in points)):
            at -= 14 + 7 * len(text)
            self.parts.append(_marks([(at, 14)], shape, css))
            self.text(at + 8, 18, text)
            at -= 12

    def ends(self) -> None:
        """The names of lines at their right ends, with a thread to moved ones."""
        right = self.right + 14
        ends = [(*self.at(line.points[-1:])[0], line.name) for line in self.lines]
        named = [end for end in ends[:: -(-len(ends) // NAMES) or 1] if isfinite(end[1])]
        heights = spread([y for _, y, _ in named], 13.0, TOP + 6, self.bottom - 2)
        for (x, y, name), height in zip(named, heights, strict=True):
            self.line("thread", (x + 3, y), (right, height))
            self.text(right + 3, height, name, "end mid")


def picture(figure: fig.ReportFigure, style: str = "") -> str:
    """The SVG element, of the width of all pictures, with a title and description as text.

    With a style it is a file of its own: with its title and settings above, and the style in it.
    """
    drawing, ident = _Drawing(figure), figure.ident
    title, description = map(escape, figure.alternative)
    frame, opening, above = f"0 0 {WIDTH} {units(drawing.height)}", "", list[str]()
    if style:
        lines = [(line, "title") for line in wrap(figure.title, 58)]
        lines += [(line, "settings") for line in wrap(figure.settings, 86)]
        top = 12 + LINE * len(lines)
        size = f'width="{WIDTH}" height="{units(drawing.height + top)}"'
        frame = f"0 -{top} {WIDTH} {units(drawing.height + top)}"
        opening = f' xmlns="http://www.w3.org/2000/svg" {size}'
        above = [f"<style>\n{style}</style>", f'<rect class="paper" y="-{top}" {size}/>']
        above += [_text(6, 10 + LINE * (n + 1) - top, *line) for n, line in enumerate(lines)]
    parts = [
        f'<svg role="img" viewBox="{frame}"{opening} aria-labelledby="{ident}-t {ident}-d">',
        f'<title id="{ident}-t">{title}</title>',
        f'<desc id="{ident}-d">{description}</desc>',
    ]
    return "\n".join([*parts, *above, *filter(None, drawing.parts), "</svg>"])
