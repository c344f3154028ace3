"""Mixtures of experts: Mixtral, Qwen, OLMoE, Granite, Phi, ERNIE, GLM, dots and gpt-oss."""

from dataclasses import replace

from refimpl.loading.families.family import (
    MIXTURE,
    STACKS,
    Location,
    separate,
)
from refimpl.loading.families.llama import LLAMA, MISTRAL

MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = {role: place for role, place in LLAMA.names.items() if role not in MLP}  # and norms


def shared(name: str) -> dict[str, Location]:
    """The linears of a shared expert."""
    return separate(**{f"shared_expert.{x}": f"layers.{{}}.mlp.{name}.{x}" for x in MLP})


MIXTRAL = replace(
    MISTRAL,
    model_type="mixtral",
    names=ATTENTION | separate(
        **{
            "router": "layers.{}.block_sparse_moe.gate",
            "experts.gate_proj": "layers.{}.block_sparse_moe.experts.{}.w1",
            "experts.up_proj": "layers.{}.block_sparse_moe.experts.{}.w3",
            "experts.down_proj": "layers.{}.block_sparse_moe.experts.{}.w2",
        }
    ),
    keys=LLAMA.keys | {"num_experts": "num_local_experts"},
    defaults=MISTRAL.defaults | MIXTURE | {
        "num_experts": 8, "num_experts_per_tok": 2, "norm_eps": 1e-5, "rope_theta": 1000000.0,
        "sliding_window": None,
    },
    scoring="softmax",
    stacks=STACKS | separate(router="layers.{}.mlp.gate"),
)  # fmt: skip
