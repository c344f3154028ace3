"""Phi: parallel blocks with one norm, a head with a bias; Phi-3: Llama with fused tensors."""

from refimpl.loading.families.family import biased, fused, key, only
from refimpl.loading.families.llama import LLAMA

PHI = LLAMA.like(
    "phi",
    without=("gate_proj",),
    names=dict(
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
    keys=dict(
        norm_eps=key(1e-5, "layer_norm_eps"), activation="gelu_new",
        partial_rotary_factor=key(0.5), qk_layernorm=False, use_parallel_residual=only(True),
        attention_bias=only(False), mlp_bias=only(False),
    ),
    optional=dict.fromkeys(("q_norm", "k_norm"), "qk_layernorm"),
)  # fmt: skip

PHI3 = LLAMA.like(
    "phi3",
    names=fused("layers.{}.self_attn.qkv_proj", "q_proj", "k_proj", "v_proj")
    | fused("layers.{}.mlp.gate_up_proj", "gate_proj", "up_proj"),
    biased={},
    keys=dict(
        norm_eps=1e-5, sliding_window=None, max_position_embeddings=4096,
        original_max_position_embeddings=4096, partial_rotary_factor=key(1.0),
        attention_bias=only(False),
    ),
    scalings={"su": "longrope", "yarn": "longrope"},
    windows="all",
)  # fmt: skip
