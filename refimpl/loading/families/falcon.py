"""Falcon: q, k and v in one tensor, parallel blocks with one norm or two; Bloom and MPT."""

from refimpl.loading.families.family import (
    BASE,
    REQUIRED,
    ROPE,
    Entries,
    Family,
    Key,
    biased,
    fused,
    key,
    only,
    placed,
    unread,
)  # fmt: skip


def _falcon(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The roles and key-value heads of one of the three architectures."""
    names, keys = dict[str, str](), dict[str, Key]()
    if entries.get("new_decoder_architecture") is True:
        keys["use_parallel_residual"] = only(True, "parallel_attn")
        keys["num_ln_in_parallel_attn"] = Key(None, only=(None, 1, 2))
        if entries.get("num_ln_in_parallel_attn") != 1:
            names = dict(attn_norm="h.{}.ln_attn", mlp_norm="h.{}.ln_mlp")
    else:
        if entries.get("parallel_attn") is False:
            names = dict(mlp_norm="h.{}.post_attention_layernorm")
        if entries.get("multi_query", True) is True:
            keys = unread("num_kv_heads", "n_head_kv") | {"num_key_value_heads": only(1)}
    return family.like(family.model_type, names=names, keys=keys), entries


FALCON = BASE.like(
    "falcon", bases=("transformer.", ""), norm="layer",
    biased=biased("bias", "q", "k", "v", "o", "up", "down"), keys=ROPE, rounded_alibi=True,
    buffers=(), variant=_falcon,
    names=dict(embed="word_embeddings", final_norm="ln_f", lm_head="lm_head")
    | placed("h.{}.", attn_norm="input_layernorm", mlp_norm="input_layernorm")
    | placed("h.{}.mlp.", up_proj="dense_h_to_4h", down_proj="dense_4h_to_h")
    | {"o_proj": "h.{}.self_attention.dense"}
    | fused("h.{}.self_attention.query_key_value", "q_proj", "k_proj", "v_proj", grouped=True),
    hidden_size=key(REQUIRED, "hidden_size", "n_embed"),
    num_hidden_layers=key(REQUIRED, "num_hidden_layers", "n_layer"),
    num_attention_heads=key(REQUIRED, "num_attention_heads", "n_head"),
    num_key_value_heads=key(None, "num_kv_heads", "n_head_kv"),
    intermediate_size=key(None, "ffn_hidden_size"), norm_eps=key(1e-5, "layer_norm_epsilon"),
    activation="gelu", max_position_embeddings=2048, tie_word_embeddings=True, bias=False,
    alibi=False, partial_rotary_factor=only(1.0), num_ln_in_parallel_attn=only(None),
    use_parallel_residual=key(True, "parallel_attn"),
    new_decoder_architecture=Key(False, only=(True, False)),
    multi_query=Key(True, only=(True, False)), apply_residual_connection_post_layernorm=only(False),
)  # fmt: skip

BLOOM = BASE.like(
    "bloom", bases=FALCON.bases, norm="layer",
    biased=biased(True, "q", "k", "v", "o", "up", "down"),
    activations={"gelu_bloom": "gelu_tanh_8"}, buffers=(),
    names=FALCON.names | dict(
        embed_norm="word_embeddings_layernorm", mlp_norm="h.{}.post_attention_layernorm",
    ),
    hidden_size=key(REQUIRED, "hidden_size", "n_embed"),
    num_hidden_layers=key(REQUIRED, "n_layer", "num_hidden_layers"),
    num_attention_heads=key(REQUIRED, "n_head", "num_attention_heads"),
    intermediate_size=key(None, "n_inner"), norm_eps=key(1e-5, "layer_norm_epsilon"),
    activation=only("gelu_bloom"), max_position_embeddings=key(2048, "seq_length"),
    tie_word_embeddings=True, alibi=only(True), slow_but_exact=only(False),
    apply_residual_connection_post_layernorm=only(False), skip_bias_add_qkv=only(False),
    **unread("offset_alibi", "skip_bias_add"),
)  # fmt: skip


def _mpt(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The entries of `attn_config` beside the others."""
    nested = entries.get("attn_config")
    if not isinstance(nested, dict):
        return family, entries
    rest = {key: value for key, value in entries.items() if key != "attn_config"}
    return family, rest | {f"attn_config.{key}": value for key, value in nested.items()}


MPT = BASE.like(
    "mpt", bases=FALCON.bases, norm="layer", norm_bias=False, buffers=(), variant=_mpt,
    names=dict(embed="wte", final_norm="norm_f", lm_head="lm_head")
    | placed("blocks.{}.", attn_norm="norm_1", mlp_norm="norm_2", o_proj="attn.out_proj")
    | placed("blocks.{}.ffn.", "up_proj", "down_proj")
    | fused("blocks.{}.attn.Wqkv", "q_proj", "k_proj", "v_proj"),
    hidden_size=key(REQUIRED, "d_model"), num_hidden_layers=key(REQUIRED, "n_layers"),
    num_attention_heads=key(REQUIRED, "n_heads"), intermediate_size=None, expansion_ratio=only(4),
    activation=only("gelu"), norm_eps=key(1e-5, "layer_norm_epsilon"), no_bias=only(True),
    logit_scale=only(None), max_position_embeddings=key(2048, "max_seq_len"),
    tie_word_embeddings=True, attention_scale=key(None, "attn_config.softmax_scale"),
    qkv_limit=key(None, "attn_config.clip_qkv"), alibi=only(True, "attn_config.alibi"),
    alibi_bias_max=only(8, "attn_config.alibi_bias_max"),
    attn_type=only("multihead_attention", "attn_config.attn_type"),
    prefix_lm=only(False, "attn_config.prefix_lm"), qk_ln=only(False, "attn_config.qk_ln"),
    attn_uses_sequence_id=only(False, "attn_config.attn_uses_sequence_id"),
    **unread("learned_pos_emb", "norm_type", "embedding_fraction", "attn_config.attn_impl"),
)  # fmt: skip
