"""The text and the JSON of an explanation: each step's formula, shapes and a few numbers."""

import inspect
from collections.abc import Callable
from math import isfinite
from textwrap import indent, wrap
from typing import Any

import numpy as np

from refimpl.explanation.explain import Explanation
from refimpl.explanation.shown_values import Figure, Step, docstring_of, full_name
from refimpl.show.table import model_facts, number, page_text, terminal_width, wrapped
from refimpl.version import __version__

SHOWN_NUMBERS, IN_JSON = 4, 64  # numbers of an array
IN = " " * 4


def explanation_text(explanation: Explanation, source: bool = False) -> str:
    """All steps, one after the other, on request with the code of each function once."""
    tokens = explanation.tokens
    facts = {
        "model": model_facts(
            explanation.model, explanation.family, explanation.num_blocks
        ),
        "tokens": [f"{tokens.samples} x {tokens.seq_len}", *tokens.source.split(", ")],
        "looks at": [
            f"block {explanation.block}",
            "the first sequence",
            explanation.dtype,
        ],
    }
    parts, shown = [wrapped(facts)], list[Callable[..., Any]]()
    for which, step, figures in explanation.steps:
        parts += _step(f"{which}/{explanation.num_steps}", step, figures)
        new = [
            function for function in step.functions if source and function not in shown
        ]
        shown += new
        parts += [indent(inspect.getsource(x).rstrip(), IN).split("\n") for x in new]
    return page_text(*parts)


def _step(which: str, step: Step, figures: tuple[Figure, ...]) -> list[list[str]]:
    """What the functions of a step say, and below it the figures."""
    said = list[str]()
    for i, function in enumerate(step.functions):
        says = docstring_of(function)[
            0 if i else 1 :
        ]  # the first one's sentence is the title
        said += [
            full_name(function) + ":" * bool(says),
            *(f"  {text}" for text in says),
        ]
    texts = [
        f"{which} {step.name}: {step.title}",
        *(f"  {x}" for x in said),
        f"  why: {step.why}",
    ]
    shapes = [
        str([*np.shape(figure.value)]) if np.ndim(figure.value) else ""
        for figure in figures
    ]
    name, widest = max(len(figure.name) for figure in figures), max(map(len, shapes))
    rows = []
    for figure, shape in zip(figures, shapes, strict=True):
        start = f"{IN}{figure.name:<{name}}  {shape:<{widest}}  "
        note = f"   ({figure.note})" if figure.note else ""
        rows.append((start + numbers(figure) + note, " " * len(start)))
    width = terminal_width()
    return [
        [
            y
            for x in texts
            for y in wrap(x, width, subsequent_indent=IN, break_on_hyphens=False)
        ],
        [y for x, indented in rows for y in wrap(x, width, subsequent_indent=indented)],
    ]


def numbers(figure: Figure) -> str:
    """A few numbers: the first along the last axis, and the last one of a vector."""
    array = np.asarray(figure.value)
    if array.size <= SHOWN_NUMBERS + 1:
        return " ".join(map(_number, array.ravel().tolist()))
    row = array[(0,) * (array.ndim - 1)].tolist()
    last = [_number(row[-1])] if array.ndim == 1 else []
    return " ".join([*map(_number, row[:SHOWN_NUMBERS]), "..", *last])


def _number(x: float | int | str) -> str:
    """One number: whole ones in full, others with four digits, a dash where unknown; or a token."""
    if isinstance(x, str):
        return f'"{x}"'
    return f"{x:,}" if isinstance(x, int) else number(x)


def explanation_document(found: Explanation, source: bool = False) -> dict[str, Any]:
    """An explanation as one JSON document."""
    return {
        "refimpl": __version__,
        **{
            x: getattr(found, x)
            for x in ("model", "family", "num_blocks", "block", "dtype")
        },
        "tokens": vars(found.tokens),
        "steps": [
            {
                "name": step.name,
                "title": step.title,
                "why": step.why,
                "formula": [line for f in step.functions for line in docstring_of(f)],
                "functions": [full_name(f) for f in step.functions],
                "figures": [_figure_document(figure) for figure in figures],
                **(
                    {"source": [inspect.getsource(f) for f in step.functions]}
                    if source
                    else {}
                ),
            }
            for _, step, figures in found.steps
        ],
    }


def _figure_document(figure: Figure) -> dict[str, Any]:
    """One figure as JSON."""
    values = np.asarray(figure.value)
    some = values.ravel()[:IN_JSON].tolist()
    first = [x if isinstance(x, str) or isfinite(x) else None for x in some]
    return {
        "name": figure.name,
        "shape": [*values.shape],
        "first": first,
        "note": figure.note,
    }
