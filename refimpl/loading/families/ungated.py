"""Families like Llama whose MLP has no gate: Arcee, Nemotron, StarCoder2 and Apertus."""

from dataclasses import replace

from refimpl.loading.families.family import QK_NORM, biased, separate, without
from refimpl.loading.families.llama import LLAMA
from refimpl.model.config import LEARNED_ACTIVATION

ARCEE = replace(
    LLAMA, model_type="arcee", names=without(LLAMA.names, "gate_proj"),
    defaults=LLAMA.defaults | {"activation": "relu2", "norm_eps": 1e-5,
                               "max_position_embeddings": 4096},
)  # fmt: skip

NEMOTRON = replace(
    ARCEE, model_type="nemotron", norm="layer", norm_offset=1.0,
    keys={"activation": "hidden_act"}, only=("is_causal",), unread=("kv_channels",),
    defaults=ARCEE.defaults | {"partial_rotary_factor": 0.5},
)  # fmt: skip

STARCODER2 = replace(
    ARCEE,
    model_type="starcoder2",
    names=ARCEE.names | separate(up_proj="layers.{}.mlp.c_fc", down_proj="layers.{}.mlp.c_proj"),
    norm="layer",
    biased=biased("use_bias", "q", "k", "v", "o", "up", "down"),
    keys={"activation": "hidden_act", "norm_eps": "norm_epsilon"},
    defaults=ARCEE.defaults | {
        "activation": "gelu_pytorch_tanh", "num_key_value_heads": 2, "use_bias": True,
        "sliding_window": None, "tie_word_embeddings": True,
        "mlp_type": "default", "norm_type": "layer_norm",
    },
    only=(*ARCEE.only, "mlp_type", "norm_type"),
    windows="all",
)  # fmt: skip

APERTUS = replace(
    ARCEE,
    model_type="apertus",
    names=ARCEE.names | QK_NORM | separate(
        attn_norm="layers.{}.attention_layernorm",
        mlp_norm="layers.{}.feedforward_layernorm",
        **{role: f"layers.{{}}.mlp.{role.replace('act', 'act_fn')}" for role in LEARNED_ACTIVATION},
    ),
    biased=biased("attention_bias", "q", "k", "v", "o"),
    defaults=ARCEE.defaults | {
        "activation": "xielu", "max_position_embeddings": 65536,
        "rope_theta": 12000000.0,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 12000000.0, "factor": 8.0,
            "original_max_position_embeddings": 8192, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        "qk_norm": True, "post_norm": False,
    },
    activations={"xielu": "xielu"},
    only=(*ARCEE.only, "activation", "qk_norm", "post_norm"),
)  # fmt: skip
