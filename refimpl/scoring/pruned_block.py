"""A block as Wanda prunes it: what the pruning perturbation puts in the place of a dense one."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from refimpl.model.forward import Weights
from refimpl.model.ops import Array
from refimpl.pruners.scores import wanda_keep, wanda_score
from refimpl.running.threads import Workers


@dataclass(frozen=True)
class Thinning:
    """Wanda with exact counts per linear.

    Args:
        moments: Wanda's statistic per block and linear, [in].
        counts: Number of weights to prune per block and linear.
    """

    moments: tuple[Mapping[str, Array], ...]
    counts: tuple[Mapping[str, int], ...]

    def __call__(self, block: int, weights: Weights, workers: Workers) -> Weights:
        """A block's weights after pruning.

        Args:
            block: The block, from 0.
            weights: Its dense weights by our names.
            workers: Threads, one linear each.

        Returns:
            The weights, the linears' pruned entries zero.
        """
        moments, counts = self.moments[block], self.counts[block]
        tasks = [partial(_thin, weights[f"{n}.weight"], moments[n], k) for n, k in counts.items()]
        thinned = workers.run(tasks)
        return {**weights, **{f"{n}.weight": w for n, w in zip(counts, thinned, strict=True)}}


def _thin(weight: Array, moments: Array, count: int) -> Array:
    """A linear without its least important weights."""
    keep = wanda_keep(wanda_score(weight, moments), count)
    return np.where(keep, weight, np.zeros((), weight.dtype))
