"""The parts of an explanation: steps, and the figures of each step."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from refimpl.explanation.shown_values import Values
from refimpl.model.ops import Array


@dataclass(frozen=True)
class Figure:
    """A named value in the letters of the formula, whole, and a note on what to see in it."""

    name: str
    value: Array | float | int | str
    note: str = ""


@dataclass(frozen=True)
class Step:
    """One step of the algorithm, with its purpose, formula, and the functions that compute it.

    `--step` takes its name; `figures` makes its figures from the values.
    """

    name: str
    title: str
    why: str
    formula: str
    functions: tuple[Callable[..., Any], ...]
    figures: Callable[[Values], Iterable[Figure]]
