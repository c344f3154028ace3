"""What some families do with token positions: ALiBi in place of rotary ones, and query scales."""

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16

from refimpl.model.config import Alibi, Temperature
from refimpl.model.ops import Array


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
