"""GPT-NeoX: parallel residual, q, k and v interleaved head by head."""

from refimpl.loading.families.family import ALL, ROPE, Family, biased, fused, separate

GPT_NEOX = Family(
    model_type="gpt_neox",
    bases=("gpt_neox.", ""),
    names=separate(
        embed="embed_in",
        attn_norm="layers.{}.input_layernorm",
        o_proj="layers.{}.attention.dense",
        mlp_norm="layers.{}.post_attention_layernorm",
        up_proj="layers.{}.mlp.dense_h_to_4h",
        down_proj="layers.{}.mlp.dense_4h_to_h",
        final_norm="final_layer_norm",
        lm_head="embed_out",
    ) | fused("layers.{}.attention.query_key_value", "q_proj", "k_proj", "v_proj", per_head=True),
    norm="layer",
    biased=biased("attention_bias", "q", "k", "v", "o") | biased(True, "up", "down"),
    keys={
        "norm_eps": "layer_norm_eps", "activation": "hidden_act", "rope_theta": "rotary_emb_base",
        "partial_rotary_factor": "rotary_pct",
    },
    defaults=ALL | ROPE | {
        "partial_rotary_factor": 0.25, "attention_bias": True, "use_parallel_residual": True,
        "norm_eps": 1e-5, "activation": "gelu", "max_position_embeddings": 2048,
    },
    echoes={"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"},
    buffers=(
        r"layers\.\d+\.attention\.(bias|masked_bias)",
        r"layers\.\d+\.attention\.rotary_emb\.inv_freq",
    ),
)  # fmt: skip
