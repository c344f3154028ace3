"""`scores.json`, checked when it comes back, and what each linear loses by it or a pattern."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refimpl.allocation.allocate import Allocation, allocate
from refimpl.allocation.request import Noise, Probes, Request
from refimpl.allocation.scores import AllocationNumbers, ProbedErrors, Scores
from refimpl.arguments import Compat
from refimpl.bases.base import base_named
from refimpl.errors import RefimplError, listed
from refimpl.loading.files.documents import (
    Document,
    converted,
    filled,
    plain,
    read_document,
)
from refimpl.loading.samples import Tokens
from refimpl.model.config import Linears, linear_sizes
from refimpl.model.ops import Array
from refimpl.pruners.counts import Pattern
from refimpl.pruners.decision import Goal, PrunerOptions
from refimpl.pruners.wanda import WANDA

_FORMAT: Literal[6] = 6
_LARGEST = (
    1 << 24
)  # no linear has more rows or columns; their products fit into 64 bits
_ERROR_TEXT = (
    "a whole scores.json",
    "a file written by refimpl score -o",
    "run refimpl score again",
)
RENAMED = {
    "kind": "perturbation",
    "options": "base_options",
    "sparsity": "requested_sparsity",
}
FORMS = dict.fromkeys(
    ("drift", "drift_stderr", "alignment", "alignment_stderr", "steps"), "LL"
)
FORMS |= {"linear_sparsity": "LW", "linear_pruned": "LW"}
"""Axes of arrays that are not [L]: blocks, and linears of a block."""


class ScoresDocument(Document, frozen=True, kw_only=True):
    """Scores, made for the request of the allocations, and an allocation per eta."""

    format: Literal[6]
    scores: Scores
    allocations: list[AllocationNumbers]


def scores_document(
    scores: Scores, allocations: Sequence[Allocation] = ()
) -> dict[str, Any]:
    """Describe scores and allocations, one per eta, by default those that they were made for."""
    allocations = allocations or [
        allocate(scores, which=i) for i in range(len(scores.sweep))
    ]
    scores = replace(scores, made_for=_request(allocations[0]))
    stored = [filled(AllocationNumbers, x) for x in allocations]
    return dict(
        plain(ScoresDocument(format=_FORMAT, scores=scores, allocations=stored))
    )


def _request(allocation: Allocation) -> dict[str, Any]:
    """The request of an allocation, by field."""
    return vars(allocation.request) | {"base": allocation.request.record.name}


def allocation_origin(
    of: Allocation | Mapping[str, Any], scores: Scores | None
) -> dict[str, Any]:
    """How an allocation, or one of this request, was made; null where nothing was scored."""
    facts: dict[str, Any] = dict.fromkeys(("model", "eta", "dtype", "tokens"))
    facts |= dict.fromkeys(x.name for plan in (Noise, Probes) for x in fields(plan))
    if scores is not None:
        facts |= {
            **vars(scores.plan),
            "model": scores.model,
            "eta": scores.sweep[0].eta,
        }
        facts |= {"dtype": scores.run.dtype, "tokens": scores.tokens}
    facts |= _request(of) if isinstance(of, Allocation) else of
    return plain({RENAMED.get(x, x): value for x, value in facts.items()})


def read_scores(path: str | Path) -> Scores:
    """Read scores back from the file that `refimpl score -o` wrote."""
    scores = read_document(Path(path), _ERROR_TEXT, _FORMAT, parsed_scores).scores
    known = base_named(scores.made_for["base"]) is not None
    return (
        scores if known else replace(scores, made_for={**scores.made_for, "base": None})
    )


def parsed_scores(content: Any) -> ScoresDocument:
    """The document in a JSON value; ValueError if it is not whole.

    Some files of format 6 have a `context`, which is left out.
    """
    if isinstance(every := content.get("allocations"), list):
        less = [
            {k: y for k, y in x.items() if k != "context"} if isinstance(x, dict) else x
            for x in every
        ]
        content = content | {"allocations": less}
    parsed = converted(content, ScoresDocument, exact=True)
    scores, made_for = parsed.scores, dict(parsed.scores.made_for)
    linears, at, etas = (
        tuple(scores.linears),
        scores.pruned_at,
        tuple(x.eta for x in scores.sweep),
    )
    sides = [n for block in linears for shape in block.values() for n in shape]
    if not linears or not all(linears) or not 0 < min(sides) <= max(sides) < _LARGEST:
        raise ValueError(f"scores.linears is {linears!r:.40}")
    if etas != scores.plan.etas or len(parsed.allocations) != len(etas):
        raise ValueError(
            f"scores.sweep and allocations are not at eta {scores.plan.etas}"
        )
    if isinstance(scores.plan, Probes) != (at is not None):
        raise ValueError(
            f"scores.pruned_at is {at!r:.40}, which does not go with scores.plan"
        )
    base = made_for.get("base")
    if (
        isinstance(base, str) and base_named(base) is None
    ):  # a file, or a base of another program
        made_for |= {"base": Request.base, "options": {}}
    converted(made_for, Request, "scores.made_for", exact=True)

    weights = linear_sizes(linears)
    exists = weights > 0
    sizes = {
        "3": 3,
        "L": len(exists),
        "W": exists.shape[1],
        "N": scores.measured_samples,
    }
    owners: dict[str, Any] = {"scores": scores}
    owners |= {
        f"scores.{name}": getattr(scores, name) for name in ("pruned_at", "probes")
    }
    owners |= {f"scores.sweep[{i}]": x for i, x in enumerate(scores.sweep)}
    owners |= {f"allocations[{i}]": x for i, x in enumerate(parsed.allocations)}
    for part in ("errors", "growth"):
        parts = [getattr(x, part) for x in parsed.allocations]
        owners |= {f"allocations[{i}].{part}": x for i, x in enumerate(parts)}
    for path, owner in owners.items():
        arrays = {} if owner is None else vars(owner)
        for name, x in arrays.items():
            form = FORMS.get(name, "L")
            if isinstance(owner, ProbedErrors):
                form = "3L" if name == "sparsity" else "N3L"
            shape, whole = (
                [sizes[axis] for axis in form],
                isinstance(owner, AllocationNumbers),
            )
            if isinstance(x, np.ndarray) and (
                [*x.shape] != shape or (whole and np.isnan(x).any())
            ):
                wrong = f"{path}.{name} has {[*x.shape]} numbers, or null"
                raise ValueError(f"{wrong}; expected {shape}")
    for allocation in parsed.allocations:
        counts, total = allocation.linear_pruned, allocation.total_pruned
        within = (counts >= 0) & (counts <= weights) & (allocation.linear_sparsity >= 0)
        if counts.sum() != total or not within.all():
            wrong = "one is negative, or more than its linear has"
            raise ValueError(
                f"counts sum to {counts.sum()}, total_pruned is {total}, or {wrong}"
            )
    for base, signal in scores.signals.items():
        for i, (name, x) in enumerate(signal.values.items()):
            known = exists if x.ndim == 2 else np.True_
            if (
                x.shape not in (exists.shape[:1], exists.shape)
                or not (np.isnan(x) == ~known if i == 0 else np.isnan(x) | known).all()
            ):
                raise ValueError(
                    f"scores.signals.{base}.values.{name}: not a number per unit"
                )
        if not signal.values:
            raise ValueError(f"scores.signals.{base}.values is empty")
    scores = replace(scores, linears=linears)
    return ScoresDocument(format=_FORMAT, scores=scores, allocations=parsed.allocations)


@dataclass(frozen=True)
class Targets:
    """How much every linear loses: weights and fractions [L, linears], which the peers' code takes.

    A pattern fixes the counts. `origin` tells `pruning.json` how the targets were made.
    """

    linear_pruned: Array
    linear_sparsity: Array
    compat: Compat
    pattern: Pattern | None
    origin: Mapping[str, Any]

    def goal(self, block: int, linear: int) -> Goal:
        """What one linear shall lose: a pattern, a count, or for the peers' code a fraction."""
        if self.pattern is not None:
            return self.pattern
        if self.compat == "peer":
            return float(self.linear_sparsity[block, linear])
        return int(self.linear_pruned[block, linear])

    def probed_by(self, pruner: PrunerOptions) -> PrunerOptions:
        """The pruner that prunes when this one is asked for: that of the probes, if there are any.

        An allocation by Wanda's probes, which are cheap, is also for pruners of outer products
        (docs/study.md, "Other pruners").
        """
        made, probes = self.origin, self.origin.get("perturbation") == "pruning"
        also = made.get("pruner") == WANDA.name and pruner.record.needs == "products"
        if not probes or made.get("correct") is None or also:
            return pruner
        return replace(pruner, pruner=made["pruner"], damping=made["damping"])


