"""With LayerNorm: Cohere, StableLM; Falcon, Bloom, MPT; GPT-2, OPT, GPT-NeoX, GPT-J, Phi."""

from refimpl.loading.families.family import (
    ATTENTION,
    ATTENTION_BIAS,
    BASE,
    REQUIRED,
    ROPE,
    Entries,
    Family,
    Key,
    Location,
    biased,
    fused,
    key,
    only,
    placed,
    unread,
)
from refimpl.loading.families.llama import LLAMA

COHERE = LLAMA.like(
    "cohere",
    names=dict(mlp_norm="layers.{}.input_layernorm"),
    norm="layer",
    norm_bias=False,
    biased=ATTENTION_BIAS,
    interleaved=True,
    norm_eps=key(1e-5, "layer_norm_eps"),
    rope_theta=500000.0,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    logit_scale=0.0625,
    use_parallel_residual=only(True),
    use_qk_norm=only(False),
    mlp_bias=only(False),
)

COHERE2 = COHERE.like(
    "cohere2",
    windows="pattern",
    unrotated="unwindowed",
    rope_theta=10000.0,
    sliding_window=4096,
    layer_types=None,
    sliding_window_pattern=key(4, echoes=("_sliding_window_pattern",)),
    **unread(
        "layer_switch",
        "order_of_interleaved_layers",
        "position_embedding_type",
        "rotary_pct",
        "use_embedding_sharing",
        "use_gated_activation",
        "use_parallel_block",
        "use_parallel_embedding",
    ),
)


