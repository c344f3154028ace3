"""A figure as data (words, axes, marks, the table of its numbers), and the SVG of it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib.resources import files
from itertools import pairwise
from math import ceil, floor, isfinite, log10, nan
from textwrap import wrap
from typing import NamedTuple

import numpy as np

from refimpl.model.ops import Array
from refimpl.show.table import Table

LEAST, MOST = 1e-100, 1e100  # limits of the values that are drawn
TICK_STEPS = (1, 2, 5, 10)
ALL = 12  # up to so many blocks, each has a tick
FACTOR = 10  # ratio of the largest to the smallest value above which a scale may be logarithmic
ROOM = 0.1  # at either end of an axis, a share of the whole
LOG = ", log scale"
Point = tuple[float, float]


@dataclass(frozen=True)
class AxisScale:
    """An axis: its name, and its scale from `low` (left, bottom) to `high` (right, top).

    Its ticks are texts by value, or round values.
    """

    name: str
    low: float
    high: float
    log: bool = False
    texts: Mapping[float, str] | None = None

    def position(self, value: float, start: float, end: float) -> float:
        """The position of a value, the nearer end if it lies outside; NaN if it has none."""
        if not isfinite(value) or (self.log and value <= 0):
            return nan
        value = sorted((self.low, value, self.high))[1]
        low, high, value = (log10(x) if self.log else x for x in (self.low, self.high, value))
        return start + (end - start) * (value - low) / (high - low)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values from low to high, about `count` of them."""
        if self.log and len(ticks := _log_ticks(self.low, self.high, count)) > 2:
            return ticks
        rough = (self.high - self.low) / count
        power = 10.0 ** floor(log10(rough))
        step = next(n * power for n in TICK_STEPS if n * power >= rough * 0.999)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Round multiples of every power of ten; only the powers if there are too many."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [tick for p in powers for n in steps if low <= (tick := float(f"{n}e{p}")) <= high]
        if len(ticks) <= count + 2:
            return ticks
    return ticks[:: ceil(len(ticks) / count)]


def spanning(
    name: str,
    values: Iterable[float] | Array,
    log: bool | None = False,
    errors: Iterable[float] | Array = (0.0,),
) -> AxisScale:
    """An axis for values and their errors, with a tenth of the whole free at either end.

    With None for `log`, it is logarithmic if the values differ much. Unknown values are ignored.
    """
    middle, off = np.array([*values]), np.array([*errors])
    if log is None:
        known = middle[np.isfinite(middle)]
        log = bool(known.size and known.min() > 0 and known.max() / known.min() > FACTOR)
    every = np.concatenate([middle, middle - off, middle + off])
    known = every[(every > LEAST) & (every < MOST) if log else np.isfinite(every)]
    low, high = (float(known.min()), float(known.max())) if known.size else (1.0, 1.0)
    if log:
        factor = max((high / low) ** ROOM, 1.02 if high > low * 1.001 else 1.5)
        return AxisScale(name + LOG, max(low / factor, LEAST), min(high * factor, MOST), True)
    more = (high - low) * ROOM or max(abs(high), 1.0) * ROOM
    return AxisScale(name, low - more, high + more)


def blocks_axis(name: str, count: int) -> AxisScale:
    """An axis with a place for every block, and ticks at some."""
    ticks = AxisScale("", 0, max(count - 1, 1)).ticks(count if count <= ALL else 6)
    texts = {x: f"{x:g}" for x in ticks if x < count and x.is_integer()}
    return AxisScale(name, -0.5, count - 0.5, texts=texts)


class Line(NamedTuple):
    """A line; its colour, dashes and shape follow from its place among the lines, or from `style`.

    With a style, they are the same in every picture. All points have marks, or only the first.
    """

    name: str
    points: Sequence[Point]
    errors: Sequence[float] = ()
    every: bool = True
    style: int | None = None


class Points(NamedTuple):
    """Marks of a shape; a name stands below the picture."""

    points: Sequence[Point]
    css: str
    shape: str
    name: str = ""


class Bars(NamedTuple):
    """Bars, (position, from, to) each: upright or sideways. A name stands below the picture."""

    spans: Sequence[tuple[float, float, float]]
    css: str
    caps: bool = False
    sideways: bool = False
    name: str = ""


class Text(NamedTuple):
    """Words beside a point, moved by so many units of the picture."""

    point: Point
    text: str
    css: str = "tick"
    anchor: str = "start"
    move: Point = (0, 0)


Mark = Line | Points | Bars | Text


def whiskers(values: Array, errors: Array) -> list[tuple[float, float, float]]:
    """The spans of one error to either side of the values that have one, each at its index."""
    pairs = enumerate(zip(values, errors, strict=True))
    return [(i, value - e, value + e) for i, (value, e) in pairs if e > 0]


