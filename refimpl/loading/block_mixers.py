"""What mixes the tokens of each block, and its mixture of experts, with their sizes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, log
from typing import Any, Literal

from refimpl.loading.config_keys import Keys, shown
from refimpl.model.config import NO_MIXER, BlockKind, Mixer
from refimpl.model.experts import Experts
from refimpl.model.mixers.gated_delta_rule import GatedDeltaRule
from refimpl.model.mixers.latent_attention import LatentAttention
from refimpl.model.mixers.mamba2 import Beside, Mamba2
from refimpl.model.mixers.short_convolution import ShortConvolution
from refimpl.model.mixers.softmax_attention import Attention, SharedAttention

MOST_EXPERTS = (
    10_000  # so that a damaged file does not fill the memory with names of linears
)
NEGATIVE, NORM_FIRST = "linear_allow_neg_eigval", "mamba_norm_before_gate"


def read_mixers(keys: Keys, num_blocks: int, attention: Attention) -> Sequence[Mixer]:
    """The mixer of each block: softmax attention with the sizes of the model, if no key differs."""
    if "" in keys.family.mixers:  # every block's
        return [BUILDERS[keys.family.mixers[""]](keys)] * num_blocks
    own = _attention(keys, num_blocks, attention)
    types = keys.get("layer_types") if keys.family.mixers else None
    if not isinstance(types, list) or len(types) != num_blocks:
        return own  # a problem, which the reading of windows notes
    found = {word: BUILDERS[name](keys) for word, name in keys.family.mixers.items()}
    return [found.get(str(word), mixer) for word, mixer in zip(types, own, strict=True)]


def _attention(keys: Keys, num_blocks: int, plain: Attention) -> Sequence[Attention]:
    """Softmax attention with a gate, or with sizes of the blocks that see all tokens."""
    if keys.has("num_kv_shared_layers"):
        kv_heads, types, wide = (
            plain.num_key_value_heads,
            keys.get("layer_types"),
            plain,
        )
        if keys.has("global_head_dim"):  # of blocks that see all tokens
            kv_heads = keys.size("num_global_key_value_heads", otherwise=kv_heads)
            wide = Attention(
                plain.num_attention_heads,
                kv_heads,
                keys.size("global_head_dim"),
                keys_as_values=keys.flag("attention_k_eq_v"),
            )
        if plain.num_attention_heads % kv_heads:
            keys.wrong(
                f"num_global_key_value_heads: {kv_heads} does not divide the heads"
            )
        if not isinstance(types, list) or len(types) != num_blocks:
            keys.wrong(f"layer_types: expected the kind of each of {num_blocks} blocks")
            return [plain] * num_blocks
        own = [plain if kind == "sliding_attention" else wide for kind in types]
        return _with_shared(keys, types, own)
    if not keys.family.gate:
        return [plain] * num_blocks
    width = 1 if keys.get("gating") is True else plain.head_dim
    return [replace(plain, gate_width=width)] * num_blocks


def _with_shared(keys: Keys, types: list[Any], own: list[Attention]) -> list[Attention]:
    """The same mixers, but the last ones read keys and values of the last before them of a kind."""
    count = len(types)
    first = max(count - keys.size("num_kv_shared_layers", least=0), 0)
    source = {str(kind): i for i, kind in enumerate(types[:first])}
    if source.keys() != {*map(str, types)}:
        kinds = f"a kind of block is not among the {first} of {count} before them"
        keys.wrong(
            f"num_kv_shared_layers: {shown(keys.get('num_kv_shared_layers'))}, but {kinds}"
        )
        return own
    for i in range(first, count):
        of = source[str(types[i])]
        x = replace(own[of], shared_as=of)
        sizes = x.num_attention_heads, x.num_key_value_heads, x.head_dim
        own[of], own[i] = x, SharedAttention(*sizes, source=of)
    return own


def _gated_delta_rule(keys: Keys) -> Mixer:
    named = (
        "num_key_heads",
        "num_value_heads",
        "key_head_dim",
        "value_head_dim",
        "conv_kernel_dim",
    )
    key_heads, value_heads, key_dim, value_dim, taps = (
        keys.size(f"linear_{x}") for x in named
    )
    sizes = GatedDeltaRule(
        key_heads,
        value_heads,
        key_dim,
        value_dim,
        taps,
        most=2.0 if keys.has(NEGATIVE) and keys.flag(NEGATIVE) else 1.0,
        norm_eps=keys.number_or_none("state_norm_eps"),
    )
    if sizes.value_heads % sizes.key_heads:
        keys.wrong(
            f"linear_num_key_heads: {key_heads} does not divide {value_heads} value heads"
        )
    return sizes


def yarn_scale(factor: float, mscale: float) -> float:
    """How much yarn raises the scores of a context that is stretched by a factor.

    ``m = 1 + 0.1 mscale ln(factor)``, or 1 if the context is not stretched.

    Source: Peng et al., arXiv:2309.00071, section 3.4, whose temperature t is 1 / m^2.
    """
    return 1.0 if factor <= 1 else 0.1 * mscale * log(factor) + 1.0


def _latent_attention(keys: Keys) -> Mixer:
    heads, width = keys.size("num_attention_heads"), keys.size("hidden_size")
    plain, rotary = keys.size("qk_nope_head_dim"), keys.size("head_dim")
    rope = keys.mapping("rope_scaling") or keys.mapping("rope_parameters")
    scale = float(plain + rotary) ** -0.5
    stretched = rope.get("rope_type", rope.get("type", "default")) != "default"
    if stretched and (all_dim := rope.get("mscale_all_dim")):
        all_dim = keys.real("rope_parameters.mscale_all_dim", all_dim)
        scale *= (
            yarn_scale(keys.real("rope_parameters.factor", rope.get("factor")), all_dim)
            ** 2
        )
    rank = None if keys.get("q_lora_rank") is None else keys.size("q_lora_rank")
    value = keys.size("v_head_dim", otherwise=max(width // heads, 1))
    return LatentAttention(
        heads, rank, keys.size("kv_lora_rank"), plain, rotary, value, scale
    )


def _mamba2(keys: Keys) -> Mamba2:
    heads, groups = keys.size("mamba_n_heads"), keys.size("mamba_n_groups")
    inner, head_dim = 0, keys.get("mamba_d_head")
    if keys.has("mamba_expand"):
        inner = keys.size("mamba_expand") * keys.size("hidden_size")
        inner = keys.size("mamba_d_ssm", otherwise=inner)
    head_dim = (
        inner // heads
        if head_dim == "auto"
        else keys.whole_number("mamba_d_head", head_dim)
    )
    inner = inner or heads * head_dim
    if heads * head_dim != inner or heads % groups:
        keys.wrong(
            f"mamba_n_heads: {heads} of {head_dim} channels, in {groups} groups, of {inner}"
        )
        groups = heads
    limits, numbers = keys.get("time_step_limit"), [0.0, inf]
    if isinstance(limits, list):  # infinity as transformers writes it
        numbers = [inf if x == {"__float__": "Infinity"} else x for x in limits]
        numbers = [float(x) for x in numbers if isinstance(x, int | float)]
    wrong = not isinstance(limits, list | None) or len(numbers) != 2
    if wrong or not 0 <= numbers[0] <= numbers[1]:
        keys.wrong(
            f"time_step_limit: expected two numbers, the smaller first, got {shown(limits)}"
        )
        numbers = [0.0, inf]
    first = keys.has(NORM_FIRST) and keys.flag(NORM_FIRST)
    normed = not keys.has("mamba_rms_norm") or keys.flag("mamba_rms_norm")
    return Mamba2(
        heads,
        head_dim,
        groups,
        keys.size("mamba_d_state"),
        keys.size("mamba_d_conv"),
        (numbers[0], numbers[1]),
        keys.factors("ssm_multipliers", 5),
        ("before" if first else "after") if normed else "",
    )


def _attention_beside_mamba2(keys: Keys) -> Mixer:
    heads = keys.size("num_attention_heads")
    kv_heads = keys.size("num_key_value_heads", otherwise=heads)
    head_dim = keys.size(
        "head_dim", otherwise=max(keys.size("hidden_size") // heads, 1)
    )
    attention = Attention(
        heads,
        kv_heads,
        head_dim,
        key_scale=keys.number("key_multiplier", otherwise=1.0),
    )
    before, after = (
        (
            keys.number(f"ssm_{end}_multiplier"),
            keys.number(f"attention_{end}_multiplier"),
        )
        for end in ("in", "out")
    )
    return Beside(_mamba2(keys), attention, before, after)


BUILDERS: dict[str, Callable[[Keys], Mixer]] = {
    "no_mixer": lambda keys: NO_MIXER,
    "short_convolution": lambda keys: ShortConvolution(keys.size("conv_taps")),
    "gated_delta_rule": _gated_delta_rule,
    "latent_attention": _latent_attention,
    "mamba2": _mamba2,
    "attention_beside_mamba2": _attention_beside_mamba2,
}


def read_experts(
    keys: Keys, intermediate_size: int, blocks: tuple[BlockKind, ...]
) -> Experts | None:
    """What all mixtures of a model share, None without any; problems are noted in `keys`."""
    scoring = keys.family.scoring
    if scoring is None:
        return None
    size = keys.size("moe_intermediate_size", otherwise=intermediate_size)
    shared = keys.size("shared_expert_intermediate_size", otherwise=0, least=0)
    if keys.has("n_shared_experts"):
        shared = size * keys.size("n_shared_experts", otherwise=0, least=0)
    facts = Experts(
        num_experts=keys.size("num_experts", most=MOST_EXPERTS),
        top_k=keys.size("num_experts_per_tok"),
        intermediate_size=size,
        shared_size=shared,
        scoring=scoring,
        normalised=not keys.has("norm_topk_prob") or keys.flag("norm_topk_prob"),
        least_sum=keys.number_or_none("moe_norm_min") or 0.0,
        sum_eps=keys.number_or_none("router_sum_eps") or 0.0,
        scaling=keys.number("routed_scaling_factor", otherwise=1.0),
        groups=keys.size("n_group", otherwise=1),
        top_groups=keys.size("topk_group", otherwise=1),
        group_by=keys.size("group_by", otherwise=2),
        jitter=keys.number_or_none("router_jitter_noise") or 0.0,
        of_inputs=keys.family.shares_of_inputs,
    )
    count, top_k, groups, top = (
        facts.num_experts,
        facts.top_k,
        facts.groups,
        facts.top_groups,
    )
    if keys.problems:
        return facts
    if top_k > count:
        keys.wrong(
            f"{keys.spelling('num_experts_per_tok')}: {top_k} of {count} experts"
        )
    elif count % groups or top > groups:
        keys.wrong(
            f"n_group: {groups} groups, {top} of them chosen, of {count} experts"
        )
    elif groups > 1 and (count // groups < 2 or top * (count // groups) < top_k):
        keys.wrong(
            f"topk_group: {top} groups of {count // groups} for {top_k} experts per token"
        )
    if scoring == "sparsemixer" and top_k != 2:
        keys.wrong(f"num_experts_per_tok: only 2 is supported, got {top_k}")
    return facts if any(kind.mixture for kind in blocks) else None


MLPS: dict[str, bool | None] = {"none": None, "sparse": True, "dense": False}


def mixture_blocks(
    keys: Keys, num_blocks: int
) -> list[bool | Literal["beside"] | None]:
    """Which blocks have a mixture: all, except where a key says otherwise; None: nor an MLP."""
    if keys.family.scoring is None:
        return [False] * num_blocks
    if "dense_norm" in keys.family.names:
        return ["beside"] * num_blocks
    first = keys.size("first_k_dense_replace", otherwise=0, least=0)
    last = keys.size("moe_layer_end_index", otherwise=-1, least=-1)
    step = keys.size("decoder_sparse_step", otherwise=1)
    plain, listed = _listed(keys, "mlp_only_layers") or [], _listed(keys, "moe_layers")
    if listed is not None:
        return [i in listed for i in range(num_blocks)]
    if (types := keys.get("mlp_layer_types")) is not None:
        return keys.listed("mlp_layer_types", types, MLPS, num_blocks)
    return [
        i >= first
        and (i <= last or last == -1)
        and (i + 1) % step == 0
        and i not in plain
        for i in range(num_blocks)
    ]


def _listed(keys: Keys, key: str) -> list[int] | None:
    """The blocks that a key lists; None if it is absent or null."""
    blocks: Any = keys.get(key)
    if blocks is None or (
        isinstance(blocks, list) and all(type(i) is int for i in blocks)
    ):
        return blocks
    keys.wrong(f"{key}: expected a list of blocks, got {shown(blocks)}")
    return None
