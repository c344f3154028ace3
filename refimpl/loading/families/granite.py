"""Granite and HyperCLOVA X: factors of embeddings, attention, residual and logits; Granite SWA."""

from dataclasses import replace

from refimpl.loading.families.family import separate
from refimpl.loading.families.llama import LLAMA

GRANITE = replace(
    LLAMA,
    model_type="granite",
    keys=LLAMA.keys | {
        "embed_scale": "embedding_multiplier", "attention_scale": "attention_multiplier",
        "residual_scale": "residual_multiplier", "logit_divisor": "logits_scaling",
    },
    defaults=LLAMA.defaults | {
        "embed_scale": 1.0, "attention_scale": 1.0, "residual_scale": 1.0, "logit_divisor": 1.0,
    },
)  # fmt: skip

GRANITE_SWA = replace(
    GRANITE,
    model_type="granite_swa",
    names=LLAMA.names | separate(sinks="layers.{}.self_attn.sinks"),
    defaults=GRANITE.defaults | {
        "num_key_value_heads": 4, "norm_eps": 1e-5, "tie_word_embeddings": True,
        "sliding_window": 128, "sliding_window_pattern": 4, "layer_types": None,
        "layer_rope_theta": None, "max_position_embeddings": 8192,
    },
    only=(*GRANITE.only, "sliding_window_pattern"),  # a constant, not a key of its files
    windows="after first",
)  # fmt: skip

HYPERCLOVAX = replace(
    GRANITE,
    model_type="hyperclovax",
    names=LLAMA.names | separate(
        attn_post_norm="layers.{}.post_norm1", mlp_post_norm="layers.{}.post_norm2"
    ),
    keys=GRANITE.keys | {"logit_scale": "logits_scaling"},
    defaults={key: value for key, value in GRANITE.defaults.items() if key != "logit_divisor"} | {
        "attention_scale": None, "logit_scale": 1.0, "use_post_norm": True,
    },
    optional=dict.fromkeys(("attn_post_norm", "mlp_post_norm"), "use_post_norm"),
)  # fmt: skip
