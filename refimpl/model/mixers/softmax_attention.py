"""Softmax attention, with a gate on its heads in some models."""

import numpy as np

from refimpl.model import attention, ops
from refimpl.model.config import Config
from refimpl.model.mixers.projection import Place, Weights, norm, project
from refimpl.model.mixers.sizes import Attention
from refimpl.model.ops import Array


def self_attention(x: Array, weights: Weights, place: Place, config: Config) -> Array:
    """Attend: ``softmax(cap((scale q) k^T) + bias) v``, heads merged, then `o_proj`.

    A learned score per head, `sinks` [H], may take a share of the softmax. A gate may multiply the
    heads: ``sigmoid(W_gate x)``, a factor per head or per channel.

    Values may be the keys before their norm and rotation, and normalised without a gain (`v_norm`).
    Keys before their rotation and values may be those of an earlier block.

    q and k may be normalised in three places: over all heads together (`q_width_norm`), per head
    (`q_norm`), or per head after the rotation (`q_rope_norm`).

    Observed: `q`, `k`, `v`, `q_rope`, `k_rope` [B, heads, S, h], and `attn_heads` [B, S, H h], the
    input of `o_proj`.

    Args:
        x: Normalised input, [B, S, D].
        weights: The block's weights by our names.
        place: Bias, rotary tables, kernels and observer.
        config: The model's facts.

    Returns:
        Attention's output, [B, S, D].
    """
    observe, kernels, sizes = place.observe, place.kernels, place.mixer
    assert isinstance(sizes, Attention)

    def heads_of(name: str) -> Array:
        if name in place.shared:
            return observe(name, place.shared[name])
        linear = "k" if name == "v" and sizes.keys_as_values else name
        y, scale = project(x, weights, f"{linear}_proj"), sizes.key_scale if name == "k" else 1.0
        y = norm(ops.scaled(y, scale), weights, f"{name}_width_norm", config, kernels)
        y = attention.split_heads(ops.limited(y, config.qkv_limit), sizes.head_dim)
        return observe(name, norm(y, weights, f"{name}_norm", config, kernels))

    q, k, v = map(heads_of, "qkv")
    if place.rope is not None:
        q, k = (kernels.rotate(x, *place.rope, place.interleaved) for x in (q, k))
        q = observe("q_rope", norm(q, weights, "q_rope_norm", config, kernels))
        k = observe("k_rope", norm(k, weights, "k_rope_norm", config, kernels))
    k, v = (np.take(kv, sizes.kv_head_of_head, axis=1) for kv in (k, v))
    q, cap = q * place.query_scale, config.attn_soft_cap
    sink = np.reshape(weights["sinks"], (-1, 1, 1)) if "sinks" in weights else None
    heads = kernels.attention(q, k, v, place.bias, cap, sink, place.ramps)
    if sizes.gate_width:
        gate = ops.sigmoid(project(x, weights, "attn_gate"))
        heads = heads * attention.split_heads(gate, sizes.gate_width)
    return project(observe("attn_heads", attention.merge_heads(heads)), weights, "o_proj")
