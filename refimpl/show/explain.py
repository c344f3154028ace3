"""The text and the JSON of an explanation: each step's formula, shapes and a few numbers."""

import inspect
from collections.abc import Callable
from math import isfinite
from textwrap import indent, wrap
from typing import Any

import numpy as np

from refimpl.explanation.explain import Explanation
from refimpl.explanation.shown_values import Figure, Step, described, full_name
from refimpl.show.header import model_facts, page, terminal_width, wrapped

SHOWN_NUMBERS, IN_JSON = 6, 64  # numbers of an array
IN = " " * 4


def explanation_text(explanation: Explanation, source: bool = False) -> str:
    """All steps, one after the other, on request with the code of each function once."""
    tokens = explanation.tokens
    facts = {
        "model": model_facts(explanation.model, explanation.family, explanation.num_blocks),
        "tokens": [f"{tokens.samples} x {tokens.seq_len}", *tokens.source.split(", ")],
        "looks at": [f"block {explanation.block}", "the first sequence", explanation.dtype],
    }
    parts, shown = [wrapped(facts)], list[Callable[..., Any]]()
    for number, step, figures in explanation.steps:
        parts += _step(f"{number}/{explanation.num_steps}", step, figures)
        new = [function for function in step.functions if source and function not in shown]
        shown += new
        parts += [indent(inspect.getsource(x).rstrip(), IN).split("\n") for x in new]
    values = [figure.value for _, _, figures in explanation.steps for figure in figures]
    if any(np.asarray(value).dtype.kind == "f" and np.isinf(value).any() for value in values):
        parts.append(["inf: larger than the dtype holds, or divided by zero"])
    return page(*parts)


def _step(number: str, step: Step, figures: tuple[Figure, ...]) -> list[list[str]]:
    """What the functions of a step say, and below it the figures."""
    said = list[str]()
    for i, function in enumerate(step.functions):
        says = described(function)[0 if i else 1 :]  # the first one's sentence is the title
        said += [full_name(function) + ":" * bool(says), *(f"  {text}" for text in says)]
    texts = [f"{number} {step.name}: {step.title}", *(f"  {x}" for x in said), f"  why: {step.why}"]
    name = max(len(figure.name) for figure in figures)
    widest = max(len(shape(figure)) for figure in figures)
    return [
        [
            line
            for text in texts
            for line in wrap(text, terminal_width(), subsequent_indent=IN, break_on_hyphens=False)
        ],
        [(IN + row).rstrip() for figure in figures for row in _rows(figure, name, widest)],
    ]


def shape(figure: Figure) -> str:
    """The shape of an array; nothing for a number."""
    value = figure.value
    return str(list(value.shape)) if isinstance(value, np.ndarray) and value.ndim else ""


def _rows(figure: Figure, name: int, widest: int) -> list[str]:
    """Name, shape, numbers and note of a figure, as many numbers as fit."""
    start = f"{figure.name:<{name}}  {shape(figure):<{widest}}  "
    note = f"   ({figure.note})" if figure.note else ""
    room = terminal_width() - len(IN + start)
    for few in range(SHOWN_NUMBERS, 0, -1):
        if len(row := numbers(figure, few) + note) <= room:
            return [start + row]
    texts = wrap(row, max(room, 20), break_long_words=False)
    return [f"{'' if i else start:<{len(start)}}{text}" for i, text in enumerate(texts)]


def numbers(figure: Figure, few: int = SHOWN_NUMBERS) -> str:
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


def explanation_document(found: Explanation, source: bool = False) -> dict[str, Any]:
    """An explanation as one JSON document."""
    return {
        "model": found.model,
        "family": found.family,
        "num_blocks": found.num_blocks,
        "block": found.block,
        "dtype": found.dtype,
        "tokens": vars(found.tokens),
        "steps": [
            {
                "name": step.name,
                "title": step.title,
                "why": step.why,
                "formula": [line for f in step.functions for line in described(f)],
                "functions": [full_name(f) for f in step.functions],
                "figures": [_figure_document(figure) for figure in figures],
                **({"source": [inspect.getsource(f) for f in step.functions]} if source else {}),
            }
            for _, step, figures in found.steps
        ],
    }


def _figure_document(figure: Figure) -> dict[str, Any]:
    """One figure as JSON."""
    if isinstance(figure.value, str):
        return {"name": figure.name, "value": figure.value, "note": figure.note}
    values = np.asarray(figure.value)
    some = values.ravel()[:IN_JSON].tolist()
    first = [x if isinstance(x, str) or isfinite(x) else None for x in some]
    shape = list(values.shape)
    return {"name": figure.name, "shape": shape, "first": first, "note": figure.note}
