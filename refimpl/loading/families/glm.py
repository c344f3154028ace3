"""Llama with interleaved rotary pairs: GLM, GLM-4, ERNIE 4.5 and Helium."""

from refimpl.loading.families.family import biased, fused, key, only
from refimpl.loading.families.llama import LLAMA

HELIUM = LLAMA.like(
    "helium",
    biased=biased("attention_bias", "q", "k", "v") | biased("mlp_bias", "gate", "up", "down"),
    keys=dict(
        num_key_value_heads=20, head_dim=128, norm_eps=1e-8, rope_theta=100000.0,
        max_position_embeddings=4096,
    ),
    interleaved=True,
)  # fmt: skip

ERNIE = HELIUM.like(
    "ernie4_5",
    biased=biased("use_bias", "q", "k", "v", "o", "gate", "up", "down"),
    keys=dict(
        num_key_value_heads=2, head_dim=128, norm_eps=1e-5, rope_theta=500000.0,
        max_position_embeddings=131072, tie_word_embeddings=True, use_bias=False,
        attention_bias=only(False), mlp_bias=only(False),
    ),
)  # fmt: skip

GLM = HELIUM.like(
    "glm",
    names=fused("layers.{}.mlp.gate_up_proj", "gate_proj", "up_proj"),
    biased=biased("attention_bias", "q", "k", "v"),
    keys=dict(
        num_key_value_heads=2, head_dim=128, norm_eps=1.5625e-7, rope_theta=10000.0,
        attention_bias=True, partial_rotary_factor=key(0.5), max_position_embeddings=131072,
        mlp_bias=only(False),
    ),
)  # fmt: skip

GLM4 = GLM.like(
    "glm4",
    names=dict(
        attn_post_norm="layers.{}.post_self_attn_layernorm",
        mlp_post_norm="layers.{}.post_mlp_layernorm",
    ),
)  # fmt: skip
