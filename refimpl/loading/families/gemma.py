"""Gemma: gains stored minus 1; from Gemma 2, norms after attention and MLP, sliding windows."""

from dataclasses import replace

from refimpl.loading.families.family import QK_NORM, biased, separate
from refimpl.loading.families.llama import LLAMA

GEMMA = replace(
    LLAMA,
    model_type="gemma",
    norm_offset=1.0,
    biased=biased("attention_bias", "q", "k", "v", "o"),
    defaults=LLAMA.defaults | {
        "activation": "gelu_pytorch_tanh", "head_dim": 256, "num_key_value_heads": 16,
        "tie_word_embeddings": True, "max_position_embeddings": 8192,
    },
    unread=("hidden_activation",),
    activations={"gelu": "gelu_tanh"},  # of the files from before the key named the tanh form
    scaled_embedding=True,
)  # fmt: skip

GEMMA2 = replace(
    GEMMA,
    model_type="gemma2",
    names=LLAMA.names | separate(
        attn_post_norm="layers.{}.post_attention_layernorm",
        mlp_norm="layers.{}.pre_feedforward_layernorm",
        mlp_post_norm="layers.{}.post_feedforward_layernorm",
    ),
    keys=LLAMA.keys | {"activation": "hidden_activation"},
    defaults=GEMMA.defaults | {
        "query_pre_attn_scalar": 256, "num_key_value_heads": 4, "sliding_window": 4096,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "layer_types": None,
    },
    unread=(),
    activations={},
    echoes={"hidden_act": "activation", "sliding_window_size": "sliding_window"},
    windows="even",
)  # fmt: skip

GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    names=GEMMA2.names | QK_NORM,
    defaults={k: v for k, v in GEMMA2.defaults.items() if k != "attn_logit_softcapping"} | {
        "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6,
        "final_logit_softcapping": None, "max_position_embeddings": 131072,
    },
    unread=("attn_logit_softcapping",),  # transformers stores it, and never applies it
    echoes={"hidden_act": "activation", "_sliding_window_pattern": "sliding_window_pattern"},
    windows="pattern",
)  # fmt: skip
