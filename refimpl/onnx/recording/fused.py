"""Attention, rotary positions and RMS norm as one operator of opset 23 each, to record with.

They replace functions of `refimpl.model` while a graph is recorded. Float32 only: RotaryEmbedding
has no float64, and runtimes compute the norm of a float64 in float32 (`stash_type`).
"""

from typing import Any

import numpy as np

from refimpl.model.kernels import Kernels, plain_attention
from refimpl.model.ops import ACTIVATIONS
from refimpl.model.position_tables import alibi_bias

FUSED_OPSET = 23  # the first with these operators


def _attend(
    q: Any, k: Any, v: Any, bias: Any, cap: float | None, sink: Any = None, ramps: Any = None
) -> Any:
    """Record `Attention` of q, k, v [B, H, S, h]; like ours, it applies the cap before the bias.

    The operator has no sinks, so a model with them gets the plain operations.
    """
    if sink is not None:
        return plain_attention(q, k, v, bias, cap, sink, ramps)
    if ramps is not None:
        bias = bias + alibi_bias(ramps, ramps, q.dtype)
    return q.graph.add("Attention", q, k, v, bias, axes=q.axes, scale=1.0, softcap=cap or 0.0)


def _rotate(x: Any, cos: Any, sin: Any, interleaved: bool) -> Any:
    """Record `RotaryEmbedding` of x [B, heads, S, h], with a table for every sequence."""
    graph, (batch, *_) = x.graph, x.axes
    rows = graph.add("Concat", graph.add("Shape", x, start=0, end=1), [1, 1], axis=0)
    tables = [graph.add("Expand", table, rows, axes=(batch, *table.axes)) for table in (cos, sin)]
    rotated = 2 * cos.shape[-1]
    partial = {"rotary_embedding_dim": rotated} if rotated != x.shape[-1] else {}
    pairs = {"interleaved": 1} if interleaved else {}
    return graph.add("RotaryEmbedding", x, *tables, axes=x.axes, **partial, **pairs)


def _rms_norm(x: Any, weight: Any, eps: float) -> Any:
    """Record `RMSNormalization` of x [..., D]; the weight may be the number 1."""
    weight = np.ones(x.shape[-1], x.dtype) if isinstance(weight, float) else weight
    return x.graph.add("RMSNormalization", x, weight, axes=x.axes, axis=-1, epsilon=eps)


FUSED = Kernels(_attend, ACTIVATIONS, _rms_norm, _rotate)
