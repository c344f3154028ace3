"""Cohere: parallel blocks with one norm, LayerNorm without offsets, scaled logits."""

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
