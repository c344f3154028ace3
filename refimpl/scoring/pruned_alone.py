"""The pruning perturbation with any other pruner than Wanda."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

from refimpl.model.config import Linears
from refimpl.model.forward import Weights
from refimpl.model.model import BlockWeights, Later, zeroed
from refimpl.model.ops import Array
from refimpl.model.statistics import input_of, saw_no_token, sum_of_outer_products
from refimpl.model.stream import Stream
from refimpl.pruners.compensation import SharedFactor, upper_factor
from refimpl.pruners.decision import Pruner, decision
from refimpl.running.threads import Workers
from refimpl.scoring.dense_statistics import sums_of_all


@dataclass(frozen=True)
class PrunedBlocks:
    """Blocks as a pruner prunes them, with exact counts.

    Args:
        linears: Shapes of the linears of every block, by name.
        counts: Weights to prune in each of V variants of a block, [V, L, linears].
        pruner: How weights are chosen.
        sums: For SparseGPT: the outer products of what the block's linears read, by trace point.
        sequences: Number of sequences that they are summed over.
        factors: Of the Hessians of these sums, for all variants.
    """

    linears: Linears
    counts: Array
    pruner: Pruner
    sums: Mapping[str, Array] = field(default_factory=dict)
    sequences: int = 0
    factors: Mapping[str, SharedFactor] = field(default_factory=dict)

    @property
    def needs_sums(self) -> bool:
        """Whether the pruner looks at the block's inputs."""
        return self.pruner.method == "sparsegpt"

    def summed(self, clean: Stream, weights: Weights, workers: Workers) -> Self:
        """The same, with the sums of all clean states before a block."""
        _, total = sums_of_all(clean, weights, sum_of_outer_products, workers)
        factors = {point: SharedFactor() for point in total}
        return replace(self, sums=total, sequences=len(clean.states), factors=factors)

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
        """A linear [out, in] without `count` of its weights; of an idle expert by magnitude."""
        weight, total = weights[f"{name}.weight"], self.sums.get(input_of(name))
        idle = self.needs_sums and saw_no_token(name, total)
        pruner = replace(self.pruner, method="magnitude") if idle else self.pruner
        factor = self.factors.get(input_of(name), upper_factor)
        keep, new = decision(weight, total, self.sequences, count, pruner, "exact", place, factor)
        if new is None:
            return weights.without(f"{name}.weight", keep)
        return zeroed(new.astype(weight.dtype), keep)
