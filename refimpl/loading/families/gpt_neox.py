"""Parallel residuals: GPT-NeoX (q, k, v head by head), GPT-J, Phi; Phi-3 is as Llama."""

from refimpl.loading.families.family import BASE, ROPE, biased, fused, key, only, unread
from refimpl.loading.families.learned_positions import GPT2
from refimpl.loading.families.llama import LLAMA

GPT_NEOX = BASE.like(
    "gpt_neox",
    bases=("gpt_neox.", ""),
    names=dict(
        embed="embed_in",
        attn_norm="layers.{}.input_layernorm",
        o_proj="layers.{}.attention.dense",
        mlp_norm="layers.{}.post_attention_layernorm",
        up_proj="layers.{}.mlp.dense_h_to_4h",
        down_proj="layers.{}.mlp.dense_4h_to_h",
        final_norm="final_layer_norm",
        lm_head="embed_out",
    ) | fused("layers.{}.attention.query_key_value", "q_proj", "k_proj", "v_proj", grouped=True),
    norm="layer",
    biased=biased("attention_bias", "q", "k", "v", "o") | biased(True, "up", "down"),
    keys=ROPE | dict(
        rope_theta=key(10000.0, "rotary_emb_base", echoes=("rope_theta",)),
        partial_rotary_factor=key(0.25, "rotary_pct", echoes=("partial_rotary_factor",)),
        norm_eps=key(1e-5, "layer_norm_eps"), activation=key("gelu", "hidden_act"),
        attention_bias=True, use_parallel_residual=True, max_position_embeddings=2048,
    ),
    buffers=(
        r"layers\.\d+\.attention\.(bias|masked_bias)",
        r"layers\.\d+\.attention\.rotary_emb\.inv_freq",
    ),
)  # fmt: skip

GPTJ = GPT2.like(
    "gptj",
    without=("pos_embed",),
    names=dict(
        embed="wte",
        attn_norm="h.{}.ln_1",
        q_proj="h.{}.attn.q_proj",
        k_proj="h.{}.attn.k_proj",
        v_proj="h.{}.attn.v_proj",
        o_proj="h.{}.attn.out_proj",
        mlp_norm="h.{}.ln_1",
        up_proj="h.{}.mlp.fc_in",
        down_proj="h.{}.mlp.fc_out",
        final_norm="ln_f",
        lm_head="lm_head",
    ),
    biased=biased(True, "up", "down") | {"lm_head": True},
    keys=ROPE | dict(
        tie_word_embeddings=False, max_position_embeddings=2048, rotary_dim=64,
        rope_theta=only(10000.0), partial_rotary_factor=only(1.0), rope_scaling=only(None),
        rope_parameters=only(None), use_parallel_residual=only(True), rotary=only(True),
    ),
    position_offset=None,
    interleaved=True,
)  # fmt: skip

PHI = LLAMA.like(
    "phi",
    without=("gate_proj",),
    names=dict(
        mlp_norm="layers.{}.input_layernorm",
        o_proj="layers.{}.self_attn.dense",
        up_proj="layers.{}.mlp.fc1",
        down_proj="layers.{}.mlp.fc2",
        final_norm="final_layernorm",
        q_norm="layers.{}.self_attn.q_layernorm",
        k_norm="layers.{}.self_attn.k_layernorm",
    ),
    norm="layer",
    biased=biased(True, "q", "k", "v", "o", "up", "down") | {"lm_head": True},
    keys=dict(
        norm_eps=key(1e-5, "layer_norm_eps"), activation="gelu_new",
        partial_rotary_factor=key(0.5), qk_layernorm=False, use_parallel_residual=only(True),
        attention_bias=only(False), mlp_bias=only(False), **unread("rotary_dim"),
    ),
    optional=dict.fromkeys(("q_norm", "k_norm"), "qk_layernorm"),
)  # fmt: skip

PHI3 = LLAMA.like(
    "phi3",
    names=fused("layers.{}.self_attn.qkv_proj", "q_proj", "k_proj", "v_proj")
    | fused("layers.{}.mlp.gate_up_proj", "gate_proj", "up_proj"),
    biased={},
    keys=dict(
        norm_eps=1e-5, sliding_window=None, max_position_embeddings=4096,
        original_max_position_embeddings=4096, partial_rotary_factor=key(1.0),
        attention_bias=only(False), interpolate_factor=only(1), full_attn_mod=only(1),
    ),
    scalings={"su": "longrope", "yarn": "longrope"},
    windows="all",
)  # fmt: skip
