"""Cohere: parallel blocks with one norm, LayerNorm without offsets, scaled logits; Cohere 2."""

from dataclasses import replace

from refimpl.loading.families.family import biased, separate
from refimpl.loading.families.llama import LLAMA

COHERE = replace(
    LLAMA,
    model_type="cohere",
    names=LLAMA.names | separate(mlp_norm="layers.{}.input_layernorm"),
    norm="layer",
    norm_bias=False,
    biased=biased("attention_bias", "q", "k", "v", "o"),
    keys=LLAMA.keys | {"norm_eps": "layer_norm_eps"},
    defaults=LLAMA.defaults | {
        "norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192,
        "tie_word_embeddings": True, "logit_scale": 0.0625, "use_parallel_residual": True,
        "use_qk_norm": False,
    },
    only=(*LLAMA.only, "mlp_bias", "use_parallel_residual", "use_qk_norm"),
    interleaved=True,
)  # fmt: skip

COHERE2 = replace(
    COHERE,
    model_type="cohere2",
    defaults=COHERE.defaults | {
        "rope_theta": 10000.0, "sliding_window": 4096, "layer_types": None,
        "sliding_window_pattern": 4,
    },
    echoes={"_sliding_window_pattern": "sliding_window_pattern"},
    unread=(
        "layer_switch", "order_of_interleaved_layers", "position_embedding_type", "rotary_pct",
        "use_embedding_sharing", "use_gated_activation", "use_parallel_block",
        "use_parallel_embedding",
    ),
    windows="pattern",
    unrotated="unwindowed",
)  # fmt: skip
