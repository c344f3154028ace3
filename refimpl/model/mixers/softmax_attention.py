"""Softmax attention, with a gate on its heads in some models."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from refimpl.model import attention, ops
from refimpl.model.config import Config, Mixer, WeightShapes
from refimpl.model.mixers.parts import Place, Weights, affine, norm
from refimpl.model.ops import Array


@dataclass(frozen=True)
class Attention(Mixer):
    """Softmax attention: sizes in the words of `config.json`, and the gate of its heads."""

    num_attention_heads: int  # H, query heads
    num_key_value_heads: int  # K, key and value heads; H is a multiple of it
    head_dim: int  # h, channels per head
    # Factors of a gate per head: one for all its channels, or h; 0 without a gate
    gate_width: int = 0
    key_scale: float = 1.0  # Multiplies keys, before any norm and rotation
    # Whether values are keys before their norm and rotation
    keys_as_values: bool = False
    # The block's number if later ones read its keys, before their rotation, and values
    shared_as: int | None = None

    name = "attention"
    points = ("q", "k", "v", "q_rope", "k_rope")
    reads: ClassVar[Mapping[str, str]] = {"attn_gate": "attn_norm"}
    attends = True

    def runs(self, fused: tuple[str, ...]) -> int:
        """As of `Mixer`: a gate is beside the queries of its head, others go by key-value head."""
        return (
            self.num_attention_heads
            if "attn_gate" in fused
            else self.num_key_value_heads
        )

    @property
    def shared_kv_size(self) -> int:
        """As of `Mixer`: the keys and values of a token."""
        return (
            0
            if self.shared_as is None
            else 2 * self.num_key_value_heads * self.head_dim
        )

    @property
    def kv_head_of_head(self) -> npt.NDArray[np.intp]:
        """Which key-value head each query head reads: [H]."""
        return np.arange(self.num_attention_heads) // (
            self.num_attention_heads // self.num_key_value_heads
        )

    def shapes(self, width: int) -> WeightShapes:
        """As of `Mixer`."""
        heads, h = self.num_attention_heads, self.head_dim
        q, kv = heads * h, self.num_key_value_heads * h
        shapes = (q, width), (kv, width), (kv, width), (width, q)
        linears = dict(
            zip(("q_proj", "k_proj", "v_proj", "o_proj"), shapes, strict=True)
        )
        if self.keys_as_values:
            del linears["v_proj"]
        gate = (
            {"attn_gate": (heads * self.gate_width, width)} if self.gate_width else {}
        )
        if self.gate_width > 1:  # as large as the queries
            linears, gate = linears | gate, {}
        norms = dict.fromkeys(
            ("q_norm", "k_norm", "q_rope_norm", "k_rope_norm", "v_norm"), h
        )
        norms |= {"q_width_norm": q, "k_width_norm": kv}
        return WeightShapes(linears, gate, norms, {"sinks": (heads,)})


@dataclass(frozen=True)
class SharedAttention(Attention):
    """Softmax attention with the keys and values of an earlier block."""

    # That block, whose attention has the same sizes and rotates its keys in the same way
    source: int = 0

    def shapes(self, width: int) -> WeightShapes:
        """As of `Mixer`."""
        every = super().shapes(width)
        linears = {name: x for name, x in every.linears.items() if name[0] not in "kv"}
        norms = {name: x for name, x in every.norms.items() if name[0] not in "kv"}
        return replace(every, linears=linears, norms=norms)


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
    """
    observe, kernels, sizes = place.observe, place.kernels, place.mixer
    assert isinstance(sizes, Attention)

    def heads_of(name: str) -> Array:
        if isinstance(sizes, SharedAttention) and name != "q":
            return observe(name, place.shared_kv[sizes.source]["kv".index(name)])
        linear = "k" if name == "v" and sizes.keys_as_values else name
        y, scale = (
            affine(x, weights, f"{linear}_proj"),
            sizes.key_scale if name == "k" else 1.0,
        )
        y = norm(ops.scaled(y, scale), weights, f"{name}_width_norm", config, kernels)
        y = attention.split_heads(ops.limited(y, config.qkv_limit), sizes.head_dim)
        return observe(name, norm(y, weights, f"{name}_norm", config, kernels))

    q, k, v = map(heads_of, "qkv")
    if sizes.shared_as is not None:
        place.shared_kv[sizes.shared_as] = k, v
    if place.rope is not None:
        q, k = (kernels.rotate(x, *place.rope, place.interleaved) for x in (q, k))
        q = observe("q_rope", norm(q, weights, "q_rope_norm", config, kernels))
        k = observe("k_rope", norm(k, weights, "k_rope_norm", config, kernels))
    k, v = (np.take(kv, sizes.kv_head_of_head, axis=1) for kv in (k, v))
    q, cap = q * place.query_scale, config.attn_soft_cap
    sink = np.reshape(weights["sinks"], (-1, 1, 1)) if "sinks" in weights else None
    heads = kernels.attention(q, k, v, place.bias, cap, sink, place.ramps)
    if sizes.gate_width:
        gate = ops.sigmoid(affine(x, weights, "attn_gate"))
        heads = heads * attention.split_heads(gate, sizes.gate_width)
    return affine(
        observe("attn_heads", attention.merge_heads(heads)), weights, "o_proj"
    )
