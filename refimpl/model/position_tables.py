"""Token positions, [S], integers: rotary angles, ALiBi, query scales, the causal mask; facts."""

from dataclasses import dataclass
from math import ceil, floor, log, pi
from typing import Literal

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16

from refimpl.model import ops
from refimpl.model.ops import Array


@dataclass(frozen=True)
class Rope:
    """Rotary positions of one kind of block."""

    theta: float  # Base of the wavelengths
    rotary_dim: int  # Channels of a head that rotate; an even number
    # How the context is stretched: "default" (not), "linear" (all positions divided by factor),
    # "llama3" and "yarn" (long waves only), "dynamic" (a base that grows with the length of the
    # sequence), "longrope" (a factor for each wave) or "proportional" (not, but only the first
    # waves of the whole head turn)
    scaling: Literal[
        "default", "linear", "llama3", "yarn", "dynamic", "longrope", "proportional"
    ] = "default"
    factor: float = 1.0  # Stretch of the context
    # llama3: waves longer than original / low are stretched by factor
    low_freq_factor: float = 1.0
    # llama3: waves shorter than original / high are not stretched
    high_freq_factor: float = 4.0
    # Context length before stretching, in tokens
    original_max_position_embeddings: int = 8192
    # Channels 2i and 2i + 1 rotate together, not i and i + rotary_dim / 2
    interleaved: bool = False
    attention_factor: float = 1.0  # yarn, longrope: multiplies cosines and sines
    # yarn: waves with more turns than this in the original context do not change
    beta_fast: float = 32.0
    # yarn: waves with fewer turns than this are stretched by factor
    beta_slow: float = 1.0
    # yarn: the two limits between waves are rounded to whole waves
    truncate: bool = True
    # longrope: divisor of each wave for sequences within the original context
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()  # longrope: the same for longer sequences
    # proportional: channels that turn; the waves of the others have no frequency
    turning_dim: int = 0

    @property
    def by_length(self) -> bool:
        """Whether the frequencies depend on the length of the sequence."""
        return self.scaling in ("dynamic", "longrope")

    def inv_freq(self, length: Array | int = 1) -> Array:
        """Radians per position, ``theta^(-2i / rotary_dim)`` and then scaled.

        Args:
            length: Tokens of the sequence; it matters only if `by_length`.

        Returns:
            [rotary_dim / 2], float64.

        Source: Su et al., arXiv:2104.09864, section 3.2; for yarn, Peng et al., arXiv:2309.00071,
        section 3; for longrope, Ding et al., arXiv:2402.13753; for all scalings, transformers'
        `modeling_rope_utils`.

        Example:
            >>> Rope(theta=100.0, rotary_dim=4).inv_freq().tolist()
            [1.0, 0.1]
            >>> Rope(theta=100.0, rotary_dim=4, scaling="linear", factor=2.0).inv_freq().tolist()
            [0.5, 0.05]
        """
        dim, original = self.rotary_dim, self.original_max_position_embeddings
        plain = self.theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
        if self.scaling == "linear":
            return plain / self.factor
        if self.scaling == "proportional":
            return np.where(
                np.arange(0, dim, 2) < self.turning_dim, plain / self.factor, 0.0
            )
        if self.scaling == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
            turns = original * plain / (2 * pi)
            blend = (
                np.sign(turns - low) if high == low else (turns - low) / (high - low)
            )
            short = np.clip(blend, 0, 1)  # 1: a short wave, not stretched
            return (1 - short) * plain / self.factor + short * plain
        if self.scaling == "yarn":
            low, high = self._yarn_limits()
            long = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
            return (1 - long) * plain + long * plain / self.factor
        if self.scaling == "dynamic":
            stretch = self.factor * np.maximum(length, original) / original - (
                self.factor - 1
            )
            return plain * stretch ** -(np.arange(0, dim, 2) / (dim - 2))
        if self.scaling == "longrope":
            long, short = (np.array(x) for x in (self.long_factor, self.short_factor))
            return plain / np.where(length > original, long, short)
        return plain

    def _yarn_limits(self) -> tuple[float, float]:
        """The waves, counted from 0, between which yarn begins and ends to stretch."""
        dim, original = self.rotary_dim, self.original_max_position_embeddings
        low, high = (
            dim * log(original / (turns * 2 * pi)) / (2 * log(self.theta))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = floor(low), ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        return low, high + 0.001 if high == low else high


@dataclass(frozen=True)
class Alibi:
    """Biases on attention scores by the distance of query and key, instead of positions."""

    slopes: tuple[float, ...]  # One per head
    scale: float = 1.0  # Multiplies the biases
    # Whether slopes, positions and their products are rounded to bfloat16
    rounded: bool = False


@dataclass(frozen=True)
class Temperature:
    """Factor of a query at position s: ``1 + beta log(1 + floor((s + offset) / period))``."""

    beta: float  # How fast they grow
    period: int  # Tokens between two steps
    offset: int = 0  # Added to positions


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


def tokens_seen(
    positions: Array, window: int | None, chunked: bool
) -> Array | int | None:
    """How many tokens each token sees at most, itself included: of a window, or of its chunk.

    Returns:
        One number for all tokens, or one for each, [S, 1]; None for all earlier tokens.

    Example:
        >>> tokens_seen(np.arange(5), 3, chunked=True).ravel().tolist()
        [1, 2, 3, 1, 2]
    """
    if window is None or not chunked:
        return window
    first = positions // window * window  # of the chunk
    return np.expand_dims(positions - first + 1, -1)


def causal_bias(
    positions: Array, window: Array | int | None, dtype: npt.DTypeLike
) -> Array:
    """The causal mask, added to attention scores: 0 for a visible key, ``-inf`` for a hidden one.

    Token q sees keys ``k <= q``, and with a window, from `tokens_seen`, only the last ``window`` of
    them (``q - k < window``, itself included).

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
    return (
        rounded(rounded(slopes) * rounded(positions)).astype(np.float64) * alibi.scale
    )


def alibi_bias(query_ramps: Array, key_ramps: Array, dtype: npt.DTypeLike) -> Array:
    """ALiBi's bias on attention scores, ``ramp[h, key] - ramp[h, query]``.

    The ramps are [..., S (query)] and [..., S (key)]; they are subtracted in float64 and cast once.

    Returns:
        Bias, [..., S (query), S (key)].

    Source: Press et al., arXiv:2108.12409, section 3.

    Differs: transformers adds the keys' ramps alone, which is the same for the softmax.

    Example:
        >>> alibi_bias(np.array([0.0, 0.5]), np.array([0.0, 0.5]), np.float32).tolist()
        [[0.0, 0.5], [-0.5, 0.0]]
    """
    return (np.expand_dims(key_ramps, -2) - np.expand_dims(query_ramps, -1)).astype(
        dtype
    )


def query_scale(positions: Array, temperature: Temperature) -> Array:
    """A factor of each query that grows with its position, ``1 + beta log(1 + floor(s / period))``.

    Returns:
        Factors, [S, 1], float64.

    Source: transformers, `get_llama_4_attn_scale` of Ministral 3.

    Example:
        >>> query_scale(np.arange(3), Temperature(beta=1.0, period=2)).round(3).ravel().tolist()
        [1.0, 1.0, 1.693]
    """
    periods = (positions + temperature.offset) // temperature.period
    return np.expand_dims(1 + temperature.beta * np.log(1.0 + periods), -1)
