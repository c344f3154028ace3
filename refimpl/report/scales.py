"""Where values are drawn in a picture: linear and logarithmic scales, and their ticks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 440, 330  # of a picture, in its own units
LEFT, RIGHT, TOP, BOTTOM = 52, 400, 34, 284  # of the room for marks
MORE = 60  # height that a large picture has more
LEAST, MOST = 1e-100, 1e100  # of what is drawn
STEPS = (1, 2, 5, 10)
ALL = 12  # as many blocks have a tick each


@dataclass(frozen=True)
class Scale:
    """Where values are drawn.

    Args:
        low: Value at the start.
        high: Value at the end, more than `low`.
        start: Position of the low end, in units of the picture.
        end: Position of the high end.
        log: Whether equal factors are equally far apart; then both values are positive.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value; of one outside, the nearer end."""
        value = min(max(value, self.low), self.high)
        low, high, value = (log10(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, count: int = 5, whole: bool = False) -> list[float]:
        """Round values from low to high, about as many as asked for."""
        if self.log and len(found := _log_ticks(self.low, self.high, count)) > 2:
            return found
        rough = (self.high - self.low) / count
        power = 10.0 ** floor(log10(rough))
        step = next(n * power for n in STEPS if n * power >= rough * 0.999)
        step = max(step, 1.0) if whole else step
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Round parts of every power of ten; only the powers where that is too many."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [float(f"{n}e{p}") for p in powers for n in steps]
        found = [value for value in found if low <= value <= high]
        if len(found) <= count + 2:
            return found
    return found[:: ceil(len(found) / count)]


def vertical(
    values: Sequence[float], log: bool = False, room: float = 0.08, bottom: float = BOTTOM
) -> Scale:
    """A scale from bottom to top that holds values, with some room.

    Args:
        values: What is drawn; unknown ones are left out, with `log` those not positive, too.
        log: Whether the scale is logarithmic.
        room: Left free at either end, as a share of the whole.
        bottom: Position of the low end.

    Returns:
        The scale; about 1 where there are no values, and of some height where all are the same.
    """
    known = [x for x in values if isfinite(x) and (LEAST < x < MOST or not log)] or [1.0]
    low, high = min(known), max(known)
    if log:
        factor = max((high / low) ** room, 1.02 if high > low * 1.001 else 1.5)
        return Scale(max(low / factor, LEAST), min(high * factor, MOST), bottom, TOP, True)
    more = (high - low) * room or max(abs(high), 1.0) * room
    return Scale(low - more, high + more, bottom, TOP)


def blocks_axis(count: int) -> Scale:
    """A scale from left to right with a place for every block."""
    return Scale(-0.5, count - 0.5, LEFT, RIGHT)


def block_ticks(count: int) -> list[float]:
    """The blocks that are named on an axis."""
    return Scale(0, max(count - 1, 1), 0, 1).ticks(count if count <= ALL else 6, True)[:count]
