"""Blocks that are pruned alone, everything else dense: the pruning perturbation, and probes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np

from refimpl.allocation.plan import Units
from refimpl.errors import RefimplError
from refimpl.model.config import Linears
from refimpl.model.forward import Weights
from refimpl.model.model import BlockWeights, Later, zeroed
from refimpl.model.ops import Array
from refimpl.model.statistics import SUMS, input_of, saw_no_token
from refimpl.model.stream import Stream
from refimpl.pruners.checks import Bools, Compat
from refimpl.pruners.compensation import FLOAT64, SharedFactor
from refimpl.pruners.decision import Goal, PrunerOptions, decision
from refimpl.pruners.magnitude import MAGNITUDE
from refimpl.running.threads import Workers
from refimpl.scoring.measurements import Moments, sums_of_all


@dataclass(frozen=True)
class PrunedBlocks:
    """Blocks as a pruner prunes them, with exact counts [V, L, linears] for V variants of each.

    A pruner that needs squares gets Wanda's statistic; one that needs outer products gets their
    sums over the sequences by trace point, which all variants share.
    """

    linears: Linears
    counts: Array
    pruner: PrunerOptions
    moments: Moments = ()
    products: Mapping[str, SharedFactor] = field(default_factory=dict)
    sequences: int = 1

    def summed(self, clean: Stream, weights: Weights, workers: Workers) -> Self:
        """The same, with the products of all clean states before a block."""
        _, total = sums_of_all(clean, weights, SUMS["products"], workers)
        count = len(clean.states)
        products = {point: SharedFactor(x, 2 / count) for point, x in total.items()}
        return replace(self, products=products, sequences=count)

    def __call__(
        self, block: int, variant: int, weights: BlockWeights, workers: Workers
    ) -> BlockWeights:
        """A block's weights after pruning, from its dense ones; a thread per linear."""
        counts = self.counts[variant, block].tolist()
        tasks = {
            f"{name}.weight": partial(self._pruned, weights, name, count, (block, j))
            for j, (name, count) in enumerate(zip(self.linears[block], counts, strict=False))
            if count
        }
        return weights | dict(zip(tasks, workers.run(list(tasks.values())), strict=True))

    def _pruned(
        self, weights: BlockWeights, name: str, count: int, place: tuple[int, int]
    ) -> Array | Later:
        """A linear [out, in] without `count` of its weights."""
        total = self.moments[place[0]][name] if self.moments else self.products.get(input_of(name))
        weight, how = weights[f"{name}.weight"], (self.sequences, count, self.pruner)
        keep, new, _ = decided(name, place, weight, total, *how, new_dtype=weight.dtype)
        if new is None:
            return weights.without(f"{name}.weight", keep)
        return zeroed(new, keep)


def decided(
    name: str,
    place: tuple[int, int],
    weight: Array,
    total: Array | SharedFactor | None,
    sequences: int,
    goal: Goal,
    pruner: PrunerOptions,
    compat: Compat = "exact",
    new_dtype: np.dtype[Any] = FLOAT64,
) -> tuple[Bools, Array | None, str | None]:
    """The decision on a linear, new weights, and how it was made if not as on others.

    Of an expert that saw no token, the lowest magnitudes go. An error names the linear.
    """
    sums = total.outer if isinstance(total, SharedFactor) else total
    idle = pruner.record.needs is not None and saw_no_token(name, sums)
    how = PrunerOptions(MAGNITUDE) if idle else pruner
    try:
        keep, new = decision(weight, total, sequences, goal, how, compat, place, new_dtype)
    except RefimplError as error:
        problem = f"blocks.{place[0]}.{name}: {error.problem}"
        raise RefimplError(problem, error.expected, error.remedy) from error
    return keep, new, MAGNITUDE.name if idle else None


def probe_counts(
    linear_pruned: Array, sizes: Array, delta: float | None, units: Units = "blocks"
) -> Array:
    """Count the weights to prune of every linear, in each variant of its block.

    N_u (s_u + d), rounded half to even, for d = -delta and delta, but at most half the way from
    s_u to 0 or to 1: where nothing or everything is pruned, an error does not grow. Counts of the
    base and sizes are [L, linears]; the result is [V, L, linears], in the order of
    `Probes.variants`.

    Example:
        >>> probe_counts(np.array([[50, 5]]), np.array([[100, 50]]), 0.1).tolist()
        [[[50, 5]], [[40, 2]], [[60, 10]]]
    """
    if delta is None:
        return linear_pruned[None]
    s = linear_pruned / np.maximum(sizes, 1)
    below, above = np.maximum(s - delta, s / 2), np.minimum(s + delta, (s + 1) / 2)
    outer = np.rint(np.stack([below, above]) * sizes).astype(np.int64)
    blocks = np.concatenate([linear_pruned[None], outer])
    if units == "blocks":
        return blocks
    alone = np.eye(sizes.shape[1], dtype=np.int64)[:, None, :] * blocks[:, None]
    return np.concatenate([blocks[:1], alone.reshape(-1, *sizes.shape)])
