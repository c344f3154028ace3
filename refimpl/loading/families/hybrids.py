"""Families whose blocks mix tokens in several ways: Granite 4."""

from refimpl.loading.families.family import Entries, Family, Key, fused, key, only, unread
from refimpl.loading.families.granite import GRANITE_SHARED

ATTENTION = "attention in every block"


def _granite(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """Its rotation, and an MLP in the place of the shared expert if there are no experts."""
    own, types = dict(entries), entries.get("layer_types")
    if isinstance(types, list) and set(map(str, types)) <= {"attention", "full_attention"}:
        own["layer_types"] = ATTENTION
    rotates = own.get("position_embedding_type") == "rope"
    family = family.like(family.model_type, unrotated="none" if rotates else "all")
    if own.get("num_local_experts", 8) != 0:
        return family, own
    dense = fused("layers.{}.shared_mlp.input_linear", "gate_proj", "up_proj")
    of_experts = [
        role for role in family.names if role.startswith(("router", "experts.", "shared"))
    ]
    return family.like(
        family.model_type,
        without=(*of_experts, "num_experts", "shared_expert_intermediate_size"),
        names=dense | {"down_proj": "layers.{}.shared_mlp.output_linear"},
        keys=dict(
            intermediate_size=key(1024, "shared_intermediate_size"),
            **unread("num_local_experts", "num_experts_per_tok"),
        ),
        scoring=None,
    ), {k: x for k, x in own.items() if k != "intermediate_size"}  # fmt: skip


GRANITE_HYBRID = GRANITE_SHARED.like(
    "granitemoehybrid",
    keys=dict(
        shared_expert_intermediate_size=1024,
        layer_types=Key(None, only=(ATTENTION,)),
        position_embedding_type=Key(None, only=(None, "rope", "nope")),
        normalization_function=only("rmsnorm"),
        **unread(
            "mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv",
            "mamba_expand", "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias",
            "time_step_limit", "init_method",
        ),
    ),
    variant=_granite,
)  # fmt: skip
