"""An explanation as a document for programs."""

import inspect
from math import isfinite
from typing import Any

import numpy as np

from refimpl.explanation.explain import Explanation
from refimpl.explanation.step import Figure, described, full_name

IN_JSON = 64  # numbers of an array


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
                "figures": [_figure(figure) for figure in figures],
                **({"source": [inspect.getsource(f) for f in step.functions]} if source else {}),
            }
            for _, step, figures in found.steps
        ],
    }


def _figure(figure: Figure) -> dict[str, Any]:
    """One figure as JSON."""
    if isinstance(figure.value, str):
        return {"name": figure.name, "value": figure.value, "note": figure.note}
    values = np.asarray(figure.value)
    some = values.ravel()[:IN_JSON].tolist()
    first = [x if isinstance(x, str) or isfinite(x) else None for x in some]
    shape = list(values.shape)
    return {"name": figure.name, "shape": shape, "first": first, "note": figure.note}
