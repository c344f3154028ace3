"""Attention: heads, rotary positions, the causal mask, and the weighted mean of values.

Shape letters: B batch, H heads, S sequence, h head_dim, h_rot the channels of a head that rotate.
"""

import numpy as np

from refimpl.model import ops
from refimpl.model.ops import Array


def split_heads(x: Array, head_dim: int) -> Array:
    """Cut the last axis into heads of h channels: [B, S, heads * h] to [B, heads, S, h].

    Example:
        >>> split_heads(np.arange(4.0).reshape(1, 1, 4), 2).tolist()
        [[[[0.0, 1.0]], [[2.0, 3.0]]]]
    """
    batch, sequence, width = x.shape
    return np.transpose(
        np.reshape(x, (batch, sequence, width // head_dim, head_dim)), (0, 2, 1, 3)
    )


def merge_heads(x: Array) -> Array:
    """Undo `split_heads`: [B, heads, S, h] to [B, S, heads * h].

    Example:
        >>> merge_heads(np.arange(4.0).reshape(1, 2, 1, 2)).tolist()
        [[[0.0, 1.0, 2.0, 3.0]]]
    """
    batch, heads, sequence, head_dim = x.shape
    return np.reshape(
        np.transpose(x, (0, 2, 1, 3)), (batch, sequence, heads * head_dim)
    )


def rotate(x: Array, cos: Array, sin: Array, interleaved: bool = False) -> Array:
    """Rotate channel pairs ``(i, i + h_rot/2)`` by their angles; later channels do not change.

    Args:
        x: Queries or keys, [B, heads, S, h].
        cos: Cosines, [S, h_rot / 2].
        sin: Sines, [S, h_rot / 2].
        interleaved: The pairs are ``(2i, 2i + 1)``.

    Returns:
        Rotated input, [B, heads, S, h].

    Source: Su et al., arXiv:2104.09864, section 3.4.2, whose pairs are interleaved (GPT-J, Cohere,
    GLM); GPT-NeoX and Llama split the channels in halves.

    Example:
        >>> x = np.array([[[[1.0, 0.0, 5.0]]]])
        >>> rotate(x, np.array([[0.0]]), np.array([[1.0]])).tolist()
        [[[[0.0, 1.0, 5.0]]]]
    """
    half, width = cos.shape[-1], 2 * cos.shape[-1]
    channels = (
        ((0, width, 2), (1, width, 2)) if interleaved else ((0, half), (half, width))
    )
    first, second = (x[..., slice(*some)] for some in channels)
    turned = [first * cos - second * sin, second * cos + first * sin]
    if interleaved:
        turned = [np.reshape(np.stack(turned, axis=-1), (*x.shape[:-1], width))]
    return np.concatenate((*turned, x[..., width:]), axis=-1)


def attend(
    q: Array,
    k: Array,
    v: Array,
    bias: Array,
    cap: float | None,
    sink: Array | None = None,
) -> Array:
    """Average the values by the attention weights: ``softmax(cap(q k^T) + bias) v``.

    Args:
        q: Scaled queries, [..., S (query), h].
        k: Keys, [..., S (key), h].
        v: Values, [..., S (key), h].
        bias: From `position_tables.causal_bias`, [S (query), S (key)].
        cap: Soft cap on the scores, or None.
        sink: One more score of every query, which has no value, [..., 1, 1], or None.

    Returns:
        One weighted mean of values per query, [..., S (query), h].

    Source: Vaswani et al., arXiv:1706.03762, section 3.2.

    Example:
        >>> one, bias = np.ones((2, 1)), np.array([[0.0, -np.inf], [0.0, 0.0]])
        >>> attend(one, one, np.array([[1.0], [3.0]]), bias, None).tolist()
        [[1.0], [2.0]]
    """
    scores = ops.soft_cap(q @ np.swapaxes(k, -1, -2), cap)
    scores += bias  # in place, because scores are the largest arrays of the forward
    return ops.softmax(scores, sink) @ v
