"""Perplexity against sparsity as arrays, by pruner and allocation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, hypot, nan
from typing import Any

import numpy as np

from refimpl.bases.uniform import UNIFORM
from refimpl.bench.cells import Comparison
from refimpl.bench.tables import Change, summaries
from refimpl.errors import RefimplError
from refimpl.evaluation.evaluate import Evaluation, EvaluationDocument, evaluation_document
from refimpl.evaluation.likelihood import LOG_MOST
from refimpl.loading.files.documents import converted
from refimpl.model.ops import Array


@dataclass(frozen=True)
class Curves:
    """What one figure compares: points (sparsity, value, and maybe its error), [n, 2 or 3].

    They are by pruner and allocation; `dense` is the value of the model that was not pruned.
    """

    heading: str
    measure: str
    series: Mapping[tuple[str, str], Array]
    dense: float | None = None
    facts: Sequence[str] = ()


def named_curves(named: Mapping[str, Any]) -> Curves:
    """Curves from pairs (sparsity, perplexity) by allocation; "dense" is the model before."""
    series = {("", x): np.array(pairs, np.float64) for x, pairs in named.items() if x != "dense"}
    dense = [value for _, value in named.get("dense", ())]
    return Curves("Perplexity against sparsity", "perplexity", series, *dense[:1])


def measured_curves(evaluations: Sequence[Evaluation | EvaluationDocument]) -> Curves:
    """The perplexities of models on one text; the one that was not pruned is the dense one."""
    documents = [
        converted(evaluation_document(x), EvaluationDocument) if isinstance(x, Evaluation) else x
        for x in evaluations
    ]
    texts = {(x.text.sha256, x.text.window): x.text for x in documents}
    if len(texts) != 1:
        raise RefimplError(
            f"evaluations on {len(texts)} texts, or cut in so many ways",
            "perplexities on the same windows of one text",
            "compare those of one text",
        )
    (text,) = texts.values()
    points: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    dense = None
    for x in documents:
        measured = x.text.perplexity, x.text.perplexity_stderr
        value, error = (nan if y is None else y for y in measured)
        if x.pruning is None:
            dense = value
        else:  # of the uniform base, the correction alone is named
            name = x.pruning.allocation.removesuffix(" measured")
            key = x.pruning.method, name.removeprefix(f"{UNIFORM.name} + ")
            points.setdefault(key, []).append((x.pruning.sparsity, value, error))
    names = dict.fromkeys(x.model if x.pruning is None else x.pruning.model for x in documents)
    windows = f"{text.num_windows} windows of {text.window} tokens"
    facts = [*names, *dict.fromkeys(pruner for pruner, _ in points), windows]
    facts.append("bars: standard errors over windows")
    series = {key: np.array(sorted(x)) for key, x in points.items()}
    source = text.source.partition(", ")[0]
    return Curves(f"Perplexity on {source}", "perplexity", series, dense, facts)


def bench_curves(comparison: Comparison) -> Curves:
    """Perplexities as multiples of the dense model's, the means over texts."""
    found = [*summaries(comparison)]
    models, pruners, texts = (
        [*dict.fromkeys(getattr(x, name) for x in found)] for name in ("model", "pruner", "text")
    )
    changes: dict[tuple[str, str], dict[float, list[Change]]] = {}
    for x in found:
        label = f"{x.model}, {x.pruner}" if len(models) > 1 else x.pruner
        at = changes.setdefault((label, x.allocation), {})
        at.setdefault(x.sparsity, []).append(x.growth)
    series = {
        key: np.array([(sparsity, *_multiple(x)) for sparsity, x in points.items()])
        for key, points in changes.items()
    }
    windows = max((len(text.nats) for row in comparison.rows for text in row.texts), default=0)
    facts = [*models, *pruners, f"mean over {', '.join(texts)}", f"{windows} windows"]
    heading = "Perplexity against sparsity"
    return Curves(heading, "× dense perplexity", series, 1.0, [*facts, "bars: standard errors"])


def _multiple(changes: Sequence[Change]) -> Change:
    """The mean of changes in nats as a factor of the perplexity, and its error."""
    value = exp(min(float(np.mean([nats for nats, _ in changes])), LOG_MOST))
    return value, value * hypot(*(error for _, error in changes)) / len(changes)
