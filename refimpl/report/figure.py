"""A figure as data: words, axes with their scales, marks, and the table of its numbers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10, nan
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
