"""The parts of an explanation: steps, and the figures of each step."""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from refimpl.explanation.shown_values import Values
from refimpl.model.ops import Array

TUTORIAL = "docs/tutorial/{}.md"  # says why a step is done


@dataclass(frozen=True)
class Figure:
    """A named value, whole, and a note on what to see in it."""

    name: str
    value: Array | float | int | str
    note: str = ""


@dataclass(frozen=True)
class Step:
    """One step of the algorithm; the docstring of its first function is that of the step."""

    name: str
    page: str
    functions: tuple[Callable[..., Any], ...]
    figures: Callable[[Values], Iterable[Figure]]

    @property
    def title(self) -> str:
        """The first sentence of the first function's docstring."""
        return described(self.functions[0])[0]

    @property
    def why(self) -> str:
        """Where the reasons stand."""
        return TUTORIAL.format(self.page)


def described(function: Callable[..., Any]) -> list[str]:
    """The first sentence of a docstring, and the lines of formulas between it and its sections."""
    first, *others = re.sub("`+", "", str(inspect.getdoc(function))).split("\n\n")
    ends = [i for i, text in enumerate(others) if re.match(r"[A-Z]\w+:\s", text)]
    formulas = others[: ends[0]] if ends else others
    return [" ".join(first.split()), *(line for text in formulas for line in text.split("\n"))]


def full_name(function: Callable[..., Any]) -> str:
    """Where a function is found."""
    return f"{function.__module__}.{function.__qualname__}"
