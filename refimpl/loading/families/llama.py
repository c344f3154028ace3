"""Llama, and the families that differ from it by a few keys or names."""

from refimpl.loading.families.family import BASE, QK_NORM, REQUIRED, ROPE, biased, key, only, unread

LLAMA = BASE.like(
    "llama",
    names=dict(
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
    keys=ROPE | dict(
        num_key_value_heads=None, head_dim=None, attention_bias=False, mlp_bias=False,
        norm_eps=key(1e-6, "rms_norm_eps"), activation=key("silu", "hidden_act"),
        max_position_embeddings=2048, partial_rotary_factor=only(1.0),
    ),
)  # fmt: skip

MISTRAL = LLAMA.like(
    "mistral",
    biased={},
    keys=dict(num_key_value_heads=8, sliding_window=4096, max_position_embeddings=131072),
    windows="all",
)  # fmt: skip

MINISTRAL = MISTRAL.like("ministral", keys=dict(layer_types=None))

MINISTRAL3 = MISTRAL.like(
    "ministral3",
    keys=dict(
        head_dim=128, norm_eps=1e-5, sliding_window=None,
        max_position_embeddings=262144,
        rope_parameters={
            "type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 16384,
        },
    ),
    rope_extras=("llama_4_scaling_beta", "max_position_embeddings"),
)  # fmt: skip

QWEN2 = LLAMA.like(
    "qwen2",
    biased=biased(True, "q", "k", "v"),
    keys=dict(
        use_sliding_window=False, sliding_window=4096, max_window_layers=28,
        layer_types=None, num_key_value_heads=32, max_position_embeddings=32768,
    ),
    windows="above",
)  # fmt: skip

QWEN3 = QWEN2.like(
    "qwen3",
    names=QK_NORM,
    biased=biased("attention_bias", "q", "k", "v", "o"),
    keys=dict(head_dim=128),
)

SEED_OSS = LLAMA.like(
    "seed_oss", biased=LLAMA.biased | biased("attention_out_bias", "o"),
    keys=dict(num_key_value_heads=8, head_dim=128, attention_bias=True, attention_out_bias=False,
              max_position_embeddings=524288),
)  # fmt: skip

INTERNLM3 = LLAMA.like("internlm3", keys=dict(
    attention_bias=key(False, "attention_bias", "qkv_bias"), num_key_value_heads=2,
    mlp_bias=key(False, "mlp_bias", "bias"), head_dim=128, norm_eps=1e-5,
    max_position_embeddings=32768,
))  # fmt: skip

EXAONE = LLAMA.like(
    "exaone",
    bases=("transformer.", ""),
    names=dict(
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
    keys=dict(
        num_hidden_layers=key(REQUIRED, "num_hidden_layers", "num_layers"),
        norm_eps=key(1e-5, "rms_norm_eps", "layer_norm_epsilon"),
        activation=key("silu", "hidden_act", "activation_function"),
        num_key_value_heads=8, rope_theta=500000.0, max_position_embeddings=4096,
    ),
    buffers=(r"h\.\d+\.attn\.attention\.rotary\.inv_freq",),
)  # fmt: skip

SMOLLM3 = LLAMA.like(
    "smollm3",
    keys=dict(
        use_sliding_window=False, sliding_window=None, layer_types=None,
        no_rope_layers=None, no_rope_layer_interval=4, num_key_value_heads=4,
        rope_theta=2000000.0, tie_word_embeddings=True, max_position_embeddings=32768,
    ),
    windows="unrotated",
    unrotated="listed",
)  # fmt: skip

HUNYUAN = LLAMA.like(
    "hunyuan_v1_dense",
    names=dict(
        q_rope_norm="layers.{}.self_attn.query_layernorm",
        k_rope_norm="layers.{}.self_attn.key_layernorm",
    ),
    keys=dict(
        norm_eps=1e-5, alpha=None, head_dim=key(None, echoes=("attention_head_dim",)),
        use_qk_norm=only(True), use_cla=only(False), use_rotary_pos_emb=only(True),
        **unread(
            "add_classification_head", "cla_share_factor", "class_num", "dense_list", "im_end_id",
            "im_newline_id", "im_start_id", "mask_init_id", "norm_type", "org_vocab_size",
            "pool_type", "text_end_id", "text_start_id",
        ),
    ),
)  # fmt: skip

CWM = LLAMA.like(
    "cwm",
    without=("attention_bias",),
    biased=biased("mlp_bias", "gate", "up", "down"),
    keys=dict(
        num_key_value_heads=8, head_dim=128, norm_eps=1e-5, max_position_embeddings=131072,
        rope_theta=1000000.0, sliding_window=8192, layer_types=None,
        sliding_window_pattern=only(4),  # a constant, not a key of its files
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 1000000.0, "factor": 16.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    ),
    windows="after first",
)  # fmt: skip
