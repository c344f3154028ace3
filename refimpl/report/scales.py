"""The positions of values in a picture: linear and logarithmic scales, and their ticks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 440, 330  # of a picture, in its own units
LEFT, RIGHT, TOP, BOTTOM = 52, 400, 34, 284  # edges of the part with the marks
MORE = 60  # additional height of a large picture
LEAST, MOST = 1e-100, 1e100  # limits of the values that are drawn
TICK_STEPS = (1, 2, 5, 10)
ALL = 12  # up to so many blocks, each has a tick


@dataclass(frozen=True)
class AxisScale:
    """A scale from values, `low` to `high`, to positions, `start` to `end`, in the picture's units.

    If it is logarithmic, both values are positive.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value; the nearer end if it lies outside."""
        value = min(max(value, self.low), self.high)
        low, high, value = (log10(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, count: int = 5, whole: bool = False) -> list[float]:
        """Round values from low to high, about `count` of them."""
        if self.log and len(ticks := _log_ticks(self.low, self.high, count)) > 2:
            return ticks
        rough = (self.high - self.low) / count
        power = 10.0 ** floor(log10(rough))
        step = next(n * power for n in TICK_STEPS if n * power >= rough * 0.999)
        step = max(step, 1.0) if whole else step
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


def vertical(
    values: Sequence[float], log: bool = False, room: float = 0.08, bottom: float = BOTTOM
) -> AxisScale:
    """A scale from bottom to top for values, with `room` free at either end, a share of the whole.

    Unknown values are ignored, with `log` also those that are not positive. Without values, the
    scale is one about 1.
    """
    known = [x for x in values if isfinite(x) and (LEAST < x < MOST or not log)] or [1.0]
    low, high = min(known), max(known)
    if log:
        factor = max((high / low) ** room, 1.02 if high > low * 1.001 else 1.5)
        return AxisScale(max(low / factor, LEAST), min(high * factor, MOST), bottom, TOP, True)
    more = (high - low) * room or max(abs(high), 1.0) * room
    return AxisScale(low - more, high + more, bottom, TOP)


def blocks_axis(count: int) -> AxisScale:
    """A scale from left to right with a position for every block."""
    return AxisScale(-0.5, count - 0.5, LEFT, RIGHT)


def block_ticks(count: int) -> list[float]:
    """The blocks that have a tick on an axis."""
    return AxisScale(0, max(count - 1, 1), 0, 1).ticks(count if count <= ALL else 6, True)[:count]
