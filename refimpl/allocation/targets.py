"""How much every linear of a model shall lose: from an allocation, its file, or a pattern."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.request import Compat
from refimpl.allocation.scores import Scores
from refimpl.allocation.scores_document import document, request_fields
from refimpl.allocation.scores_file import understood
from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.pruners.decision import Goal
from refimpl.pruners.pattern import Pattern
from refimpl.running.provenance import token_facts
from refimpl.tokens import Tokens

Linears = Mapping[str, tuple[int, int]]
"""Shape [out, in] of every linear of a block, in order."""

KEPT_FIELDS = (  # of an allocation's file, that say how it was made
    "model", "eta", "seed", "dtype", "perturbation", "noise_scale", "noise_shape", "norm", "sink",
    "draws", "tokens", "base", "base_options", "requested_sparsity", "correct", "strength",
    "max_correction", "correction_scale", "lo", "hi", "compat",
)  # fmt: skip


@dataclass(frozen=True)
class Targets:
    """How much every linear loses.

    Args:
        linear_pruned: Weights to prune, [L, linears].
        linear_sparsity: The fraction it was made from, [L, linears]; what the peers' code is given.
        compat: "exact" or "peer".
        pattern: The pattern that fixes the counts, or None.
        made: How the targets were made, for the record.
    """

    linear_pruned: Array
    linear_sparsity: Array
    compat: Compat
    pattern: Pattern | None
    made: Mapping[str, Any]

    def goal(self, block: int, linear: int) -> Goal:
        """What one linear is asked to lose: a pattern, a count, or for the peers a fraction."""
        if self.pattern is not None:
            return self.pattern
        if self.compat == "peer":
            return float(self.linear_sparsity[block, linear])
        return int(self.linear_pruned[block, linear])


def allocation_targets(
    allocation: Allocation, scores: Scores | None = None, tokens: Tokens | None = None
) -> Targets:
    """Targets of an allocation made in this run.

    Args:
        allocation: From `allocate` or `base_only`.
        scores: What it was made from, if it was.
        tokens: What its signals were computed on, where there are no scores.

    Returns:
        Its counts and sparsities; on record is what the file of an allocation says, with null for
        what there was not.
    """
    known = request_fields(allocation)
    if scores is not None:
        known = document(scores, (allocation,))
    elif tokens is not None:
        known |= {"tokens": asdict(token_facts(tokens))}
    return Targets(
        allocation.linear_pruned,
        allocation.linear_sparsity,
        allocation.request.compat,
        None,
        {name: known.get(name) for name in KEPT_FIELDS},
    )


def pattern_targets(pattern: Pattern, linears: Linears, num_blocks: int, compat: Compat) -> Targets:
    """Targets of an N:M pattern: every linear loses n of m.

    Args:
        pattern: n zeros in each m consecutive inputs.
        linears: Shapes of a block's linears.
        num_blocks: L.
        compat: "exact" or "peer".

    Returns:
        n / m of every linear.

    Raises:
        RefimplError: m does not divide the inputs of a linear; all such linears are named.
    """
    odd = [f"{name} {width}" for name, (_, width) in linears.items() if width % pattern.group]
    if odd:
        raise RefimplError(
            f"pattern {pattern.pruned}:{pattern.group}: inputs that {pattern.group} does not "
            f"divide: {', '.join(odd)}",
            f"linears whose number of inputs is a multiple of {pattern.group}",
            "choose another --nm, or --sparsity",
        )
    sizes = np.array([out * width for out, width in linears.values()], np.int64)
    counts = np.tile(sizes * pattern.pruned // pattern.group, (num_blocks, 1))
    share = np.full(counts.shape, pattern.pruned / pattern.group)
    return Targets(counts, share, compat, pattern, {"pattern": f"{pattern.pruned}:{pattern.group}"})


def targets_for(
    target: Allocation | Pattern | Targets, linears: Linears, num_blocks: int
) -> Targets:
    """Targets of whatever says how much a model loses.

    Args:
        target: An allocation, a pattern (met exactly), or targets.
        linears: Shapes of the linears of the model that is pruned.
        num_blocks: Its number of blocks.

    Returns:
        Targets for this model.

    Raises:
        RefimplError: A pattern that does not divide its inputs; counts for other sizes.
    """
    if isinstance(target, Pattern):
        return pattern_targets(target, linears, num_blocks, "exact")
    targets = allocation_targets(target) if isinstance(target, Allocation) else target
    counts = targets.linear_pruned
    sizes = np.array([out * width for out, width in linears.values()], np.int64)
    fits = counts.shape == (num_blocks, len(sizes)) and ((counts >= 0) & (counts <= sizes)).all()
    if not fits:
        raise RefimplError(
            f"an allocation for another model: {list(counts.shape)} counts up to {counts.max()}",
            _sizes(num_blocks, {name: list(shape) for name, shape in linears.items()}),
            "allocate from this model's own scores",
        )
    return targets


def read_targets(path: Path, linears: Linears, num_blocks: int) -> Targets:
    """Targets from a file that `refimpl allocate -o` or `refimpl score -o` wrote.

    Args:
        path: The file; of a sweep over eta, the first allocation is taken.
        linears: Shapes of the linears of the model that is pruned.
        num_blocks: Its number of blocks.

    Returns:
        The allocation's counts and sparsities.

    Raises:
        RefimplError: Not such a file; an allocation for a model of other sizes; counts that do
            not fit.
    """
    wanted = {name: list(shape) for name, shape in linears.items()}

    def meaning(given: Mapping[str, Any]) -> Targets:
        rows = given["blocks"]
        found = [{x["name"]: list(x["shape"]) for x in row["linears"]} for row in rows]
        if len(rows) != num_blocks or any(block != wanted for block in found):
            raise RefimplError(
                f"{path}: an allocation for another model: {_sizes(len(rows), found[0])}",
                _sizes(num_blocks, wanted),
                "run refimpl score on this model",
            )
        counts = [[x["num_pruned"] for x in row["linears"]] for row in rows]
        sparsity = np.array([[x["sparsity"] for x in row["linears"]] for row in rows], np.float64)
        sizes = [out * width for out, width in linears.values()]
        for i, row in enumerate(counts):
            for name, count, size in zip(linears, row, sizes, strict=True):
                if type(count) is not int or not 0 <= count <= size:
                    raise ValueError(f"blocks.{i}.{name}: {count} to prune of {size} weights")
        if (total := sum(map(sum, counts))) != given["total_pruned"]:
            raise ValueError(f"counts sum to {total}, total_pruned is {given['total_pruned']}")
        if given["compat"] not in ("exact", "peer") or not (sparsity >= 0).all():
            raise ValueError(f"compat {given['compat']!r}, or a negative sparsity")
        made = {name: given[name] for name in KEPT_FIELDS}
        return Targets(np.array(counts, np.int64), sparsity, given["compat"], None, made)

    return understood(path, meaning)


def _sizes(num_blocks: int, linears: Mapping[str, list[int]]) -> str:
    shapes = ", ".join(f"{name} {out} x {width}" for name, (out, width) in linears.items())
    return f"{num_blocks} blocks of {shapes}"