def level(x: AxisScale, value: float, css: str, name: str = "") -> list[Mark]:
    """A line from left to right, and its value at the right end; none if the value is unknown."""
    bar = Bars([(value, x.low, x.high)], css, sideways=True, name=name)
    text = Text((x.high, value), f"{value:.4g}", "tick mid", move=(4, 0))
    return [bar, text] if isfinite(value) else []


@dataclass(frozen=True)
class ReportFigure:
    """A picture, how to read it, its title and description as text, and its numbers."""

    ident: str
    title: str
    note: str
    alternative: tuple[str, str]
    table: Table
    x: AxisScale
    y: AxisScale
    marks: Sequence[Mark]
    height: float = 250
    settings: str = ""

    @property
    def file_name(self) -> str:
        """The name of its files, without an ending."""
        return f"{self.ident}-{re.sub('[^a-z0-9]+', '-', self.title.lower()).strip('-')}"


WIDTH, TOP, BELOW = 440, 34, 46  # of a picture; above and below the part with the marks
LEFT, RIGHT = 62, 400  # edges of that part
SHAPES = {  # so that marks differ without colour; the first ones, of one size, for lines
    "circle": "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "square": "m-2.8-2.8h5.6v5.6h-5.6z",
    "up": "m0-4.6l4.2 7.2h-8.4z",
    "down": "m0 4.6l4.2-7.2h-8.4z",
    "diamond": "m0-4l4 4l-4 4l-4-4z",
    "plus": "m-3.4-1h2.4v-2.4h2v2.4h2.4v2h-2.4v2.4h-2v-2.4h-2.4z",
    "dot": "m-1.9 0a1.9 1.9 0 1 0 3.8 0a1.9 1.9 0 1 0-3.8 0z",
}
CYCLE = [*SHAPES][:6]
CLASSES = 9  # colours of a ramp
LINE = 15  # height of a line of a heading
ENTRY = 16  # height of a line of a legend
NAMES, SHORT = 16, 3  # at most so many names at the ends of lines, each of so many characters


def units(value: float) -> str:
    """A coordinate with one decimal, as short as possible: "3", "0" (not "-0"), "12.5"."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _text(x: float, y: float, text: str, css: str = "tick", anchor: str = "start") -> str:
    """A text, escaped: it may come from a file."""
    side = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{css}" x="{units(x)}" y="{units(y)}"{side}>{escape(text)}</text>'


def _marker(x: float, y: float, shape: str, css: str, says: str = "") -> str:
    """A mark, and what a browser says of it where the mouse is."""
    title = f"<title>{escape(says)}</title>" if says else ""
    return f'<path class="{css}" d="M{units(x)} {units(y)}{SHAPES[shape]}">{title}</path>'


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones and at least a gap apart, if there is room for that."""
    order, count = np.argsort(wanted, kind="stable"), len(wanted)
    steps = min(gap, (high - low) / max(count - 1, 1)) * np.arange(count)
    least = np.maximum.accumulate(np.maximum(np.array(wanted)[order] - steps, low))
    most = np.minimum(least, high - steps[-1:])
    return (most + steps)[np.argsort(order)].tolist()


