"""Perplexity against sparsity as arrays: of evaluations, by pruner and allocation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np

from refimpl.bases.uniform import UNIFORM
from refimpl.errors import RefimplError
from refimpl.evaluation.evaluate import Evaluation, EvaluationDocument, evaluation_document
from refimpl.loading.files.documents import converted
from refimpl.model.ops import Array
from refimpl.pruning.record import PruningFacts


@dataclass(frozen=True)
class Curve:
    """Points (sparsity, value, and maybe its standard error) of an allocation, [n, 2 or 3]."""

    allocation: str
    points: Array
    pruner: str = ""


@dataclass(frozen=True)
class Curves:
    """What one figure compares: the curves, and the value of the model that was not pruned."""

    heading: str
    measure: str
    curves: Sequence[Curve]
    dense: float | None = None
    facts: Sequence[str] = ()


def named_curves(named: Mapping[str, Any]) -> Curves:
    """Curves from pairs (sparsity, perplexity) by allocation; "dense" is the model before."""
    curves = [Curve(x, np.array(pairs, np.float64)) for x, pairs in named.items() if x != "dense"]
    dense = [value for _, value in named.get("dense", ())]
    return Curves("Perplexity against sparsity", "perplexity", curves, *dense[:1])


def measured_curves(evaluations: Sequence[Evaluation | EvaluationDocument]) -> Curves:
    """The perplexities of models on one text; the one that was not pruned is the dense one."""
    found = [
        converted(evaluation_document(x), EvaluationDocument) if isinstance(x, Evaluation) else x
        for x in evaluations
    ]
    measured = [(x, x.text) for x in found if x.text is not None]
    texts = {(text.sha256, text.window): text for _, text in measured}
    if len(texts) != 1:
        raise RefimplError(
            f"evaluations on {len(texts)} texts, or cut in so many ways",
            "perplexities on the same windows of one text",
            "compare those of one text",
        )
    (text,) = texts.values()
    points: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    dense = None
    for x, result in measured:
        value, error = (
            nan if y is None else y for y in (result.perplexity, result.perplexity_stderr)
        )
        if (pruning := x.pruning) is None:
            dense = value
        else:
            key = pruning.method, allocation_name(pruning)
            points.setdefault(key, []).append((pruning.sparsity, value, error))
    curves = [Curve(name, np.array(sorted(p)), pruner) for (pruner, name), p in points.items()]
    source = text.source.partition(", ")[0]
    windows = f"{text.num_windows} windows of {text.window} tokens"
    names = dict.fromkeys(x.model if x.pruning is None else x.pruning.model for x, _ in measured)
    pruners = dict.fromkeys(x.pruner for x in curves)
    facts = [*names, *pruners, windows, "bars: standard errors over windows"]
    return Curves(f"Perplexity on {source}", "perplexity", curves, dense, facts)


def allocation_name(pruning: PruningFacts) -> str:
    """The allocation of a pruning as figures name it: of the uniform base, its correction alone."""
    name = pruning.allocation.removesuffix(" measured")
    return name.removeprefix(f"{UNIFORM.name} + ")
