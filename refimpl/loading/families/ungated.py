"""Families like Llama whose MLP has no gate: Arcee, Jais 2, Nemotron, StarCoder2 and Apertus."""

from refimpl.loading.families.family import QK_NORM, biased, key, only, unread
from refimpl.loading.families.llama import LLAMA
from refimpl.model.config import LEARNED_ACTIVATION

ARCEE = LLAMA.like(
    "arcee", without=("gate_proj",),
    keys=dict(activation="relu2", norm_eps=1e-5, max_position_embeddings=4096),
)  # fmt: skip

NEMOTRON = ARCEE.like(
    "nemotron", norm="layer", norm_offset=1.0,
    keys=dict(norm_eps=key(1e-5), partial_rotary_factor=key(0.5), **unread("kv_channels")),
)  # fmt: skip

JAIS2 = ARCEE.like(
    "jais2", norm="layer",
    keys=dict(norm_eps=key(1e-5, "layer_norm_eps"), attention_bias=True, mlp_bias=True,
              max_position_embeddings=8192),
)  # fmt: skip

STARCODER2 = ARCEE.like(
    "starcoder2",
    names=dict(up_proj="layers.{}.mlp.c_fc", down_proj="layers.{}.mlp.c_proj"),
    norm="layer",
    biased=biased("use_bias", "q", "k", "v", "o", "up", "down"),
    keys=dict(
        norm_eps=key(1e-5, "norm_epsilon"), activation="gelu_pytorch_tanh",
        num_key_value_heads=2, use_bias=True, sliding_window=None, tie_word_embeddings=True,
        mlp_type=only("default"), norm_type=only("layer_norm"), **unread("rms_norm_eps"),
    ),
    windows="all",
)  # fmt: skip

APERTUS = ARCEE.like(
    "apertus",
    names=QK_NORM | dict(
        attn_norm="layers.{}.attention_layernorm",
        mlp_norm="layers.{}.feedforward_layernorm",
        **{role: f"layers.{{}}.mlp.{role.replace('act', 'act_fn')}" for role in LEARNED_ACTIVATION},
    ),
    biased=biased("attention_bias", "q", "k", "v", "o"),
    keys=dict(
        activation=only("xielu", "hidden_act"), max_position_embeddings=65536,
        rope_theta=12000000.0, qk_norm=only(True), post_norm=only(False),
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 12000000.0, "factor": 8.0,
            "original_max_position_embeddings": 8192, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ),
    activations={"xielu": "xielu"},
)  # fmt: skip
