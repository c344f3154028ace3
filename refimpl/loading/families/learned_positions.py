"""Learned positions: GPT-2, with weights stored [in, out], and OPT, with positions from row 2."""

from refimpl.loading.families.family import BASE, REQUIRED, Location, biased, fused, key, only

GPT2 = BASE.like(
    "gpt2",
    bases=("transformer.", ""),
    names=dict(
        embed="wte", pos_embed="wpe", attn_norm="h.{}.ln_1", mlp_norm="h.{}.ln_2",
        final_norm="ln_f", lm_head="lm_head",
    ) | fused("h.{}.attn.c_attn", "q_proj", "k_proj", "v_proj", transposed=True) | {
        "o_proj": Location("h.{}.attn.c_proj", transposed=True),
        "up_proj": Location("h.{}.mlp.c_fc", transposed=True),
        "down_proj": Location("h.{}.mlp.c_proj", transposed=True),
    },
    norm="layer",
    biased=biased(True, "q", "k", "v", "o", "up", "down"),
    keys=dict(
        hidden_size=key(REQUIRED, "n_embd"), num_hidden_layers=key(REQUIRED, "n_layer"),
        num_attention_heads=key(REQUIRED, "n_head"), intermediate_size=key(None, "n_inner"),
        norm_eps=key(1e-5, "layer_norm_epsilon"), max_position_embeddings=key(1024, "n_positions"),
        tie_word_embeddings=True, activation=key("gelu_new", "activation_function"),
        scale_attn_weights=only(True), scale_attn_by_inverse_layer_idx=only(False),
        add_cross_attention=only(False),
    ),
    position_offset=0,
    buffers=(r"h\.\d+\.attn\.(bias|masked_bias)",),
)  # fmt: skip

OPT = BASE.like(
    "opt",
    bases=("model.decoder.", "decoder.", ""),
    names=dict(
        embed="embed_tokens",
        pos_embed="embed_positions",
        attn_norm="layers.{}.self_attn_layer_norm",
        q_proj="layers.{}.self_attn.q_proj",
        k_proj="layers.{}.self_attn.k_proj",
        v_proj="layers.{}.self_attn.v_proj",
        o_proj="layers.{}.self_attn.out_proj",
        mlp_norm="layers.{}.final_layer_norm",
        up_proj="layers.{}.fc1",
        down_proj="layers.{}.fc2",
        final_norm="final_layer_norm",
        lm_head="lm_head",
    ),
    norm="layer",
    biased=biased("enable_bias", "q", "k", "v", "o", "up", "down"),
    keys=dict(
        intermediate_size=key(REQUIRED, "ffn_dim"), activation=key("relu", "activation_function"),
        norm_eps=only(1e-5),  # a constant of the family, not a key of its files
        tie_word_embeddings=True, max_position_embeddings=2048, enable_bias=True,
        word_embed_proj_dim=None, do_layer_norm_before=only(True),
        _remove_final_layer_norm=only(False), layer_norm_elementwise_affine=only(True),
    ),
    position_offset=2,
    buffers=(),
)  # fmt: skip
