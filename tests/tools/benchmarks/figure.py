"""One figure of the benchmarks: what was measured side by side, its goal, and whether it is met."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

Sense = Literal["at least", "at most"]


@dataclass(frozen=True)
class Figure:
    """A figure, repeated: each tuple has an entry per repetition, and the goal is about `values`.

    `theirs` is empty where a goal is no ratio of two. `value_unit` is empty for a ratio.
    """

    row: str
    what: str
    shape: str
    against: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    values: tuple[float, ...]
    value_unit: str = ""
    goal: float | None = None
    sense: Sense = "at least"
    note: str = ""

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None without one."""
        if self.goal is None:
            return None
        return self.median >= self.goal if self.sense == "at least" else self.median <= self.goal

    @property
    def verdict(self) -> str:
        """Pass, or by which share of the goal the median falls short."""
        if self.goal is None:
            return "no goal"
        return "pass" if self.met else f"falls short by {abs(self.median / self.goal - 1):.0%}"


def ratios(top: Sequence[float], bottom: Sequence[float]) -> tuple[float, ...]:
    """Quotients, repetition by repetition."""
    return tuple(a / b for a, b in zip(top, bottom, strict=True))


def number(value: float) -> str:
    """Three digits, or all of a whole number above a thousand."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.1e}"


def spread(values: Sequence[float], unit: str = "") -> str:
    """Median, and the lowest and highest, of what was measured."""
    if not values:
        return ""
    text = number(median(values)) + (f" {unit}" if unit else "")
    if len(values) == 1 or min(values) == max(values):
        return text
    return f"{text} ({number(min(values))} to {number(max(values))})"


def goal_of(figure: Figure) -> str:
    """A figure's goal in words."""
    if figure.goal is None:
        return ""
    return f"{figure.sense} {number(figure.goal)}{' ' * bool(figure.value_unit)}{figure.value_unit}"


def line(figure: Figure) -> str:
    """A figure in one line of the terminal."""
    sides = f"{spread(figure.ours, figure.unit)}"
    if figure.theirs:
        sides += f" against {spread(figure.theirs, figure.unit)}"
    goal = f", goal {goal_of(figure)}" if figure.goal is not None else ""
    note = f" [{figure.note}]" if figure.note else ""
    return (
        f"{figure.row}: {figure.what}, {figure.shape}, {figure.against}: "
        f"{spread(figure.values, figure.value_unit)}{goal}: {figure.verdict}; {sides}{note}"
    )


def markdown(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (heads, *rows)]
    lines.insert(1, "|" + "---|" * len(heads))
    return "\n".join(lines)


def as_json(figure: Figure) -> dict[str, Any]:
    """The figure as it stands in the results."""
    return {**asdict(figure), "median": figure.median, "verdict": figure.verdict}


def from_json(entry: dict[str, Any]) -> Figure:
    """Undo `as_json`."""
    fields = {key: value for key, value in entry.items() if key not in ("median", "verdict")}
    lists = ("ours", "theirs", "values")
    return Figure(**{k: tuple(v) if k in lists else v for k, v in fields.items()})