def allocation_targets(
    allocation: Allocation, scores: Scores | None = None, tokens: Tokens | None = None
) -> Targets:
    """Targets of an allocation, from scores, or from signals computed on these tokens."""
    origin = allocation_origin(allocation, scores)
    if scores is None and tokens is not None:
        origin["tokens"] = plain(tokens.facts)
    counts, sparsity = allocation.linear_pruned, allocation.linear_sparsity
    return Targets(counts, sparsity, allocation.request.compat, None, origin)


def pattern_targets(pattern: Pattern, linears: Linears, compat: Compat) -> Targets:
    """Targets of an N:M pattern: n / m of every linear."""
    shapes = {name: shape for block in linears for name, shape in block.items()}
    if odd := [
        f"{name} {width}"
        for name, (_, width) in shapes.items()
        if width % pattern.group
    ]:
        raise RefimplError(
            f"pattern {pattern}: inputs that {pattern.group} does not divide: {listed(odd)}",
            f"linears whose number of inputs is a multiple of {pattern.group}",
            "choose another --nm, or use --sparsity",
        )
    counts = linear_sizes(linears) * pattern.pruned // pattern.group
    share = np.full(counts.shape, pattern.pruned / pattern.group)
    return Targets(counts, share, compat, pattern, {"pattern": str(pattern)})


