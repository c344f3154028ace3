"""Llama, and the families that differ from it by a few keys or names."""

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

MINISTRAL = replace(
    MISTRAL, model_type="ministral", defaults=MISTRAL.defaults | {"layer_types": None}
)

MINISTRAL3 = replace(
    MISTRAL,
    model_type="ministral3",
    defaults=MISTRAL.defaults | {
        "head_dim": 128, "norm_eps": 1e-5, "sliding_window": None,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 16384,
        },
    },
    rope_extras=("llama_4_scaling_beta", "max_position_embeddings"),
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

SEED_OSS = replace(
    LLAMA, model_type="seed_oss", biased=LLAMA.biased | biased("attention_out_bias", "o"),
    defaults=LLAMA.defaults | {"num_key_value_heads": 8, "head_dim": 128, "attention_bias": True,
                               "attention_out_bias": False, "max_position_embeddings": 524288},
)  # fmt: skip

INTERNLM3 = replace(
    LLAMA, model_type="internlm3", aliases={"qkv_bias": "attention_bias", "bias": "mlp_bias"},
    defaults=LLAMA.defaults | {"num_key_value_heads": 2, "head_dim": 128, "norm_eps": 1e-5,
                               "max_position_embeddings": 32768},
)  # fmt: skip

EXAONE = replace(
    LLAMA,
    model_type="exaone",
    bases=("transformer.", ""),
    names=separate(
        embed="wte",
        attn_norm="h.{}.ln_1",
        q_proj="h.{}.attn.attention.q_proj",
        k_proj="h.{}.attn.attention.k_proj",
        v_proj="h.{}.attn.attention.v_proj",
        o_proj="h.{}.attn.attention.out_proj",
        mlp_norm="h.{}.ln_2",
        gate_proj="h.{}.mlp.c_fc_0",
        up_proj="h.{}.mlp.c_fc_1",
        down_proj="h.{}.mlp.c_proj",
        final_norm="ln_f",
        lm_head="lm_head",
    ),
    aliases={
        "num_layers": "num_hidden_layers", "layer_norm_epsilon": "norm_eps",
        "activation_function": "activation",
    },
    defaults=LLAMA.defaults | {
        "num_key_value_heads": 8, "norm_eps": 1e-5, "rope_theta": 500000.0,
        "max_position_embeddings": 4096,
    },
    buffers=(r"h\.\d+\.attn\.attention\.rotary\.inv_freq",),
)  # fmt: skip

SMOLLM3 = replace(
    LLAMA,
    model_type="smollm3",
    defaults=LLAMA.defaults | {
        "use_sliding_window": False, "sliding_window": None, "layer_types": None,
        "no_rope_layers": None, "no_rope_layer_interval": 4, "num_key_value_heads": 4,
        "rope_theta": 2000000.0, "tie_word_embeddings": True, "max_position_embeddings": 32768,
    },
    windows="unrotated",
    unrotated="listed",
)  # fmt: skip

HUNYUAN = replace(
    LLAMA,
    model_type="hunyuan_v1_dense",
    names=LLAMA.names | separate(
        q_rope_norm="layers.{}.self_attn.query_layernorm",
        k_rope_norm="layers.{}.self_attn.key_layernorm",
    ),
    defaults=LLAMA.defaults | {
        "norm_eps": 1e-5, "alpha": None, "use_qk_norm": True, "use_cla": False,
        "use_rotary_pos_emb": True,
    },
    only=(*LLAMA.only, "use_qk_norm", "use_cla", "use_rotary_pos_emb"),
    echoes={"attention_head_dim": "head_dim"},
    unread=(
        "add_classification_head", "cla_share_factor", "class_num", "dense_list", "im_end_id",
        "im_newline_id", "im_start_id", "mask_init_id", "norm_type", "org_vocab_size", "pool_type",
        "text_end_id", "text_start_id",
    ),
)  # fmt: skip
