"""How much is pruned of a block, alone, to see how its error grows with its sparsity."""

import numpy as np

from refimpl.method.perturbation import Units
from refimpl.model.ops import Array


def probe_counts(
    linear_pruned: Array, sizes: Array, delta: float | None, units: Units = "blocks"
) -> Array:
    """Count the weights to prune of every linear, in each variant of its block.

    N_u (s_u + d), rounded half to even, for d = -delta and delta, but at most half the way from
    s_u to 0 or to 1: where nothing or everything is pruned, an error does not grow.

    Args:
        linear_pruned: Weights to prune in the base allocation, [L, linears].
        sizes: Weights of each linear, [L, linears]; 0 where a block lacks one.
        delta: Change of the sparsity; None for the base's counts alone.
        units: What is pruned alone: blocks, or each linear.

    Returns:
        [V, L, linears], in the order of `Probes.variants`.

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
