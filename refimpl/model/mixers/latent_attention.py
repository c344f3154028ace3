"""Attention whose keys and values are made from one small vector per token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refimpl.model import attention
from refimpl.model.config import Config, Matrices, Mixer, WeightShapes
from refimpl.model.mixers.parts import Place, Weights, affine
from refimpl.model.ops import Array

LATENT_EPS = 1e-6  # of the norms of both vectors, whatever the eps of the others


@dataclass(frozen=True)
class LatentAttention(Mixer):
    """Softmax attention whose keys and values come from one small vector per token."""

    num_attention_heads: int  # H
    query_rank: (
        int | None
    )  # Channels of the vector that queries come from; None: from the stream
    rank: int  # Channels of the vector that keys and values come from
    plain_dim: int  # Channels of a query and a key that do not rotate
    rotary_dim: int  # Channels that rotate, of a key the same for all heads
    value_dim: int  # Channels of a value
    scale: float  # Multiplies q k^T

    name = "latent_attention"
    points = ("q", "latent", "v", "q_rope", "k_rope")
    reads: ClassVar[Mapping[str, str]] = {
        "q_a_proj": "attn_norm",
        "q_b_proj": "q_latent",
        "kv_a_proj": "attn_norm",
        "kv_b_proj": "latent",
    }
    attends = True

    def shapes(self, width: int) -> WeightShapes:
        """As of `Mixer`."""
        heads, rank = self.num_attention_heads, self.query_rank
        q = heads * (self.plain_dim + self.rotary_dim)
        queries: Matrices = {"q_proj": (q, width)}
        if rank is not None:
            queries = {"q_a_proj": (rank, width), "q_b_proj": (q, rank)}
        linears = queries | {
            "kv_a_proj": (self.rank + self.rotary_dim, width),
            "kv_b_proj": (heads * (self.plain_dim + self.value_dim), self.rank),
            "o_proj": (width, heads * self.value_dim),
        }
        gains: dict[str, tuple[int, ...]] = {"kv_a_norm.weight": (self.rank,)}
        gains |= {"q_a_norm.weight": (rank,)} if rank else {}
        return WeightShapes(linears, arrays=gains)


def latent_attention(x: Array, weights: Weights, place: Place, config: Config) -> Array:
    """Attend with q, k and v from low-rank vectors, and one rotated part of the keys for all heads.

    q = W_qb rms_norm(W_qa x), or W_q x;  latent, r = split(W_kva x);
    k, v = split(W_kvb rms_norm(latent));  W_o softmax([q, rot q_r] [k, rot r]^T + bias) v

    Observed: `q` [B, H, S, plain and rotary channels]; `latent`, normalised, [B, S, rank]; `v`
    [B, H, S, e]; `q_rope` and `k_rope`, as attention takes them; `q_latent`, the
    input of `q_b_proj`, and `attn_heads` [B, S, H e], the input of `o_proj`.

    Weights: `q_proj`, or `q_a_proj` and `q_b_proj`; `kv_a_proj`, `kv_b_proj`, `o_proj`; norms.

    Source: DeepSeek-V2, arXiv:2405.04434, section 2.1; transformers' `DeepseekV3Attention`.
    """
    sizes, observe, kernels = place.mixer, place.observe, place.kernels
    assert isinstance(sizes, LatentAttention)
    assert place.rope is not None
    plain, rank, heads = sizes.plain_dim, sizes.rank, sizes.num_attention_heads
    if sizes.query_rank is None:
        q = affine(x, weights, "q_proj")
    else:
        low = kernels.rms_norm(
            affine(x, weights, "q_a_proj"), weights["q_a_norm.weight"], LATENT_EPS
        )
        q = affine(observe("q_latent", low), weights, "q_b_proj")
    q = observe("q", attention.split_heads(q, plain + sizes.rotary_dim))
    both = affine(x, weights, "kv_a_proj")
    latent = kernels.rms_norm(both[..., :rank], weights["kv_a_norm.weight"], LATENT_EPS)
    kv = affine(observe("latent", latent), weights, "kv_b_proj")
    kv = attention.split_heads(kv, plain + sizes.value_dim)
    v = observe("v", kv[..., plain:])
    turned_q, turned_k = (
        kernels.rotate(y, *place.rope, place.interleaved)
        for y in (
            q[..., plain:],
            attention.split_heads(both[..., rank:], sizes.rotary_dim),
        )
    )
    shared = np.take(turned_k, np.zeros(heads, np.int64), axis=1)
    q = observe("q_rope", np.concatenate((q[..., :plain], turned_q), axis=-1))
    k = observe("k_rope", np.concatenate((kv[..., :plain], shared), axis=-1))
    mixed = kernels.attention(q * place.query_scale, k, v, place.bias, None, None, None)
    return affine(
        observe("attn_heads", attention.merge_heads(mixed)), weights, "o_proj"
    )
