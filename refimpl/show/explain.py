"""The text of an explanation: each step's formula, shapes and a few numbers."""

import inspect
from collections.abc import Callable
from textwrap import indent, wrap
from typing import Any

import numpy as np

from refimpl.explanation.document import full_name
from refimpl.explanation.explain import Explanation
from refimpl.explanation.step import Figure, Step
from refimpl.show.header import WIDTH, joined, model_facts, wrapped

SHOWN_NUMBERS = 6  # numbers of an array
IN = " " * 4


def explanation_text(explanation: Explanation, source: bool = False) -> str:
    """All steps, one after the other, on request with the code of each function once."""
    tokens = explanation.tokens
    facts = {
        "model": model_facts(explanation.model, explanation.family, explanation.num_blocks),
        "tokens": [f"{tokens.samples} x {tokens.seq_len}", *tokens.source.split(", ")],
        "looks at": [f"block {explanation.block}", "the first sequence", explanation.dtype],
    }
    lines = wrapped(facts)
    shown: set[Callable[..., Any]] = set()
    for place, step, figures in explanation.steps:
        lines += ["", *_step(f"{place}/{explanation.num_steps}", step, figures)]
        if source:
            lines += _code(step, shown)
    values = [figure.value for _, _, figures in explanation.steps for figure in figures]
    if any(not isinstance(value, str) and np.isinf(value).any() for value in values):
        lines += ["", "inf: larger than the dtype holds, or divided by zero"]
    return joined(lines)


def _step(place: str, step: Step, figures: tuple[Figure, ...]) -> list[str]:
    """A step without its code."""
    name = max(len(figure.name) for figure in figures)
    shape = max(len(_shape(figure)) for figure in figures)
    rows = [_row(figure, name, shape) for figure in figures]
    calls = wrap(", ".join(map(full_name, step.functions)), WIDTH - 10, break_on_hyphens=False)
    return [
        f"{place} {step.name}: {step.title}",
        *(IN + line for line in wrap(step.why, WIDTH - 4)),
        "",
        *(IN * 2 + line for line in step.formula.split("\n")),
        "",
        *((IN + row).rstrip() for row in rows),
        *(f"{IN}{'calls ' if i == 0 else '      '}{line}" for i, line in enumerate(calls)),
    ]


def _code(step: Step, shown: set[Callable[..., Any]]) -> list[str]:
    """The code of a step's functions, as far as it was not shown yet."""
    new = [function for function in step.functions if function not in shown]
    shown.update(new)
    return [
        line
        for function in new
        for line in ("", *indent(inspect.getsource(function).rstrip(), IN).split("\n"))
    ]


def _shape(figure: Figure) -> str:
    """The shape of an array; nothing for a number."""
    value = figure.value
    return str(list(value.shape)) if isinstance(value, np.ndarray) and value.ndim else ""


def _row(figure: Figure, name: int, shape: int) -> str:
    """Name, shape, numbers and note of a figure, with as many numbers as fit."""
    start = f"{figure.name:<{name}}  {_shape(figure):<{shape}}  "
    note = f"   ({figure.note})" if figure.note else ""
    rows = (f"{start}{_numbers(figure, few)}{note}" for few in range(SHOWN_NUMBERS, 0, -1))
    return next((row for row in rows if len(IN + row) <= WIDTH), f"{start}{_numbers(figure, 1)}")


def _numbers(figure: Figure, few: int) -> str:
    """A few numbers: the first along the last axis, and the last one of a vector."""
    value = figure.value
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.size <= few + 1:
        return " ".join(map(_number, array.ravel().tolist()))
    row = array[(0,) * (array.ndim - 1)]
    first = " ".join(map(_number, row[:few].tolist())) + " .."
    return f"{first} {_number(row[-1].item())}" if array.ndim == 1 else first


def _number(x: float | int) -> str:
    """One number: whole ones in full, others with four digits, a dash where unknown."""
    if isinstance(x, int):
        return f"{x:,}"
    return "-" if np.isnan(x) else f"{x:.4g}"
