"""Steps as one operator of opset 23 each: attention, rotary positions, RMS normalisation.

They stand in for the functions of `refimpl.model` while a graph is recorded, so the forward is not
described twice. Float32 only: RotaryEmbedding has no float64, and runtimes and the reference alike
compute the norm of a float64 in float32 (`stash_type`).
"""

from typing import Any

from refimpl.model.kernels import Kernels
from refimpl.model.ops import ACTIVATIONS

OPSET = 23  # the first that has them


def attend(q: Any, k: Any, v: Any, bias: Any, cap: float | None) -> Any:
    """Record `attention.attend` as one `Attention`: windows are in the bias, caps an attribute.

    Args:
        q: Scaled queries, [B, H, S, h].
        k: Keys, [B, H, S, h].
        v: Values, [B, H, S, h].
        bias: 0 or ``-inf``, [S, S].
        cap: Soft cap on the scores, or None.

    Returns:
        Mixed values, [B, H, S, h].

    Source:
        ONNX's Attention, version 23 (a peer): the cap comes before the bias, as here.
    """
    return q.graph.add("Attention", q, k, v, bias, axes=q.axes, scale=1.0, softcap=cap or 0.0)


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Record `attention.rotate` as one `RotaryEmbedding`, with a table for every sequence.

    Args:
        x: Queries or keys, [B, heads, S, h].
        cos: Cosines, [S, h_rot / 2].
        sin: Sines, [S, h_rot / 2].

    Returns:
        Rotated input, [B, heads, S, h].

    Source:
        ONNX's RotaryEmbedding, version 23 (a peer), not interleaved.
    """
    graph, (batch, *_) = x.graph, x.axes
    rows = graph.add("Concat", graph.add("Shape", x, start=0, end=1), [1, 1], axis=0)
    tables = [graph.add("Expand", table, rows, axes=(batch, *table.axes)) for table in (cos, sin)]
    turned = 2 * cos.shape[-1]
    partial = {"rotary_embedding_dim": turned} if turned != x.shape[-1] else {}
    return graph.add("RotaryEmbedding", x, *tables, axes=x.axes, **partial)


def rms_norm(x: Any, weight: Any, eps: float) -> Any:
    """Record `ops.rms_norm` as one `RMSNormalization`.

    Args:
        x: Input, [..., D].
        weight: Gain, [D].
        eps: Added to the mean square.

    Returns:
        Normalised input, [..., D].

    Source:
        ONNX's RMSNormalization, version 23 (a peer).
    """
    return x.graph.add("RMSNormalization", x, weight, axes=x.axes, axis=-1, epsilon=eps)


FUSED = Kernels(attend, ACTIVATIONS, rms_norm, rotate)
