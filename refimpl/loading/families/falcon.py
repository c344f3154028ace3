"""Falcon: queries, keys and values in one tensor, parallel blocks with one norm or two."""

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
        "is_causal", "partial_rotary_factor", "alibi", "num_ln_in_parallel_attn",
        "apply_residual_connection_post_layernorm",
    ),
    echoes={
        "n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
        "n_head_kv": "num_key_value_heads",
    },
    buffers=(),
    flags=("new_decoder_architecture", "multi_query"),
    variant=_falcon,
)  # fmt: skip
