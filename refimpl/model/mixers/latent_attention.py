"""Attention whose keys and values are made from one small vector per token."""

import numpy as np

from refimpl.model import attention, ops
from refimpl.model.config import Config
from refimpl.model.mixers.projection import Place, Weights, project
from refimpl.model.mixers.sizes import LatentAttention
from refimpl.model.ops import Array

EPS = 1e-6  # of the norms of both vectors, whatever the eps of the others


def latent_attention(x: Array, weights: Weights, place: Place, config: Config) -> Array:
    """Attend with q, k and v from low-rank vectors, and one rotated part of the keys for all heads.

    q = W_qb rms_norm(W_qa x), or W_q x;  latent, r = split(W_kva x);
    k, v = split(W_kvb rms_norm(latent));  W_o softmax([q, rot q_r] [k, rot r]^T + bias) v

    Some models rotate nothing: the last channels of all keys are the same, r, nevertheless. In
    some, each head is multiplied by sigmoid(W_gate x), a number.

    Observed: `q` [B, H, S, plain and rotary channels]; `latent`, normalised, [B, S, rank]; `v`
    [B, H, S, e]; `q_rope` and `k_rope`, as attention takes them, if they rotate; `q_latent`, the
    input of `q_b_proj`, and `attn_heads` [B, S, H e], the input of `o_proj`.

    Args:
        x: Normalised input, [B, S, D].
        weights: `q_proj`, or `q_a_proj` and `q_b_proj`; `kv_a_proj`, `kv_b_proj`, `o_proj`; norms.
        place: Bias, rotary tables, kernels and observer.
        config: The model's facts.

    Returns:
        [B, S, D].

    Source: DeepSeek-V2, arXiv:2405.04434, section 2.1; transformers' `DeepseekV3Attention`.
    """
    sizes, observe, kernels = place.mixer, place.observe, place.kernels
    assert isinstance(sizes, LatentAttention)
    plain, rank, heads = sizes.plain_dim, sizes.rank, sizes.num_attention_heads
    if sizes.query_rank is None:
        q = project(x, weights, "q_proj")
    else:
        low = kernels.rms_norm(project(x, weights, "q_a_proj"), weights["q_a_norm.weight"], EPS)
        q = project(observe("q_latent", low), weights, "q_b_proj")
    q = observe("q", attention.split_heads(q, plain + sizes.rotary_dim))
    both = project(x, weights, "kv_a_proj")
    latent = kernels.rms_norm(both[..., :rank], weights["kv_a_norm.weight"], EPS)
    kv = project(observe("latent", latent), weights, "kv_b_proj")
    kv = attention.split_heads(kv, plain + sizes.value_dim)
    v, turned = (
        observe("v", kv[..., plain:]),
        [q[..., plain:], attention.split_heads(both[..., rank:], sizes.rotary_dim)],
    )
    if place.rope is not None:
        turned = [kernels.rotate(y, *place.rope, place.interleaved) for y in turned]
    shared = np.take(turned[1], np.zeros(heads, np.int64), axis=1)
    q = np.concatenate((q[..., :plain], turned[0]), axis=-1)
    k = np.concatenate((kv[..., :plain], shared), axis=-1)
    if place.rope is not None:
        q, k = observe("q_rope", q), observe("k_rope", k)
    mixed = kernels.attention(q * place.query_scale, k, v, place.bias, None, None, None)
    if sizes.gated:
        mixed = mixed * attention.split_heads(ops.sigmoid(project(x, weights, "attn_gate")), 1)
    return project(observe("attn_heads", attention.merge_heads(mixed)), weights, "o_proj")
