"""Two ways to evaluate the costly steps: plain, and on slices that fit in a core's cache.

The plain functions are the definition. The tiled ones compute the same on slices, in place, and
skip keys that no query of a slice sees, so their results differ in rounding only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from refimpl.model import attention, ops
from refimpl.model.ops import Array
from refimpl.model.position_tables import alibi_bias

QUERIES = 64  # of a tile of scores, [heads, 64, S]
ELEMENTS = (
    1 << 16
)  # at a time: fewer calls are faster on several threads, which share a lock


@dataclass(frozen=True)
class Kernels:
    """The steps that can be evaluated in more than one way."""

    attention: Callable[..., Array]  # As `plain_attention`
    activations: Mapping[str, Callable[..., Array]]  # As `ops.ACTIVATIONS`
    rms_norm: Callable[[Array, Array | float, float], Array]  # As `ops.rms_norm`
    rotate: Callable[[Array, Array, Array, bool], Array]  # As `attention.rotate`


def plain_attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array,
    cap: float | None,
    sink: Array | None = None,
    ramps: Array | None = None,
) -> Array:
    """Evaluate `attention.attend` on whole arrays, with ALiBi's part of the bias.

    Arguments and result are those of `attend`, for heads [B, H, ...]; the sink is [H, 1, 1], and
    the ramps are those of `alibi_ramps`, [H, S], or None.
    """
    if ramps is not None:
        bias = bias + alibi_bias(ramps, ramps, q.dtype)
    return attention.attend(q, k, v, bias, cap, sink)


def tiled_attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array,
    cap: float | None,
    sink: Array | None = None,
    ramps: Array | None = None,
) -> Array:
    """Evaluate `plain_attention` a few heads at a time, on tiles of queries and the keys they see.

    Arguments and result are those of `plain_attention`; but the S tokens may be several sequences,
    one after another, each of the bias's length.

    Example:
        >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 2, 5, 4))
        >>> from refimpl.model.position_tables import causal_bias
        >>> bias = causal_bias(np.arange(5), 2, np.float64)
        >>> tiled, plain = (f(q, k, v, bias, 1.0) for f in (tiled_attention, plain_attention))
        >>> bool(np.allclose(tiled, plain))
        True
    """
    mixed, length = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype), len(bias)
    for start in range(0, length, QUERIES):
        tile = slice(start, min(start + QUERIES, length))
        visible = np.flatnonzero((bias[tile] == 0).any(axis=0))
        keys = slice(visible[0], visible[-1] + 1)
        near = bias[tile, keys]
        seen = near if near.any() else None  # a tile without a mask
        some = max(1, ELEMENTS // near.size)
        firsts = (
            range(q.shape[0]),
            range(0, q.shape[1], some),
            range(0, q.shape[2], length),
        )
        for row, head, first in product(*firsts):
            heads, alibi = slice(head, head + some), seen
            if ramps is not None:
                alibi = alibi_bias(ramps[heads, tile], ramps[heads, keys], bias.dtype)
                alibi = alibi if seen is None else seen + alibi
            at = (row, heads, slice(first, first + length))
            some_sinks = None if sink is None else sink[heads]
            near_tiles = q[at][:, tile], k[at][:, keys], v[at][:, keys]
            mixed[at][:, tile] = tile_of_attention(*near_tiles, alibi, cap, some_sinks)
    return mixed


def tile_of_attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None,
    cap: float | None,
    sink: Array | None,
) -> Array:
    """Evaluate `attention.attend`, with the scores changed in place and the shares of few values.

    The division by the softmax's sum comes after the values, [queries, h] instead of
    [queries, keys].
    """
    scores = q @ np.swapaxes(k, -1, -2)
    if cap is not None:
        scores = ops.soft_cap(scores, cap)
    if bias is not None:
        scores += bias
    top = np.max(scores, axis=-1, keepdims=True)
    if sink is not None:
        top = np.maximum(top, sink)
    scores -= top
    np.exp(scores, out=scores)
    total = np.sum(scores, axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink - top)
    return (scores @ v) / total


def in_pieces(function: Callable[..., Array]) -> Callable[..., Array]:
    """The same elementwise function, piece by piece, in place; parameters are passed on whole.

    Example:
        >>> in_pieces(ops.relu)(np.array([[-1.0, 2.0]])).tolist()
        [[0.0, 2.0]]
    """

    def whole(x: Array, *parameters: Array) -> Array:
        flat = x.reshape(-1)
        for start in range(0, flat.size, ELEMENTS):
            piece = slice(start, start + ELEMENTS)
            flat[piece] = function(flat[piece], *parameters)
        return flat.reshape(x.shape)

    return whole


def rms_norm_in_rows(x: Array, weight: Array | float, eps: float) -> Array:
    """Evaluate `ops.rms_norm` on a few rows at a time, without an array of the squares.

    Example:
        >>> rms_norm_in_rows(np.array([[3.0, 4.0]]), np.ones(2), 0.0).round(4).tolist()
        [[0.8485, 1.1314]]
    """
    result, rows = np.empty_like(x), max(1, ELEMENTS // x.shape[-1])
    for at in np.ndindex(x.shape[:-2]):
        for start in range(0, x.shape[-2], rows):
            piece = slice(start, start + rows)
            part, scaled = x[at][piece], result[at][piece]
            mean_square = np.vecdot(part, part) / x.shape[-1]
            np.divide(part, np.sqrt(mean_square + eps)[:, None], out=scaled)
            scaled *= weight
    return result


PLAIN = Kernels(plain_attention, ops.ACTIVATIONS, ops.rms_norm, attention.rotate)
TILED = replace(
    PLAIN,
    attention=tiled_attention,
    rms_norm=rms_norm_in_rows,
    activations={
        name: in_pieces(function) for name, function in ops.ACTIVATIONS.items()
    },
)
