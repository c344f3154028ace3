"""GPT-2 and OPT (learned positions), GPT-NeoX, GPT-J, Phi (parallel), and Phi-3."""

from refimpl.loading.families.family import (
    ATTENTION,
    ATTENTION_BIAS,
    BASE,
    REQUIRED,
    ROPE,
    Location,
    biased,
    fused,
    key,
    only,
    placed,
    unread,
)  # fmt: skip
from refimpl.loading.families.llama import LLAMA

GPT2 = BASE.like(
    "gpt2", bases=("transformer.", ""), norm="layer",
    biased=biased(True, "q", "k", "v", "o", "up", "down"), position_offset=0,
    buffers=(r"h\.\d+\.attn\.(bias|masked_bias)",),
    names=dict(
        embed="wte", pos_embed="wpe", attn_norm="h.{}.ln_1", mlp_norm="h.{}.ln_2",
        final_norm="ln_f", lm_head="lm_head",
    ) | fused("h.{}.attn.c_attn", "q_proj", "k_proj", "v_proj", transposed=True) | {
        "o_proj": Location("h.{}.attn.c_proj", transposed=True),
        "up_proj": Location("h.{}.mlp.c_fc", transposed=True),
        "down_proj": Location("h.{}.mlp.c_proj", transposed=True),
    },
    hidden_size=key(REQUIRED, "n_embd"), num_hidden_layers=key(REQUIRED, "n_layer"),
    num_attention_heads=key(REQUIRED, "n_head"), intermediate_size=key(None, "n_inner"),
    norm_eps=key(1e-5, "layer_norm_epsilon"), max_position_embeddings=key(1024, "n_positions"),
    tie_word_embeddings=True, activation=key("gelu_new", "activation_function"),
    scale_attn_weights=only(True), scale_attn_by_inverse_layer_idx=only(False),
    add_cross_attention=only(False),
)  # fmt: skip

OPT = BASE.like(
    "opt", bases=("model.decoder.", "decoder.", ""), norm="layer",
    biased=biased("enable_bias", "q", "k", "v", "o", "up", "down"), position_offset=2, buffers=(),
    names=dict(
        embed="embed_tokens", pos_embed="embed_positions", final_norm="final_layer_norm",
        lm_head="lm_head",
    )
    | placed("layers.{}.", attn_norm="self_attn_layer_norm", mlp_norm="final_layer_norm")
    | placed("layers.{}.", up_proj="fc1", down_proj="fc2")
    | placed("layers.{}.self_attn.", *ATTENTION[:3], o_proj="out_proj"),
    intermediate_size=key(REQUIRED, "ffn_dim"), activation=key("relu", "activation_function"),
    tie_word_embeddings=True, max_position_embeddings=2048, enable_bias=True,
    word_embed_proj_dim=None, do_layer_norm_before=only(True), _remove_final_layer_norm=only(False),
    layer_norm_elementwise_affine=only(True),
    norm_eps=only(1e-5),  # a constant of the family, not a key of its files
)  # fmt: skip

GPT_NEOX = BASE.like(
    "gpt_neox", bases=("gpt_neox.", ""), norm="layer",
    biased=ATTENTION_BIAS | biased(True, "up", "down"), keys=ROPE,
    buffers=(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    names=dict(embed="embed_in", final_norm="final_layer_norm", lm_head="embed_out")
    | placed("layers.{}.", attn_norm="input_layernorm", mlp_norm="post_attention_layernorm")
    | placed("layers.{}.mlp.", up_proj="dense_h_to_4h", down_proj="dense_4h_to_h")
    | {"o_proj": "layers.{}.attention.dense"}
    | fused("layers.{}.attention.query_key_value", "q_proj", "k_proj", "v_proj", grouped=True),
    rope_theta=key(10000.0, "rotary_emb_base", echoes=("rope_theta",)),
    partial_rotary_factor=key(0.25, "rotary_pct", echoes=("partial_rotary_factor",)),
    norm_eps=key(1e-5, "layer_norm_eps"), activation=key("gelu", "hidden_act"), attention_bias=True,
    use_parallel_residual=True, max_position_embeddings=2048,
)  # fmt: skip

GPTJ = GPT2.like(
    "gptj", without=("pos_embed",), biased=biased(True, "up", "down") | {"lm_head": True},
    keys=ROPE, position_offset=None, interleaved=True,
    names=placed("h.{}.attn.", *ATTENTION[:3], o_proj="out_proj")
    | placed("h.{}.", mlp_norm="ln_1", up_proj="mlp.fc_in", down_proj="mlp.fc_out"),
    tie_word_embeddings=False, max_position_embeddings=2048, rotary_dim=64,
    rope_theta=only(10000.0), partial_rotary_factor=only(1.0), rope_scaling=only(None),
    rope_parameters=only(None), use_parallel_residual=only(True), rotary=only(True),
)  # fmt: skip

PHI = LLAMA.like(
    "phi", without=("gate_proj",), norm="layer",
    biased=biased(True, "q", "k", "v", "o", "up", "down") | {"lm_head": True},
    optional=dict.fromkeys(("q_norm", "k_norm"), "qk_layernorm"),
    names=dict(final_norm="final_layernorm", mlp_norm="layers.{}.input_layernorm")
    | placed("layers.{}.mlp.", up_proj="fc1", down_proj="fc2")
    | placed(
        "layers.{}.self_attn.", o_proj="dense", q_norm="q_layernorm", k_norm="k_layernorm"
    ),
    norm_eps=key(1e-5, "layer_norm_eps"), activation="gelu_new", partial_rotary_factor=key(0.5),
    qk_layernorm=False, use_parallel_residual=only(True), attention_bias=only(False),
    mlp_bias=only(False), **unread("rotary_dim"),
)  # fmt: skip

PHI3 = LLAMA.like(
    "phi3", biased={}, scalings={"su": "longrope", "yarn": "longrope"}, windows="all",
    names=fused("layers.{}.self_attn.qkv_proj", "q_proj", "k_proj", "v_proj")
    | fused("layers.{}.mlp.gate_up_proj", "gate_proj", "up_proj"),
    norm_eps=1e-5, sliding_window=None, max_position_embeddings=4096,
    original_max_position_embeddings=4096, partial_rotary_factor=key(1.0),
    attention_bias=only(False), interpolate_factor=only(1), full_attn_mod=only(1),
)  # fmt: skip
