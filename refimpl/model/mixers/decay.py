"""The share of a token's contribution to a state that is left at a later token."""

import numpy as np

from refimpl.model.ops import Array


def decays(log_decay: Array, positions: Array) -> Array:
    """Multiply the decays between two tokens: ``D[t, s] = a_{s+1} ... a_t`` for s <= t, else 0.

    Logarithms are summed from s + 1 to t, without a difference of two long sums, whose rounding
    would grow with the length of the text.

    Args:
        log_decay: log a_t, at most 0, [..., S, 1].
        positions: Of the tokens, [S].

    Returns:
        [..., S (t), S (s)].

    Example:
        >>> decays(np.log([[1.0], [0.5], [0.5]]), np.arange(3)).tolist()
        [[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.25, 0.5, 1.0]]
    """
    later = np.expand_dims(positions, -1) > positions
    left = np.exp(np.cumsum(np.where(later, log_decay, 0.0), axis=-2))
    return np.where(np.expand_dims(positions, -1) >= positions, left, 0.0)
