"""Phi: parallel blocks with one norm, a head with a bias; Phi-3: Llama with fused tensors."""

from dataclasses import replace

from refimpl.loading.families.family import biased, fused, separate, without
from refimpl.loading.families.llama import LLAMA

PHI = replace(
    LLAMA,
    model_type="phi",
    names=without(LLAMA.names, "gate_proj") | separate(
        mlp_norm="layers.{}.input_layernorm",
        o_proj="layers.{}.self_attn.dense",
        up_proj="layers.{}.mlp.fc1",
        down_proj="layers.{}.mlp.fc2",
        final_norm="final_layernorm",
        q_norm="layers.{}.self_attn.q_layernorm",
        k_norm="layers.{}.self_attn.k_layernorm",
    ),
    norm="layer",
    biased=biased(True, "q", "k", "v", "o", "up", "down") | {"lm_head": True},
    keys=LLAMA.keys | {"norm_eps": "layer_norm_eps"},
    defaults=LLAMA.defaults | {
        "norm_eps": 1e-5, "activation": "gelu_new", "partial_rotary_factor": 0.5,
        "qk_layernorm": False, "use_parallel_residual": True,
    },
    only=("is_causal", "use_parallel_residual", "attention_bias", "mlp_bias"),
    optional=dict.fromkeys(("q_norm", "k_norm"), "qk_layernorm"),
)  # fmt: skip

PHI3 = replace(
    LLAMA,
    model_type="phi3",
    names=LLAMA.names
    | fused("layers.{}.self_attn.qkv_proj", "q_proj", "k_proj", "v_proj")
    | fused("layers.{}.mlp.gate_up_proj", "gate_proj", "up_proj"),
    biased={},
    defaults=LLAMA.defaults
    | {
        "norm_eps": 1e-5,
        "sliding_window": None,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    },
    only=("is_causal", "attention_bias"),
    scalings={"su": "longrope", "yarn": "longrope"},
    windows="all",
)
