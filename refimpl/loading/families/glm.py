"""Llama with interleaved rotary pairs: GLM, GLM-4, ERNIE 4.5 and Helium."""

from dataclasses import replace

from refimpl.loading.families.family import biased, fused, separate
from refimpl.loading.families.llama import LLAMA

HELIUM = replace(
    LLAMA,
    model_type="helium",
    biased=biased("attention_bias", "q", "k", "v") | biased("mlp_bias", "gate", "up", "down"),
    defaults=LLAMA.defaults | {
        "num_key_value_heads": 20, "head_dim": 128, "norm_eps": 1e-8, "rope_theta": 100000.0,
        "max_position_embeddings": 4096,
    },
    interleaved=True,
)  # fmt: skip

ERNIE = replace(
    HELIUM,
    model_type="ernie4_5",
    biased=biased("use_bias", "q", "k", "v", "o", "gate", "up", "down"),
    defaults=LLAMA.defaults | {
        "num_key_value_heads": 2, "head_dim": 128, "norm_eps": 1e-5, "rope_theta": 500000.0,
        "max_position_embeddings": 131072, "tie_word_embeddings": True, "use_bias": False,
    },
    only=(*LLAMA.only, "attention_bias", "mlp_bias"),
)  # fmt: skip

GLM = replace(
    HELIUM,
    model_type="glm",
    names=LLAMA.names | fused("layers.{}.mlp.gate_up_proj", "gate_proj", "up_proj"),
    biased=biased("attention_bias", "q", "k", "v"),
    defaults=LLAMA.defaults | {
        "num_key_value_heads": 2, "head_dim": 128, "norm_eps": 1.5625e-7, "attention_bias": True,
        "partial_rotary_factor": 0.5, "max_position_embeddings": 131072,
    },
    only=("is_causal", "mlp_bias"),
)  # fmt: skip

GLM4 = replace(
    GLM,
    model_type="glm4",
    names=GLM.names | separate(
        attn_post_norm="layers.{}.post_self_attn_layernorm",
        mlp_post_norm="layers.{}.post_mlp_layernorm",
    ),
)  # fmt: skip