class _Drawing:
    """The elements of a figure: its axes, its marks in their order, and legends."""

    def __init__(self, figure: ReportFigure) -> None:
        self.figure, self.parts = figure, list[str]()
        self.bottom = TOP + figure.height
        self.height = self.bottom + BELOW  # of the picture; a legend adds to it
        self.x = partial(figure.x.position, start=LEFT, end=RIGHT)
        self.y = partial(figure.y.position, start=self.bottom, end=TOP)
        self.lines = [mark for mark in figure.marks if isinstance(mark, Line)]
        self.below = any(len(line.name) > SHORT for line in self.lines)  # names do not fit beside
        self.axes()
        for mark in figure.marks:
            self.draw(mark)
        if not self.below:
            self.ends()

    def line(self, css: str, *points: Point) -> None:
        """A line through positions."""
        way = "L".join(f"{units(x)} {units(y)}" for x, y in points)
        self.parts.append(f'<path class="{css}" d="M{way}"/>')

    def text(self, x: float, y: float, text: str, css: str = "tick", anchor: str = "start") -> None:
        """Words at a position, if there are any."""
        self.parts += [_text(x, y, text, css, anchor)] if text else []

    def axes(self) -> None:
        """Grid lines, ticks, and the names of both axes."""
        bottom = self.bottom
        x, y = (
            axis.texts or {tick: f"{tick:g}" for tick in axis.ticks()}
            for axis in (self.figure.x, self.figure.y)
        )
        for value, text in y.items():
            at = self.y(value)
            self.line("grid", (LEFT, at), (RIGHT, at))
            self.text(LEFT - 6, at, text, "tick mid", "end")
        for value, text in x.items():
            at = self.x(value)
            self.line("grid", (at, bottom), (at, bottom + 4))
            self.text(at, bottom + 17, text, anchor="middle")
        self.line("axis", (LEFT, bottom), (RIGHT, bottom))
        self.text((LEFT + RIGHT) / 2, bottom + 36, self.figure.x.name, "name", "middle")
        self.text(6, 18, self.figure.y.name, "name")

    def draw(self, mark: Mark) -> None:
        """A mark."""
        match mark:
            case Line(name, points, errors, every, style):
                i = self.lines.index(mark)
                color = round((CLASSES - 1) * i / max(len(self.lines) - 1, 1))
                color = color if style is None else style % CLASSES
                css, dot = f"line s{color} d{i % 4}", f"mark f{color}" if every else f"f{color}"
                shape = CYCLE[(i if style is None else style) % len(CYCLE)] if every else "dot"
                self.trail(mark, css)
                ends = zip(points, errors, strict=False)
                self.draw(Bars([(x, y - e, y + e) for (x, y), e in ends], f"s{color}", caps=True))
                self.markers(points if every else points[:1], shape, dot, name)
                if self.below:
                    self.entry(name, css, shape, dot)
            case Points(points, css, shape, name):
                self.markers(points, shape, css, name)
                if name:
                    self.entry(name, "", shape, css)
            case Bars(spans, css, _, _, name):
                path = "".join(stroke for span in spans for stroke in self.strokes(mark, *span))
                self.parts += [f'<path class="{css}" d="{path}"/>'] if path else []
                if name:
                    self.entry(name, css)
            case Text(point, text, css, anchor, (right, down)):
                self.text(self.x(point[0]) + right, self.y(point[1]) + down, text, css, anchor)

    def trail(self, line: Line, css: str) -> None:
        """A line for every unbroken run of known points."""
        points = [(self.x(a), self.y(b)) for a, b in line.points]
        gaps = [-1, *(i for i, at in enumerate(points) if not isfinite(sum(at))), len(points)]
        for start, end in pairwise(gaps):
            way = " ".join(f"{units(x)},{units(y)}" for x, y in points[start + 1 : end])
            title = f"<title>{escape(line.name)}</title>"
            self.parts += [f'<polyline class="{css}" points="{way}">{title}</polyline>'] * bool(way)

    def markers(self, points: Sequence[Point], shape: str, css: str, name: str) -> None:
        """Marks at the known points, each with its numbers."""
        names = self.figure.x.name, self.figure.y.name.removesuffix(LOG)
        for point in points:
            x, y = self.x(point[0]), self.y(point[1])
            numbers = (
                f"{name} {value:.4g}" for name, value in zip(names, point, strict=True) if name
            )
            says = ", ".join(filter(None, [name, *numbers]))
            self.parts += [_marker(x, y, shape, css, says)] if isfinite(x + y) else []

    def strokes(self, bars: Bars, at: float, *ends: float) -> Iterator[str]:
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

    def entry(self, name: str, css: str, shape: str = "", mark: str = "") -> None:
        """A line of the legend below the picture."""
        at = self.height + 8
        if css:
            self.line(css, (LEFT, at), (LEFT + 32, at))
        self.parts += [_marker(LEFT + 16, at, shape, mark)] if shape else []
        self.text(LEFT + 40, at, name, "tick mid")
        self.height += ENTRY

    def ends(self) -> None:
        """The names of lines at their right ends, with a thread to moved ones."""
        last = [(line.points[-1], line.name) for line in self.lines if line.name]
        ends = [(self.x(x), self.y(y), name) for (x, y), name in last]
        named = [end for end in ends[:: -(-len(ends) // NAMES) or 1] if isfinite(end[1])]
        heights = spread([y for _, y, _ in named], 13.0, TOP + 6, self.bottom - 2)
        for (x, y, name), height in zip(named, heights, strict=True):
            self.line("thread", (x + 3, y), (RIGHT + 14, height))
            self.text(RIGHT + 17, height, name, "end mid")


def picture(figure: ReportFigure, style: str = "") -> str:
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
    return "\n".join([*parts, *above, *drawing.parts, "</svg>"])


def picture_styles() -> str:
    """The rules of pictures, with light colours in place of the page's names for them."""
    colours, rules = (
        files("refimpl.report").joinpath("pictures.css").read_text("utf-8").split("/* Pictures", 1)
    )
    light = dict(re.findall(r"(--[\w-]+): (#\w+)", colours.partition("@media")[0]))
    return "svg { font-family: sans-serif; }\n/* Pictures" + re.sub(
        r"var\((--[\w-]+)\)", lambda name: light[name[1]], rules
    )
