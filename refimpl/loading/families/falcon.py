"""Falcon: q, k and v in one tensor, parallel blocks with one norm or two; Bloom and MPT."""

from dataclasses import replace

from refimpl.loading.families.family import ALL, ROPE, Entries, Family, biased, fused, separate


def _falcon(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The roles and key-value heads of one of the three architectures."""
    names, defaults, only = family.names, family.defaults, family.only
    norms = entries.get("num_ln_in_parallel_attn")
    if entries.get("new_decoder_architecture") is True:
        only = (*only, "use_parallel_residual")
        defaults = defaults | {"num_ln_in_parallel_attn": norms if norms in (1, 2) else None}
        if norms != 1:
            names = names | separate(attn_norm="h.{}.ln_attn", mlp_norm="h.{}.ln_mlp")
    else:
        if entries.get("parallel_attn") is False:
            names = names | separate(mlp_norm="h.{}.post_attention_layernorm")
        if entries.get("multi_query", True) is True:
            defaults = defaults | {"num_key_value_heads": 1}
            entries = {
                key: x for key, x in entries.items() if key not in ("num_kv_heads", "n_head_kv")
            }
    return replace(family, names=names, defaults=defaults, only=only), entries


FALCON = Family(
    model_type="falcon",
    bases=("transformer.", ""),
    names=separate(
        embed="word_embeddings",
        attn_norm="h.{}.input_layernorm",
        o_proj="h.{}.self_attention.dense",
        mlp_norm="h.{}.input_layernorm",
        up_proj="h.{}.mlp.dense_h_to_4h",
        down_proj="h.{}.mlp.dense_4h_to_h",
        final_norm="ln_f",
        lm_head="lm_head",
    ) | fused("h.{}.self_attention.query_key_value", "q_proj", "k_proj", "v_proj", grouped=True),
    norm="layer",
    biased=biased("bias", "q", "k", "v", "o", "up", "down"),
    keys={
        "intermediate_size": "ffn_hidden_size", "num_key_value_heads": "num_kv_heads",
        "norm_eps": "layer_norm_epsilon", "use_parallel_residual": "parallel_attn",
    },
    defaults=ALL | ROPE | {
        "intermediate_size": None, "num_key_value_heads": None, "norm_eps": 1e-5,
        "activation": "gelu", "max_position_embeddings": 2048, "tie_word_embeddings": True,
        "use_parallel_residual": True, "bias": False, "multi_query": True,
        "new_decoder_architecture": False, "num_ln_in_parallel_attn": None, "alibi": False,
        "apply_residual_connection_post_layernorm": False,
    },
    only=(
        "is_causal", "partial_rotary_factor", "num_ln_in_parallel_attn",
        "apply_residual_connection_post_layernorm",
    ),
    aliases={
        "n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
        "n_head_kv": "num_key_value_heads",
    },
    rounded_alibi=True,
    buffers=(),
    flags=("new_decoder_architecture", "multi_query"),
    variant=_falcon,
)  # fmt: skip

BLOOM = replace(
    FALCON,
    model_type="bloom",
    names=FALCON.names | separate(
        embed_norm="word_embeddings_layernorm", mlp_norm="h.{}.post_attention_layernorm",
    ),
    biased=biased(True, "q", "k", "v", "o", "up", "down"),
    keys={
        "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "norm_eps": "layer_norm_epsilon", "max_position_embeddings": "seq_length",
        "intermediate_size": "n_inner",
    },
    defaults=ALL | {
        "intermediate_size": None, "norm_eps": 1e-5, "activation": "gelu_bloom",
        "max_position_embeddings": 2048, "tie_word_embeddings": True, "alibi": True,
        "apply_residual_connection_post_layernorm": False, "slow_but_exact": False,
        "skip_bias_add_qkv": False,
    },
    only=(
        "is_causal", "alibi", "activation", "apply_residual_connection_post_layernorm",
        "slow_but_exact", "skip_bias_add_qkv",
    ),
    aliases={
        "n_embed": "hidden_size", "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
    },
    activations={"gelu_bloom": "gelu_tanh_8"},
    unread=(
        "attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion",
        "offset_alibi", "skip_bias_add",
    ),
    rounded_alibi=False,
    flags=(),
    variant=None,
)  # fmt: skip


def _mpt(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The entries of `attn_config` beside the others."""
    nested = entries.get("attn_config")
    if not isinstance(nested, dict):
        return family, entries
    rest = {key: value for key, value in entries.items() if key != "attn_config"}
    return family, rest | {f"attn_config.{key}": value for key, value in nested.items()}


MPT = replace(
    BLOOM,
    model_type="mpt",
    names=separate(
        embed="wte",
        attn_norm="blocks.{}.norm_1",
        o_proj="blocks.{}.attn.out_proj",
        mlp_norm="blocks.{}.norm_2",
        up_proj="blocks.{}.ffn.up_proj",
        down_proj="blocks.{}.ffn.down_proj",
        final_norm="norm_f",
        lm_head="lm_head",
    ) | fused("blocks.{}.attn.Wqkv", "q_proj", "k_proj", "v_proj"),
    norm_bias=False,
    biased={},
    keys={
        "hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "max_position_embeddings": "max_seq_len", "norm_eps": "layer_norm_epsilon",
        "attention_scale": "attn_config.softmax_scale", "qkv_limit": "attn_config.clip_qkv",
        "alibi": "attn_config.alibi",
    },
    defaults=ALL | {
        "intermediate_size": None, "norm_eps": 1e-5, "activation": "gelu", "qkv_limit": None,
        "max_position_embeddings": 2048, "tie_word_embeddings": True, "attention_scale": None,
        "alibi": True, "attn_config.alibi_bias_max": 8, "expansion_ratio": 4, "no_bias": True,
        "logit_scale": None, "attn_config.attn_type": "multihead_attention",
        "attn_config.prefix_lm": False, "attn_config.qk_ln": False,
        "attn_config.attn_uses_sequence_id": False,
    },
    only=(
        "is_causal", "alibi", "activation", "expansion_ratio", "no_bias", "logit_scale",
        "attn_config.alibi_bias_max", "attn_config.attn_type", "attn_config.prefix_lm",
        "attn_config.qk_ln", "attn_config.attn_uses_sequence_id",
    ),
    activations={},
    aliases={},
    unread=(
        "learned_pos_emb", "init_config", "init_device", "norm_type", "embedding_fraction",
        "verbose", "tokenizer_name", "emb_pdrop", "attn_config.attn_impl",
    ),
    variant=_mpt,
)  # fmt: skip
