"""How much every linear of a model loses: from an allocation, its file, or a pattern."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.scores import Scores
from refimpl.allocation.scores_json import FORMAT, NAMED, recorded, scores_document
from refimpl.arguments import Compat
from refimpl.errors import RefimplError, listed
from refimpl.loading.files.documents import plain, read_document, reading_document
from refimpl.loading.samples import Tokens
from refimpl.model.config import Linears, linear_sizes
from refimpl.model.ops import Array
from refimpl.pruners.counts import Pattern
from refimpl.pruners.decision import Goal


@dataclass(frozen=True)
class Targets:
    """How much every linear loses: weights and fractions [L, linears], which the peers' code takes.

    A pattern fixes the counts. `made` tells `pruning.json` how the targets were made.
    """

    linear_pruned: Array
    linear_sparsity: Array
    compat: Compat
    pattern: Pattern | None
    made: Mapping[str, Any]

    def goal(self, block: int, linear: int) -> Goal:
        """What one linear shall lose: a pattern, a count, or for the peers' code a fraction."""
        if self.pattern is not None:
            return self.pattern
        if self.compat == "peer":
            return float(self.linear_sparsity[block, linear])
        return int(self.linear_pruned[block, linear])


def allocation_targets(
    allocation: Allocation, scores: Scores | None = None, tokens: Tokens | None = None
) -> Targets:
    """Targets of an allocation, from scores, or from signals computed on these tokens."""
    made = recorded(allocation, scores)
    if scores is None and tokens is not None:
        made["tokens"] = plain(tokens.facts)
    counts, sparsity = allocation.linear_pruned, allocation.linear_sparsity
    return Targets(counts, sparsity, allocation.request.compat, None, made)


def pattern_targets(pattern: Pattern, linears: Linears, compat: Compat) -> Targets:
    """Targets of an N:M pattern: n / m of every linear."""
    shapes = {name: shape for block in linears for name, shape in block.items()}
    if odd := [f"{name} {width}" for name, (_, width) in shapes.items() if width % pattern.group]:
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
    found = read_document(path, NAMED, FORMAT, scores_document)
    scores, allocation = found.scores, found.allocations[0]
    if [[*x.items()] for x in scores.linears] != [[*x.items()] for x in linears]:
        raise RefimplError(
            f"{path}: an allocation for another model: {_sizes(scores.linears)}",
            _sizes(linears),
            "run refimpl score on this model",
        )
    counts, sparsity = allocation.linear_pruned, allocation.linear_sparsity
    sizes = linear_sizes(linears)
    with reading_document(path, NAMED):
        for i, j in np.argwhere((counts < 0) | (counts > sizes)).tolist():
            name = f"blocks.{i}.{[*linears[i], *[''] * j][j]}"
            raise ValueError(f"{name}: {counts[i, j]} to prune of {sizes[i, j]} weights")
        if (total := counts.sum()) != allocation.total_pruned:
            raise ValueError(f"counts sum to {total}, total_pruned is {allocation.total_pruned}")
        if not (sparsity >= 0).all():
            raise ValueError("a negative sparsity")
    made = recorded(scores.made_for, scores)
    return Targets(counts, sparsity, scores.made_for["compat"], None, made)


def _sizes(linears: Linears) -> str:
    """Number of blocks, and the shapes of the linears of the last one."""
    shapes = ", ".join(f"{name} {out} x {width}" for name, (out, width) in linears[-1].items())
    return f"{len(linears)} blocks of {shapes}"
