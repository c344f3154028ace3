"""Blocks that are pruned alone, everything else dense: the pruning perturbation, and probes."""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from refimpl.allocation.plan import Units
from refimpl.model.config import Linears
from refimpl.model.forward import Weights
from refimpl.model.model import BlockWeights
from refimpl.model.ops import Array
from refimpl.model.statistics import input_of
from refimpl.model.stream import Stream
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruning.block import InputSums, input_sums, pruned_linears
from refimpl.running.threads import Workers
from refimpl.scoring.measurements import Moments


@dataclass(frozen=True)
class PrunedBlocks:
    """Blocks as a pruner prunes them, with exact counts [V, L, linears] for V variants of each.

    A pruner that needs squares gets Wanda's statistic; one that needs outer products gets their
    sums over the sequences, which all variants share.
    """

    linears: Linears
    counts: Array
    pruner: PrunerOptions
    moments: Moments = ()
    products: InputSums = field(default_factory=InputSums)

    def summed(self, clean: Stream, weights: Weights, workers: Workers) -> Self:
        """The same, with the products of all clean states before a block."""
        return replace(self, products=input_sums(clean, weights, "products", workers))

    def __call__(
        self, block: int, variant: int, weights: BlockWeights, workers: Workers
    ) -> BlockWeights:
        """A block's weights after pruning, from its dense ones."""
        sums = self.products
        if self.moments:
            sums = InputSums({input_of(name): x for name, x in self.moments[block].items()})
        goals = [count or None for count in self.counts[variant, block].tolist()]
        how = goals, sums, self.pruner, workers
        pruned = pruned_linears(block, self.linears[block], weights, *how)
        return weights | {f"{name}.weight": x.weight(weights, name) for name, x in pruned.items()}


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
