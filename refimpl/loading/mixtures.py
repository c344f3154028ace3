"""The mixtures of experts of a model: their sizes, their routing, and the blocks that have one."""

from typing import Any

from refimpl.loading.config_keys import Keys, shown
from refimpl.model.config import Experts

MOST_EXPERTS = 10_000  # so that a damaged file does not fill the memory with names of linears


def read_experts(keys: Keys, intermediate_size: int) -> Experts | None:
    """What all mixtures of a model share, or None; problems are noted in `keys`."""
    scoring = keys.family.scoring
    if scoring is None:
        return None
    count, top_k = keys.size("num_experts", most=MOST_EXPERTS), keys.size("num_experts_per_tok")
    size = keys.size("moe_intermediate_size", otherwise=intermediate_size)
    groups = keys.size("n_group", otherwise=1)
    kept = keys.size("topk_group", otherwise=1)
    shared = keys.size("shared_expert_intermediate_size", otherwise=0, least=0)
    if keys.has("n_shared_experts"):
        shared = size * keys.size("n_shared_experts", otherwise=0, least=0)
    facts = Experts(
        num_experts=count,
        top_k=top_k,
        intermediate_size=size,
        shared_size=shared,
        scoring=scoring,
        normalised=not keys.has("norm_topk_prob") or keys.flag("norm_topk_prob"),
        least_sum=keys.number_or_none("moe_norm_min") or 0.0,
        sum_eps=keys.number_or_none("router_sum_eps") or 0.0,
        scaling=keys.number("routed_scaling_factor", otherwise=1.0),
        groups=groups,
        groups_kept=kept,
        group_by=keys.size("group_by", otherwise=2),
        jitter=keys.number_or_none("router_jitter_noise") or 0.0,
        of_inputs=keys.family.shares_of_inputs,
        averaged=keys.get("shared_average") == "average" and shared > 0,
    )
    if not keys.problems:
        _check(keys, facts)
    return facts


def _check(keys: Keys, facts: Experts) -> None:
    """Note sizes that do not fit together."""
    count, top_k, groups, kept = (
        facts.num_experts, facts.top_k, facts.groups, facts.groups_kept,
    )  # fmt: skip
    if top_k > count:
        keys.wrong(f"{keys.spelling('num_experts_per_tok')}: {top_k} of {count} experts")
    elif count % groups or kept > groups:
        keys.wrong(f"n_group: {groups} groups, {kept} of them kept, of {count} experts")
    elif groups > 1 and (count // groups < 2 or kept * (count // groups) < top_k):
        keys.wrong(f"topk_group: {kept} groups of {count // groups} for {top_k} experts per token")
    if facts.scoring == "sparsemixer" and top_k != 2:
        keys.wrong(f"num_experts_per_tok: only 2 is supported, got {top_k}")


def mixture_blocks(keys: Keys, num_blocks: int) -> list[bool]:
    """Which blocks have a mixture: all, except where a key of the family says otherwise."""
    if keys.family.scoring is None:
        return [False] * num_blocks
    first = keys.size("first_k_dense_replace", otherwise=0, least=0)
    last = keys.size("moe_layer_end_index", otherwise=-1, least=-1)
    step = keys.size("decoder_sparse_step", otherwise=1)
    plain, listed = _listed(keys, "mlp_only_layers") or [], _listed(keys, "moe_layers")
    if listed is not None:
        return [i in listed for i in range(num_blocks)]
    if (types := keys.get("mlp_layer_types")) is not None:
        return keys.listed("mlp_layer_types", types, {"sparse": True, "dense": False}, num_blocks)
    return [
        i >= first and (i <= last or last == -1) and (i + 1) % step == 0 and i not in plain
        for i in range(num_blocks)
    ]


def _listed(keys: Keys, key: str) -> list[int] | None:
    """The blocks that a key lists; None if it is absent or null."""
    blocks: Any = keys.get(key)
    if blocks is None or (isinstance(blocks, list) and all(type(i) is int for i in blocks)):
        return blocks
    keys.wrong(f"{key}: expected a list of blocks, got {shown(blocks)}")
    return None
