"""Learned positions: GPT-2, with weights stored [in, out], and OPT, with positions from row 2."""

from refimpl.loading.families.family import (
    ALL,
    Family,
    Location,
    biased,
    fused,
    separate,
    without,
)  # fmt: skip
from refimpl.loading.families.llama import LLAMA

GPT2 = Family(
    model_type="gpt2",
    bases=("transformer.", ""),
    names=separate(
        embed="wte", pos_embed="wpe", attn_norm="h.{}.ln_1", mlp_norm="h.{}.ln_2",
        final_norm="ln_f", lm_head="lm_head",
    ) | fused("h.{}.attn.c_attn", "q_proj", "k_proj", "v_proj", transposed=True) | {
        "o_proj": Location("h.{}.attn.c_proj", transposed=True),
        "up_proj": Location("h.{}.mlp.c_fc", transposed=True),
        "down_proj": Location("h.{}.mlp.c_proj", transposed=True),
    },
    norm="layer",
    biased=biased(True, "q", "k", "v", "o", "up", "down"),
    keys={
        "hidden_size": "n_embd", "intermediate_size": "n_inner", "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head", "max_position_embeddings": "n_positions",
        "norm_eps": "layer_norm_epsilon", "activation": "activation_function",
    },
    defaults=ALL | {
        "norm_eps": 1e-5, "activation": "gelu_new", "tie_word_embeddings": True,
        "intermediate_size": None, "max_position_embeddings": 1024, "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
    },
    only=(
        "is_causal", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention",
    ),
    position_offset=0,
    buffers=(r"h\.\d+\.attn\.(bias|masked_bias)",),
)  # fmt: skip

OPT = Family(
    model_type="opt",
    bases=("model.decoder.", "decoder.", ""),
    names=without(LLAMA.names, "gate_proj") | separate(
        pos_embed="embed_positions",
        attn_norm="layers.{}.self_attn_layer_norm",
        o_proj="layers.{}.self_attn.out_proj",
        mlp_norm="layers.{}.final_layer_norm",
        up_proj="layers.{}.fc1",
        down_proj="layers.{}.fc2",
        final_norm="final_layer_norm",
    ),
    norm="layer",
    biased=biased("enable_bias", "q", "k", "v", "o", "up", "down"),
    keys={"intermediate_size": "ffn_dim", "activation": "activation_function"},
    defaults=ALL | {
        "norm_eps": 1e-5, "activation": "relu", "tie_word_embeddings": True,
        "max_position_embeddings": 2048, "enable_bias": True, "word_embed_proj_dim": None,
        "do_layer_norm_before": True, "_remove_final_layer_norm": False,
        "layer_norm_elementwise_affine": True,
    },
    only=(
        "is_causal", "norm_eps",  # a constant of the family, not a key of its files
        "do_layer_norm_before", "_remove_final_layer_norm", "layer_norm_elementwise_affine",
    ),
    position_offset=2,
    buffers=(),
)  # fmt: skip
