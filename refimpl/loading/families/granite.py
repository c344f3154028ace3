"""Granite and HyperCLOVA X: factors of embeddings, attention, residual and logits; Granite SWA."""

from refimpl.loading.families.family import key, only
from refimpl.loading.families.llama import LLAMA

GRANITE = LLAMA.like(
    "granite",
    keys=dict(
        embed_scale=key(1.0, "embedding_multiplier"),
        attention_scale=key(1.0, "attention_multiplier"),
        residual_scale=key(1.0, "residual_multiplier"), logit_divisor=key(1.0, "logits_scaling"),
    ),
)  # fmt: skip

GRANITE_SWA = GRANITE.like(
    "granite_swa",
    names=dict(sinks="layers.{}.self_attn.sinks"),
    keys=dict(
        num_key_value_heads=4, norm_eps=1e-5, tie_word_embeddings=True,
        sliding_window=128, layer_types=None, layer_rope_theta=None, max_position_embeddings=8192,
        sliding_window_pattern=only(4),  # a constant, not a key of its files
    ),
    windows="after first",
)  # fmt: skip

HYPERCLOVAX = GRANITE.like(
    "hyperclovax",
    names=dict(
        attn_post_norm="layers.{}.post_norm1", mlp_post_norm="layers.{}.post_norm2"
    ),
    without=("logit_divisor",),
    keys=dict(attention_scale=None, use_post_norm=True, logit_scale=key(1.0, "logits_scaling")),
    optional=dict.fromkeys(("attn_post_norm", "mlp_post_norm"), "use_post_norm"),
)  # fmt: skip
