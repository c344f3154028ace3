"""Tables that depend on token positions: the causal mask, rotary angles, ALiBi, query scales."""

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16

from refimpl.model import ops
from refimpl.model.config import Alibi, BlockKind, Rope, Temperature
from refimpl.model.ops import Array


def rope_tables(
    positions: Array, inv_freq: Array, dtype: npt.DTypeLike, factor: float = 1.0
) -> tuple[Array, Array]:
    """Cosine and sine of every position's angles, ``angle[s, i] = positions[s] * inv_freq[i]``.

    Args:
        positions: Token positions, [S], integers.
        inv_freq: Radians per position, [h_rot / 2], float64.
        dtype: Dtype of the tables; angles are formed in float64 and cast once.
        factor: Multiplies both tables.

    Returns:
        Cosines and sines, each [S, h_rot / 2].

    Source: Su et al., arXiv:2104.09864, section 3.2.

    Example:
        >>> cos, sin = rope_tables(np.array([0, 1]), np.array([np.pi / 2]), np.float64)
        >>> sin.tolist()
        [[0.0], [1.0]]
    """
    angle = np.expand_dims(positions, -1) * inv_freq
    cos, sin = (ops.scaled(table(angle), factor) for table in (np.cos, np.sin))
    return cos.astype(dtype), sin.astype(dtype)


def rotation(positions: Array, rope: Rope, dtype: npt.DTypeLike) -> tuple[Array, Array]:
    """`rope_tables` of all positions [S] of a sequence, whose length is the last one plus 1."""
    length = np.take(positions, -1, axis=0) + 1 if rope.by_length else 1
    return rope_tables(positions, rope.inv_freq(length), dtype, rope.attention_factor)


def reach(positions: Array, kind: BlockKind) -> Array | int | None:
    """How many tokens each token sees at most, itself included: of a window, or of its chunk.

    Args:
        positions: Token positions, [S], integers.
        kind: The kind of block.

    Returns:
        One number for all tokens, or one for each, [S, 1]; None for all earlier tokens.

    Example:
        >>> reach(np.arange(5), BlockKind(window=3, rope=None, chunked=True)).ravel().tolist()
        [1, 2, 3, 1, 2]
    """
    if kind.window is None or not kind.chunked:
        return kind.window
    first = positions // kind.window * kind.window  # of the chunk
    return np.expand_dims(positions - first + 1, -1)


def causal_bias(positions: Array, window: Array | int | None, dtype: npt.DTypeLike) -> Array:
    """The causal mask, added to attention scores: 0 for a visible key, ``-inf`` for a hidden one.

    Token q sees keys ``k <= q``, and with a window only the last ``window`` of them
    (``q - k < window``, itself included).

    Args:
        positions: Token positions, [S], integers.
        window: Number of visible tokens, from `reach`; None for all earlier ones.
        dtype: Dtype of the bias.

    Returns:
        Bias, [S (query), S (key)].

    Example:
        >>> causal_bias(np.arange(3), 2, np.float64).tolist()
        [[0.0, -inf, -inf], [0.0, 0.0, -inf], [-inf, 0.0, 0.0]]
    """
    query = np.expand_dims(positions, -1)
    hidden = positions > query  # compared, not subtracted: unsigned differences wrap
    if window is not None:
        hidden = hidden | (query - positions >= window)
    return np.where(hidden, np.array(-np.inf, dtype), np.array(0, dtype))


def alibi_ramps(positions: Array, alibi: Alibi) -> Array:
    """Each head's slope times each position: ``ramp[h, s] = slope[h] * positions[s]``.

    Some models round slopes, positions and their products to bfloat16, and scale the products.

    Args:
        positions: Token positions, [S], integers.
        alibi: Slopes of the heads, and how they are used.

    Returns:
        Ramps, [H, S], float64.

    Source: Press et al., arXiv:2108.12409, section 3.

    Example:
        >>> alibi_ramps(np.arange(3), Alibi((0.5, 0.25))).tolist()
        [[0.0, 0.5, 1.0], [0.0, 0.25, 0.5]]
    """

    def rounded(x: Array) -> Array:
        return x.astype(bfloat16).astype(np.float32) if alibi.rounded else x

    slopes = np.expand_dims(np.array(alibi.slopes), -1)
    return rounded(rounded(slopes) * rounded(positions)).astype(np.float64) * alibi.scale


def alibi_bias(query_ramps: Array, key_ramps: Array, dtype: npt.DTypeLike) -> Array:
    """ALiBi's bias on attention scores, ``ramp[h, key] - ramp[h, query]``.

    Args:
        query_ramps: From `alibi_ramps`, of the queries, [..., S (query)].
        key_ramps: The same of the keys, [..., S (key)].
        dtype: Dtype of the bias; ramps are subtracted in float64 and cast once.

    Returns:
        Bias, [..., S (query), S (key)].

    Source: Press et al., arXiv:2108.12409, section 3.

    Differs: transformers adds the keys' ramps alone, which is the same for the softmax.

    Example:
        >>> alibi_bias(np.array([0.0, 0.5]), np.array([0.0, 0.5]), np.float32).tolist()
        [[0.0, 0.5], [-0.5, 0.0]]
    """
    return (np.expand_dims(key_ramps, -2) - np.expand_dims(query_ramps, -1)).astype(dtype)


def query_scale(positions: Array, temperature: Temperature) -> Array:
    """A factor of each query that grows with its position, ``1 + beta log(1 + floor(s / period))``.

    Args:
        positions: Token positions, [S], integers.
        temperature: The family's beta and period, and where the first period begins.

    Returns:
        Factors, [S, 1], float64.

    Source: transformers, `get_llama_4_attn_scale` of Ministral 3.

    Example:
        >>> query_scale(np.arange(3), Temperature(beta=1.0, period=2)).round(3).ravel().tolist()
        [1.0, 1.0, 1.693]
    """
    periods = (positions + temperature.offset) // temperature.period
    return np.expand_dims(1 + temperature.beta * np.log(1.0 + periods), -1)
