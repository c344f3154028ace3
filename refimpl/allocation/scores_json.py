"""`scores.json`: scores and their allocations as they are, checked when they come back."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refimpl.allocation.allocate import Allocation, allocate
from refimpl.allocation.plan import Noise, Probes
from refimpl.allocation.request import Request
from refimpl.allocation.scores import AllocationErrors, ProbedErrors, Scores, StoredAllocation
from refimpl.bases.base import base_named
from refimpl.loading.files.documents import Document, converted, filled, plain, read_document
from refimpl.model.config import linear_sizes

FORMAT: Literal[5] = 5
LARGEST = 1 << 24  # no linear has more rows or columns; their products fit into 64 bits
NAMED = "a whole scores.json", "a file written by refimpl score -o", "run refimpl score again"
RENAMED = {"kind": "perturbation", "options": "base_options", "sparsity": "requested_sparsity"}
FORMS = dict.fromkeys(("drift", "drift_stderr", "alignment", "alignment_stderr"), "LL")
FORMS |= {"linear_sparsity": "LW", "linear_pruned": "LW"}
"""Axes of arrays that are not [L]: blocks, and linears of a block."""


class ScoresDocument(Document, frozen=True, kw_only=True):
    """Scores, made for the request of the allocations, and an allocation per eta."""

    format: Literal[5]
    scores: Scores
    allocations: list[StoredAllocation]


def document(scores: Scores, allocations: Sequence[Allocation] = ()) -> dict[str, Any]:
    """Describe scores and allocations, one per eta, by default those that they were made for."""
    allocations = allocations or [allocate(scores, which=i) for i in range(len(scores.sweep))]
    made, stored = replace(scores, made_for=_request(allocations[0])), [*map(_stored, allocations)]
    content: dict[str, Any] = plain(ScoresDocument(format=FORMAT, scores=made, allocations=stored))
    return content


def _request(allocation: Allocation) -> dict[str, Any]:
    """The request of an allocation, by field."""
    return vars(allocation.request) | {"base": allocation.request.record.name}


def _stored(allocation: Allocation) -> StoredAllocation:
    """An allocation as a file holds it."""
    growth, derived = None, ("common_rate", "fits")
    if (grows := allocation.growth) is not None:
        growth = vars(grows) | {name: getattr(grows, name) for name in derived}
    share = float(allocation.clipped.mean())
    return filled(StoredAllocation, allocation, clipped_share=share, growth=growth)


def recorded(made: Allocation | Mapping[str, Any], scores: Scores | None) -> dict[str, Any]:
    """How an allocation, or one of this request, was made; null where nothing was scored."""
    facts: dict[str, Any] = dict.fromkeys(("model", "eta", "dtype", "tokens"))
    facts |= dict.fromkeys(x.name for plan in (Noise, Probes) for x in fields(plan))
    if scores is not None:
        facts |= {**vars(scores.plan), "model": scores.model, "eta": scores.sweep[0].eta}
        facts |= {"dtype": scores.run.dtype, "tokens": scores.tokens}
    facts |= _request(made) if isinstance(made, Allocation) else made
    return plain({RENAMED.get(x, x): value for x, value in facts.items()})


def read_scores(path: str | Path) -> Scores:
    """Read scores back from the file that `refimpl score -o` wrote."""
    scores = read_document(Path(path), NAMED, FORMAT, scores_document).scores
    known = base_named(scores.made_for["base"]) is not None
    return scores if known else replace(scores, made_for={**scores.made_for, "base": None})


def scores_document(content: Any) -> ScoresDocument:
    """The document in a JSON value; ValueError if it is not whole."""
    found = converted(content, ScoresDocument, exact=True)
    scores, made_for = found.scores, dict(found.scores.made_for)
    linears, at, etas = tuple(scores.linears), scores.pruned_at, tuple(x.eta for x in scores.sweep)
    sides = [n for block in linears for shape in block.values() for n in shape]
    if not linears or not all(linears) or not 0 < min(sides) <= max(sides) < LARGEST:
        raise ValueError(f"scores.linears is {linears!r:.40}")
    if etas != scores.plan.etas or len(found.allocations) != len(etas):
        raise ValueError(f"scores.sweep and allocations are not at eta {scores.plan.etas}")
    probes = scores.plan if isinstance(scores.plan, Probes) else None
    if (probes is None) != (at is None):
        raise ValueError(f"scores.pruned_at is {at!r:.40}, which does not go with scores.plan")
    base = made_for.get("base")
    if isinstance(base, str) and base_named(base) is None:  # a file, or a base of another program
        made_for |= {"base": Request.base, "options": {}}
    converted(made_for, Request, "scores.made_for", exact=True)

    exists = linear_sizes(linears) > 0
    sizes = {"3": 3, "L": len(exists), "W": exists.shape[1]}
    owners: dict[str, Any] = {"scores": scores}
    owners |= {f"scores.{name}": getattr(scores, name) for name in ("pruned_at", "probes")}
    owners |= {f"scores.sweep[{i}]": x for i, x in enumerate(scores.sweep)}
    owners |= {f"allocations[{i}]": x for i, x in enumerate(found.allocations)}
    owners |= {f"allocations[{i}].errors": x.errors for i, x in enumerate(found.allocations)}
    units = "LW" if probes and probes.units == "linears" else "L"
    arrays = [
        (f"{path}.{name}", x, owner)
        for path, owner in owners.items()
        if owner is not None
        for name, x in vars(owner).items()
        if isinstance(x, np.ndarray)
    ]
    for path, x, owner in arrays:
        name = path.rpartition(".")[2]
        form = FORMS.get(name, "L")
        if isinstance(owner, ProbedErrors):
            sizes["N"] = scores.measured_samples
            form = f"3{units}" if name == "sparsity" else f"N3{units}"
        elif isinstance(owner, AllocationErrors) and name != "sparsity":
            form = units
        shape = tuple(sizes[axis] for axis in form)
        if x.shape != shape or (isinstance(owner, StoredAllocation) and np.isnan(x).any()):
            raise ValueError(f"{path} has {list(x.shape)} numbers, or null; expected {list(shape)}")
    for base, signal in scores.signals.items():
        for i, (name, x) in enumerate(signal.values.items()):
            known = exists if x.ndim == 2 else np.True_
            if (
                x.shape not in (exists.shape[:1], exists.shape)
                or not (np.isnan(x) == ~known if i == 0 else np.isnan(x) | known).all()
            ):
                raise ValueError(f"scores.signals.{base}.values.{name}: not a number per unit")
        if not signal.values:
            raise ValueError(f"scores.signals.{base}.values is empty")
    scores = replace(scores, linears=linears)
    return ScoresDocument(format=FORMAT, scores=scores, allocations=found.allocations)
