"""What mixes the tokens of each block: a mechanism by its word in `layer_types`, with its sizes."""

from collections.abc import Callable
from math import inf, log

from refimpl.loading.config_keys import Keys, shown
from refimpl.model.mixers.sizes import (
    Attention,
    GatedDeltaRule,
    LatentAttention,
    Mamba2,
    Mixer,
    ShortConvolution,
)  # fmt: skip


def read_mixers(keys: Keys, num_blocks: int, attention: Attention) -> list[Mixer | None]:
    """The mixer of each block; None where it is softmax attention with the sizes of the model."""
    if "" in keys.family.mixers:  # every block's
        return [BUILDERS[keys.family.mixers[""]](keys)] * num_blocks
    own = _attention(keys, num_blocks, attention)
    types = keys.get("layer_types") if keys.family.mixers else None
    if not isinstance(types, list) or len(types) != num_blocks:
        return list(own)  # a problem, which the reading of windows notes
    found = {word: BUILDERS[name](keys) for word, name in keys.family.mixers.items()}
    return [found.get(str(word), mixer) for word, mixer in zip(types, own, strict=True)]


def _attention(keys: Keys, num_blocks: int, plain: Attention) -> list[Attention | None]:
    """Softmax attention with a gate, and with a number of heads for each block."""
    gate = keys.family.gate
    if not gate:
        return [None] * num_blocks
    heads: list[int] = [plain.num_attention_heads] * num_blocks
    if (listed := keys.get("num_attention_heads_per_layer")) is not None:
        name = "num_attention_heads_per_layer"
        heads = [keys.whole(name, x) for x in keys.numbers(name, listed, num_blocks)] or heads
    if wrong := [count for count in heads if count % plain.num_key_value_heads]:
        kv_heads = plain.num_key_value_heads
        keys.wrong(f"num_key_value_heads: {kv_heads} does not divide {wrong[0]} attention heads")
        return [None] * num_blocks
    by_head = keys.get("gating") in (True, "per-head")
    width = 1 if by_head else plain.head_dim
    return [
        Attention(count, plain.num_key_value_heads, plain.head_dim, gate, width) for count in heads
    ]


def _short_convolution(keys: Keys) -> Mixer:
    return ShortConvolution(keys.size("conv_taps"))


def _gated_delta_rule(keys: Keys) -> Mixer:
    sizes = GatedDeltaRule(
        keys.size("linear_num_key_heads"),
        keys.size("linear_num_value_heads"),
        keys.size("linear_key_head_dim"),
        keys.size("linear_value_head_dim"),
        keys.size("linear_conv_kernel_dim"),
    )
    if sizes.value_heads % sizes.key_heads:
        counts = f"{sizes.key_heads} does not divide {sizes.value_heads} value heads"
        keys.wrong(f"linear_num_key_heads: {counts}")
    return sizes


def magnitude(factor: float, mscale: float) -> float:
    """How much yarn raises the scores of a context that is stretched by a factor."""
    return 1.0 if factor <= 1 else 0.1 * mscale * log(factor) + 1.0


def _latent_attention(keys: Keys) -> Mixer:
    heads, width = keys.size("num_attention_heads"), keys.size("hidden_size")
    plain, rotary = keys.size("qk_nope_head_dim"), keys.size("head_dim")
    rope = keys.mapping("rope_scaling") or keys.mapping("rope_parameters")
    scale = float(plain + rotary) ** -0.5
    stretched = rope.get("rope_type", rope.get("type", "default")) != "default"
    if stretched and (all_dim := rope.get("mscale_all_dim")):
        all_dim = keys.real("rope_parameters.mscale_all_dim", all_dim)
        scale *= magnitude(keys.real("rope_parameters.factor", rope.get("factor")), all_dim) ** 2
    rank = None if keys.get("q_lora_rank") is None else keys.size("q_lora_rank")
    value = keys.size("v_head_dim", otherwise=max(width // heads, 1))
    return LatentAttention(heads, rank, keys.size("kv_lora_rank"), plain, rotary, value, scale)


def _mamba2(keys: Keys) -> Mixer:
    inner = keys.size("mamba_expand") * keys.size("hidden_size")
    heads, groups = keys.size("mamba_n_heads"), keys.size("mamba_n_groups")
    head_dim = keys.get("mamba_d_head")
    head_dim = inner // heads if head_dim == "auto" else keys.whole("mamba_d_head", head_dim)
    if heads * head_dim != inner or heads % groups:
        keys.wrong(f"mamba_n_heads: {heads} of {head_dim} channels, in {groups} groups, of {inner}")
        groups = heads
    found = keys.get("time_step_limit")
    limits = [0.0, inf] if found is None else found
    if isinstance(limits, list):  # infinity as transformers writes it
        limits = [inf if x == {"__float__": "Infinity"} else x for x in limits]
    numbers = [x for x in limits if isinstance(x, int | float)] if isinstance(limits, list) else []
    if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1]:
        keys.wrong(f"time_step_limit: expected two numbers, the smaller first, got {shown(found)}")
        numbers = [0.0, inf]
    steps = float(numbers[0]), float(numbers[1])
    taps = keys.size("mamba_d_conv")
    return Mamba2(heads, head_dim, groups, keys.size("mamba_d_state"), taps, steps)


BUILDERS: dict[str, Callable[[Keys], Mixer]] = {
    "short_convolution": _short_convolution, "gated_delta_rule": _gated_delta_rule,
    "latent_attention": _latent_attention, "mamba2": _mamba2,
}  # fmt: skip