def _stablelm(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """With one norm per block where the residual is parallel."""
    if entries.get("use_parallel_residual") is not True:
        return family, entries
    shared = dict(mlp_norm="layers.{}.input_layernorm")
    return family.like(family.model_type, names=shared), entries


STABLELM = LLAMA.like(
    "stablelm",
    norm="layer",
    biased=biased("use_qkv_bias", "q", "k", "v"),
    variant=_stablelm,
    num_key_value_heads=32,
    norm_eps=key(1e-5, "layer_norm_eps"),
    max_position_embeddings=4096,
    partial_rotary_factor=key(0.25),
    use_qkv_bias=False,
    use_parallel_residual=False,
    qk_layernorm=only(False),
    attention_bias=only(False),
    mlp_bias=only(False),
)


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
            keys = unread("num_kv_heads", "n_head_kv") | {
                "num_key_value_heads": only(1)
            }
    return family.like(family.model_type, names=names, keys=keys), entries


FALCON = BASE.like(
    "falcon",
    bases=("transformer.", ""),
    norm="layer",
    biased=biased("bias", "q", "k", "v", "o", "up", "down"),
    keys=ROPE,
    rounded_alibi=True,
    buffers=(),
    variant=_falcon,
    names=dict(embed="word_embeddings", final_norm="ln_f", lm_head="lm_head")
    | placed("h.{}.", attn_norm="input_layernorm", mlp_norm="input_layernorm")
    | placed("h.{}.mlp.", up_proj="dense_h_to_4h", down_proj="dense_4h_to_h")
    | {"o_proj": "h.{}.self_attention.dense"}
    | fused(
        "h.{}.self_attention.query_key_value",
        "q_proj",
        "k_proj",
        "v_proj",
        grouped=True,
    ),
    hidden_size=key(REQUIRED, "hidden_size", "n_embed"),
    num_hidden_layers=key(REQUIRED, "num_hidden_layers", "n_layer"),
    num_attention_heads=key(REQUIRED, "num_attention_heads", "n_head"),
    num_key_value_heads=key(None, "num_kv_heads", "n_head_kv"),
    intermediate_size=key(None, "ffn_hidden_size"),
    norm_eps=key(1e-5, "layer_norm_epsilon"),
    activation="gelu",
    max_position_embeddings=2048,
    tie_word_embeddings=True,
    bias=False,
    alibi=False,
    partial_rotary_factor=only(1.0),
    num_ln_in_parallel_attn=only(None),
    use_parallel_residual=key(True, "parallel_attn"),
    new_decoder_architecture=Key(False, only=(True, False)),
    multi_query=Key(True, only=(True, False)),
    apply_residual_connection_post_layernorm=only(False),
)

BLOOM = BASE.like(
    "bloom",
    bases=FALCON.bases,
    norm="layer",
    biased=biased(True, "q", "k", "v", "o", "up", "down"),
    activations={"gelu_bloom": "gelu_tanh_8"},
    buffers=(),
    names=FALCON.names
    | dict(
        embed_norm="word_embeddings_layernorm",
        mlp_norm="h.{}.post_attention_layernorm",
    ),
    hidden_size=key(REQUIRED, "hidden_size", "n_embed"),
    num_hidden_layers=key(REQUIRED, "n_layer", "num_hidden_layers"),
    num_attention_heads=key(REQUIRED, "n_head", "num_attention_heads"),
    intermediate_size=key(None, "n_inner"),
    norm_eps=key(1e-5, "layer_norm_epsilon"),
    activation=only("gelu_bloom"),
    max_position_embeddings=key(2048, "seq_length"),
    tie_word_embeddings=True,
    alibi=only(True),
    slow_but_exact=only(False),
    apply_residual_connection_post_layernorm=only(False),
    skip_bias_add_qkv=only(False),
    **unread("offset_alibi", "skip_bias_add"),
)


def _mpt(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The entries of `attn_config` beside the others."""
    nested = entries.get("attn_config")
    if not isinstance(nested, dict):
        return family, entries
    rest = {key: value for key, value in entries.items() if key != "attn_config"}
    return family, rest | {f"attn_config.{key}": value for key, value in nested.items()}


MPT = BASE.like(
    "mpt",
    bases=FALCON.bases,
    norm="layer",
    norm_bias=False,
    buffers=(),
    variant=_mpt,
    names=dict(embed="wte", final_norm="norm_f", lm_head="lm_head")
    | placed(
        "blocks.{}.", attn_norm="norm_1", mlp_norm="norm_2", o_proj="attn.out_proj"
    )
    | placed("blocks.{}.ffn.", "up_proj", "down_proj")
    | fused("blocks.{}.attn.Wqkv", "q_proj", "k_proj", "v_proj"),
    hidden_size=key(REQUIRED, "d_model"),
    num_hidden_layers=key(REQUIRED, "n_layers"),
    num_attention_heads=key(REQUIRED, "n_heads"),
    intermediate_size=None,
    expansion_ratio=only(4),
    activation=only("gelu"),
    norm_eps=key(1e-5, "layer_norm_epsilon"),
    no_bias=only(True),
    logit_scale=only(None),
    max_position_embeddings=key(2048, "max_seq_len"),
    tie_word_embeddings=True,
    attention_scale=key(None, "attn_config.softmax_scale"),
    qkv_limit=key(None, "attn_config.clip_qkv"),
    alibi=only(True, "attn_config.alibi"),
    alibi_bias_max=only(8, "attn_config.alibi_bias_max"),
    attn_type=only("multihead_attention", "attn_config.attn_type"),
    prefix_lm=only(False, "attn_config.prefix_lm"),
    qk_ln=only(False, "attn_config.qk_ln"),
    attn_uses_sequence_id=only(False, "attn_config.attn_uses_sequence_id"),
    **unread(
        "learned_pos_emb", "norm_type", "embedding_fraction", "attn_config.attn_impl"
    ),
)

GPT2 = BASE.like(
    "gpt2",
    bases=("transformer.", ""),
    norm="layer",
    biased=biased(True, "q", "k", "v", "o", "up", "down"),
    position_offset=0,
    buffers=(r"h\.\d+\.attn\.(bias|masked_bias)",),
    names=dict(
        embed="wte",
        pos_embed="wpe",
        attn_norm="h.{}.ln_1",
        mlp_norm="h.{}.ln_2",
        final_norm="ln_f",
        lm_head="lm_head",
    )
    | fused("h.{}.attn.c_attn", "q_proj", "k_proj", "v_proj", transposed=True)
    | {
        "o_proj": Location("h.{}.attn.c_proj", transposed=True),
        "up_proj": Location("h.{}.mlp.c_fc", transposed=True),
        "down_proj": Location("h.{}.mlp.c_proj", transposed=True),
    },
    hidden_size=key(REQUIRED, "n_embd"),
    num_hidden_layers=key(REQUIRED, "n_layer"),
    num_attention_heads=key(REQUIRED, "n_head"),
    intermediate_size=key(None, "n_inner"),
    norm_eps=key(1e-5, "layer_norm_epsilon"),
    max_position_embeddings=key(1024, "n_positions"),
    tie_word_embeddings=True,
    activation=key("gelu_new", "activation_function"),
    scale_attn_weights=only(True),
    scale_attn_by_inverse_layer_idx=only(False),
    add_cross_attention=only(False),
)

OPT = BASE.like(
    "opt",
    bases=("model.decoder.", "decoder.", ""),
    norm="layer",
    biased=biased("enable_bias", "q", "k", "v", "o", "up", "down"),
    position_offset=2,
    buffers=(),
    names=dict(
        embed="embed_tokens",
        pos_embed="embed_positions",
        final_norm="final_layer_norm",
        lm_head="lm_head",
    )
    | placed(
        "layers.{}.", attn_norm="self_attn_layer_norm", mlp_norm="final_layer_norm"
    )
    | placed("layers.{}.", up_proj="fc1", down_proj="fc2")
    | placed("layers.{}.self_attn.", *ATTENTION[:3], o_proj="out_proj"),
    intermediate_size=key(REQUIRED, "ffn_dim"),
    activation=key("relu", "activation_function"),
    tie_word_embeddings=True,
    max_position_embeddings=2048,
    enable_bias=True,
    word_embed_proj_dim=None,
    do_layer_norm_before=only(True),
    _remove_final_layer_norm=only(False),
    layer_norm_elementwise_affine=only(True),
    norm_eps=only(1e-5),  # a constant of the family, not a key of its files
)

GPT_NEOX = BASE.like(
    "gpt_neox",
    bases=("gpt_neox.", ""),
    norm="layer",
    biased=ATTENTION_BIAS | biased(True, "up", "down"),
    keys=ROPE,
    buffers=(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    names=dict(embed="embed_in", final_norm="final_layer_norm", lm_head="embed_out")
    | placed(
        "layers.{}.", attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"
    )
    | placed("layers.{}.mlp.", up_proj="dense_h_to_4h", down_proj="dense_4h_to_h")
    | {"o_proj": "layers.{}.attention.dense"}
    | fused(
        "layers.{}.attention.query_key_value",
        "q_proj",
        "k_proj",
        "v_proj",
        grouped=True,
    ),
    rope_theta=key(10000.0, "rotary_emb_base", echoes=("rope_theta",)),
    partial_rotary_factor=key(0.25, "rotary_pct", echoes=("partial_rotary_factor",)),
    norm_eps=key(1e-5, "layer_norm_eps"),
    activation=key("gelu", "hidden_act"),
    attention_bias=True,
    use_parallel_residual=True,
    max_position_embeddings=2048,
)

GPTJ = GPT2.like(
    "gptj",
    without=("pos_embed",),
    biased=biased(True, "up", "down") | {"lm_head": True},
    keys=ROPE,
    position_offset=None,
    interleaved=True,
    names=placed("h.{}.attn.", *ATTENTION[:3], o_proj="out_proj")
    | placed("h.{}.", mlp_norm="ln_1", up_proj="mlp.fc_in", down_proj="mlp.fc_out"),
    tie_word_embeddings=False,
    max_position_embeddings=2048,
    rotary_dim=64,
    rope_theta=only(10000.0),
    partial_rotary_factor=only(1.0),
    rope_scaling=only(None),
    rope_parameters=only(None),
    use_parallel_residual=only(True),
    rotary=only(True),
)

PHI = LLAMA.like(
    "phi",
    without=("gate_proj",),
    norm="layer",
    biased=biased(True, "q", "k", "v", "o", "up", "down") | {"lm_head": True},
    optional=dict.fromkeys(("q_norm", "k_norm"), "qk_layernorm"),
    names=dict(final_norm="final_layernorm", mlp_norm="layers.{}.input_layernorm")
    | placed("layers.{}.mlp.", up_proj="fc1", down_proj="fc2")
    | placed(
        "layers.{}.self_attn.",
        o_proj="dense",
        q_norm="q_layernorm",
        k_norm="k_layernorm",
    ),
    norm_eps=key(1e-5, "layer_norm_eps"),
    activation="gelu_new",
    partial_rotary_factor=key(0.5),
    qk_layernorm=False,
    use_parallel_residual=only(True),
    attention_bias=only(False),
    mlp_bias=only(False),
    **unread("rotary_dim"),
)

PHI3 = LLAMA.like(
    "phi3",
    biased={},
    scalings={"su": "longrope", "yarn": "longrope"},
    windows="all",
    names=fused("layers.{}.self_attn.qkv_proj", "q_proj", "k_proj", "v_proj")
    | fused("layers.{}.mlp.gate_up_proj", "gate_proj", "up_proj"),
    norm_eps=1e-5,
    sliding_window=None,
    max_position_embeddings=4096,
    original_max_position_embeddings=4096,
    partial_rotary_factor=key(1.0),
    attention_bias=only(False),
    interpolate_factor=only(1),
    full_attn_mod=only(1),
)
