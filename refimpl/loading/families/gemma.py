"""Gemma: gains stored minus 1; from Gemma 2, norms after attention and MLP, sliding windows."""

from refimpl.loading.families.family import QK_NORM, biased, key, unread
from refimpl.loading.families.llama import LLAMA

GEMMA = LLAMA.like(
    "gemma",
    norm_offset=1.0,
    biased=biased("attention_bias", "q", "k", "v", "o"),
    keys=dict(
        activation="gelu_pytorch_tanh", head_dim=256, num_key_value_heads=16,
        tie_word_embeddings=True, max_position_embeddings=8192, **unread("hidden_activation"),
    ),
    activations={"gelu": "gelu_tanh"},  # of the files from before the key named the tanh form
    scaled_embedding=True,
)  # fmt: skip

GEMMA2 = GEMMA.like(
    "gemma2",
    names=dict(
        attn_post_norm="layers.{}.post_attention_layernorm",
        mlp_norm="layers.{}.pre_feedforward_layernorm",
        mlp_post_norm="layers.{}.post_feedforward_layernorm",
    ),
    keys=dict(
        activation=key("gelu_pytorch_tanh", "hidden_activation", echoes=("hidden_act",)),
        sliding_window=key(4096, echoes=("sliding_window_size",)), layer_types=None,
        query_pre_attn_scalar=256, num_key_value_heads=4, attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    activations={},
    windows="even",
)  # fmt: skip

VAULTGEMMA = GEMMA2.like("vaultgemma", without=("attn_post_norm", "mlp_post_norm"))

GEMMA3 = GEMMA2.like(
    "gemma3_text",
    names=QK_NORM,
    keys=dict(
        rope_theta=1000000.0, rope_local_base_freq=10000.0, sliding_window=key(4096),
        sliding_window_pattern=key(6, echoes=("_sliding_window_pattern",)),
        final_logit_softcapping=None, max_position_embeddings=131072,
        **unread("attn_logit_softcapping"),  # transformers stores it, and never applies it
    ),
    windows="pattern",
)  # fmt: skip
