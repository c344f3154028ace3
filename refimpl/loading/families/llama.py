"""Llama, and the families that differ from it by a few keys: Mistral, Qwen2, Qwen3."""

from dataclasses import replace

from refimpl.loading.families.family import ALL, QK_NORM, ROPE, Family, biased, separate

LLAMA = Family(
    model_type="llama",
    bases=("model.", ""),
    names=separate(
        embed="embed_tokens",
        attn_norm="layers.{}.input_layernorm",
        q_proj="layers.{}.self_attn.q_proj",
        k_proj="layers.{}.self_attn.k_proj",
        v_proj="layers.{}.self_attn.v_proj",
        o_proj="layers.{}.self_attn.o_proj",
        mlp_norm="layers.{}.post_attention_layernorm",
        gate_proj="layers.{}.mlp.gate_proj",
        up_proj="layers.{}.mlp.up_proj",
        down_proj="layers.{}.mlp.down_proj",
        final_norm="norm",
        lm_head="lm_head",
    ),
    biased=biased("attention_bias", "q", "k", "v", "o") | biased("mlp_bias", "gate", "up", "down"),
    keys={"norm_eps": "rms_norm_eps", "activation": "hidden_act"},
    defaults=ALL | ROPE | {
        "num_key_value_heads": None, "head_dim": None, "attention_bias": False, "mlp_bias": False,
        "norm_eps": 1e-6, "activation": "silu", "max_position_embeddings": 2048,
    },
    only=("is_causal", "partial_rotary_factor"),
)  # fmt: skip

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    biased={},
    defaults=LLAMA.defaults | {
        "num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072,
    },
    windows="all",
)  # fmt: skip

QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    biased=biased(True, "q", "k", "v"),
    defaults=LLAMA.defaults | {
        "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
        "layer_types": None, "num_key_value_heads": 32, "max_position_embeddings": 32768,
    },
    windows="above",
)  # fmt: skip

QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    names=LLAMA.names | QK_NORM,
    biased=biased("attention_bias", "q", "k", "v", "o"),
    defaults=QWEN2.defaults | {"head_dim": 128},
)
