"""Granite and HyperCLOVA X: factors of embeddings, attention, residual, logits; experts; SWA."""

from refimpl.loading.families.family import biased, fused, key, only
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

GRANITE_MOE = GRANITE.like(
    "granitemoe",
    without=("gate_proj", "up_proj", "down_proj"),
    names={"router": "layers.{}.block_sparse_moe.router.layer"}
    | fused(
        "layers.{}.block_sparse_moe.input_linear", "experts.gate_proj", "experts.up_proj",
        stacked=True,
    )
    | fused("layers.{}.block_sparse_moe.output_linear", "experts.down_proj", stacked=True),
    biased=biased("attention_bias", "q", "k", "v", "o"),
    keys=dict(num_experts=key(8, "num_local_experts"), num_experts_per_tok=2),
    scoring="softmax",
)  # fmt: skip

GRANITE_SHARED = GRANITE_MOE.like(
    "granitemoeshared",
    names=fused(
        "layers.{}.shared_mlp.input_linear", "shared_expert.gate_proj", "shared_expert.up_proj"
    ) | {"shared_expert.down_proj": "layers.{}.shared_mlp.output_linear"},
    keys=dict(shared_expert_intermediate_size=key(0, "shared_intermediate_size")),
)  # fmt: skip