def targets_for(target: Allocation | Pattern | Targets, linears: Linears) -> Targets:
    """Targets for a model of these linears; counts for other sizes are refused."""
    if isinstance(target, Pattern):
        return pattern_targets(target, linears, "exact")
    targets = allocation_targets(target) if isinstance(target, Allocation) else target
    counts, sizes = targets.linear_pruned, linear_sizes(linears)
    if counts.shape != sizes.shape or (counts < 0).any() or (counts > sizes).any():
        raise RefimplError(
            f"an allocation for another model: {list(counts.shape)} counts up to {counts.max()}",
            _sizes(linears),
            "allocate from this model's own scores",
        )
    return targets


def read_targets(path: Path, linears: Linears) -> Targets:
    """Targets from a file of `refimpl allocate -o` or `score -o`; of a sweep, at the first eta."""
    parsed = read_document(path, _ERROR_TEXT, _FORMAT, parsed_scores)
    scores, allocation = parsed.scores, parsed.allocations[0]
    if [[*x.items()] for x in scores.linears] != [[*x.items()] for x in linears]:
        raise RefimplError(
            f"{path}: an allocation for another model: {_sizes(scores.linears)}",
            _sizes(linears),
            "run refimpl score on this model",
        )
    counts, sparsity = allocation.linear_pruned, allocation.linear_sparsity
    origin = allocation_origin(scores.made_for, scores)
    return Targets(counts, sparsity, scores.made_for["compat"], None, origin)


def _sizes(linears: Linears) -> str:
    """Number of blocks, and the shapes of the linears of the last one."""
    shapes = ", ".join(
        f"{name} {out} x {width}" for name, (out, width) in linears[-1].items()
    )
    return f"{len(linears)} blocks of {shapes}"
