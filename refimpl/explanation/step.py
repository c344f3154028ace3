"""What an explanation is made of: steps, and the figures that each of them shows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from refimpl.explanation.values import Values
from refimpl.model.ops import Array


@dataclass(frozen=True)
class Figure:
    """A number, or an array of which a few numbers are shown.

    Args:
        name: What it is, in the letters of the formula.
        value: The whole value.
        note: What to see in it.
    """

    name: str
    value: Array | float | int | str
    note: str = ""


@dataclass(frozen=True)
class Step:
    """One step of the algorithm.

    Args:
        name: For `--step`.
        title: A few words.
        why: What the step is for, a sentence or two.
        formula: Plain text, lines.
        functions: The library's functions that compute it.
        figures: Makes what is shown.
    """

    name: str
    title: str
    why: str
    formula: str
    functions: tuple[Callable[..., Any], ...]
    figures: Callable[[Values], Iterable[Figure]]
