"""Phi-3: q, k and v in one tensor, gate and up in another."""

from dataclasses import replace

from refimpl.loading.families.family import fused
from refimpl.loading.families.llama import LLAMA

PHI3 = replace(
    LLAMA,
    model_type="phi3",
    names=LLAMA.names
    | fused("layers.{}.self_attn.qkv_proj", "q_proj", "k_proj", "v_proj")
    | fused("layers.{}.mlp.gate_up_proj", "gate_proj", "up_proj"),
    biased={},
    defaults=LLAMA.defaults
    | {"norm_eps": 1e-5, "sliding_window": None, "max_position_embeddings": 4096},
    only=("is_causal", "attention_bias"),
    windows="all",
)
