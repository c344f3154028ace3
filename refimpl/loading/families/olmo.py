"""OLMo: norms without weights; from OLMo 2, norms after attention and MLP only, as in EXAONE 4."""

from dataclasses import replace

from refimpl.loading.families.family import QK_NORM, biased, separate, without
from refimpl.loading.families.llama import LLAMA

OLMO = replace(
    LLAMA,
    model_type="olmo",
    names=without(LLAMA.names, "attn_norm", "mlp_norm", "final_norm"),
    norm="layer",
    weightless_norms=("attn_norm", "mlp_norm", "final_norm"),
    biased=biased("attention_bias", "q", "k", "v", "o"),
    keys={"activation": "hidden_act", "qkv_limit": "clip_qkv"},
    defaults=LLAMA.defaults | {"norm_eps": 1e-5, "qkv_limit": None},
    only=(*LLAMA.only, "norm_eps"),  # a constant of the family, not a key of its files
)

OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    names=without(LLAMA.names, "attn_norm", "mlp_norm") | separate(
        q_width_norm="layers.{}.self_attn.q_norm",
        k_width_norm="layers.{}.self_attn.k_norm",
        attn_post_norm="layers.{}.post_attention_layernorm",
        mlp_post_norm="layers.{}.post_feedforward_layernorm",
    ),
    biased=biased("attention_bias", "q", "k", "v", "o"),
    defaults=LLAMA.defaults | {"norm_eps": 1e-5},
)  # fmt: skip

OLMO3 = replace(
    OLMO2,
    model_type="olmo3",
    defaults=OLMO2.defaults | {
        "rope_theta": 500000.0, "rope_local_base_freq": 500000.0, "sliding_window": 4096,
        "sliding_window_pattern": 4, "layer_types": None,
    },
    only=(*OLMO2.only, "sliding_window_pattern"),
    windows="pattern",
)  # fmt: skip

EXAONE4 = replace(
    OLMO2,
    model_type="exaone4",
    names=without(OLMO2.names, "q_width_norm", "k_width_norm") | QK_NORM,
    biased={},
    defaults=OLMO2.defaults | {
        "num_key_value_heads": 32, "sliding_window": 4096, "sliding_window_pattern": 4,
        "layer_types": None,
    },
    windows="pattern",
    unrotated="full",
)  # fmt: skip
