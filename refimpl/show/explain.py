"""The text of an explanation: each step's formula, shapes and a few numbers."""

import inspect
from collections.abc import Callable
from textwrap import indent, wrap
from typing import Any

import numpy as np

from refimpl.explanation.explain import Explanation
from refimpl.explanation.step import Figure, Step, described, full_name
from refimpl.show.header import joined, model_facts, terminal_width, wrapped

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
    for number, step, figures in explanation.steps:
        lines += ["", *_step(f"{number}/{explanation.num_steps}", step, figures)]
        if source:
            lines += _code(step, shown)
    values = [figure.value for _, _, figures in explanation.steps for figure in figures]
    if any(np.asarray(value).dtype.kind == "f" and np.isinf(value).any() for value in values):
        lines += ["", "inf: larger than the dtype holds, or divided by zero"]
    return joined(lines)


def _step(number: str, step: Step, figures: tuple[Figure, ...]) -> list[str]:
    """A step without its code: the figures under what the functions say that computed them."""
    name = max(len(figure.name) for figure in figures)
    shape = max(len(_shape(figure)) for figure in figures)
    rows = [line for figure in figures for line in _rows(figure, name, shape)]
    width = terminal_width()
    said = [
        line
        for i, function in enumerate(step.functions)
        for says in [described(function)[0 if i else 1 :]]  # the first one's is the title
        for text in (f"  {full_name(function)}{':' if says else ''}", *(IN + x for x in says))
        for line in wrap(text, width, subsequent_indent=IN, break_on_hyphens=False)
    ]
    return [
        *wrap(f"{number} {step.name}: {step.title}", width, subsequent_indent=IN),
        *(*said, f"  why: {step.why}"),
        "",
        *((IN + row).rstrip() for row in rows),
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


def _rows(figure: Figure, name: int, shape: int) -> list[str]:
    """Name, shape, numbers and note of a figure, with as many numbers as fit beside the note."""
    start = f"{figure.name:<{name}}  {_shape(figure):<{shape}}  "
    note = f"   ({figure.note})" if figure.note else ""
    room = terminal_width() - len(IN + start)
    for few in range(SHOWN_NUMBERS, 0, -1):
        if len(row := _numbers(figure, few) + note) <= room:
            return [start + row]
    texts = wrap(f"{_numbers(figure, 1)}{note}", max(room, 20), break_long_words=False)
    return [f"{'' if i else start:<{len(start)}}{text}" for i, text in enumerate(texts)]


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


def _number(x: float | int | str) -> str:
    """One number: whole ones in full, others with four digits, a dash where unknown; or a token."""
    if isinstance(x, str):
        return f'"{x}"'
    if isinstance(x, int):
        return f"{x:,}"
    return "-" if np.isnan(x) else f"{x:.4g}"
