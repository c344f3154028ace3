"""OPT: learned positions from row 2, ReLU, an MLP without a gate."""

from refimpl.loading.families.family import ALL, Family, biased, separate, without
from refimpl.loading.families.llama import LLAMA

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
