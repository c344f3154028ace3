"""What differs between the blocks of a model: their windows and rotary positions."""

from dataclasses import replace
from math import log, sqrt
from typing import Any

from refimpl.loading.block_mixers import mixture_blocks, read_mixers, yarn_scale
from refimpl.loading.config_keys import Keys, shown
from refimpl.model.config import BlockKind
from refimpl.model.mixers.softmax_attention import Attention, SharedAttention
from refimpl.model.position_tables import Rope, Temperature

MOST_BLOCKS = 10_000  # so that a typing error in the file does not fill the memory

ORIGINAL = "original_max_position_embeddings"
# The keys of each type of scaling: those that it needs, and those that it may have.
SCALINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", ORIGINAL), ()),
    "yarn": (
        (ORIGINAL,),
        (
            "factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
    "proportional": ((), ("factor",)),
    "longrope": (
        ("short_factor", "long_factor", ORIGINAL),
        ("factor", "attention_factor"),
    ),
}
TEMPERATURE, TUNED = "llama_4_scaling_beta", "attn_temperature_tuning"
SLIDES = {"sliding_attention": True, "full_attention": False}
CHUNKS = {"chunked_attention": True, "full_attention": False}


def read_block_kinds(keys: Keys, attention: Attention) -> tuple[BlockKind, ...]:
    """Window, positions and mixer of every block, as in transformers' configuration classes."""
    num_blocks = keys.size("num_hidden_layers", most=MOST_BLOCKS)
    full, sliding = _ropes(keys, attention.head_dim)
    rotates = _rotating(keys, num_blocks)
    windows = _windows(keys, num_blocks, rotates)
    unrotated, windowed = keys.family.unrotated, keys.get("sliding_window") is not None
    mixtures, warmth = mixture_blocks(keys, num_blocks), _temperature(keys, full)
    if unrotated == "unwindowed" or (unrotated == "full" and windowed):
        rotates = [window is not None for window in windows]
    ropes = [
        (full if window is None else sliding) if rotary else None
        for window, rotary in zip(windows, rotates, strict=True)
    ]
    name = "layer_rope_theta"
    if (bases := keys.get(name)) is not None and keys.numbers(name, bases, num_blocks):
        ropes = [
            rope and replace(rope, theta=keys.real(name, base, 1))
            if base != 0
            else None
            for rope, base in zip(ropes, bases, strict=True)
        ]
    if any(rope and rope.scaling == "yarn" and rope.theta == 1 for rope in ropes):
        keys.wrong("yarn needs a rope_theta above 1")
    chunked, mixers = (
        keys.family.windows == "rotated",
        read_mixers(keys, num_blocks, attention),
    )
    kinds = zip(windows, ropes, mixtures, mixers, strict=True)
    own, wide = (
        keys.size("hidden_size_per_layer_input", 0, least=0),
        "use_double_wide_mlp",
    )
    wider = (
        2 * keys.size("intermediate_size") if keys.has(wide) and keys.flag(wide) else 0
    )
    return tuple(
        BlockKind(
            window,
            rope,
            mixture,
            None if rope and keys.has(TUNED) else warmth,
            chunked and window is not None,
            mixer,
            own,
            wider if isinstance(mixer, SharedAttention) else 0,
        )
        if mixer.attends
        else BlockKind(None, None, mixture, mixer=mixer)
        for window, rope, mixture, mixer in kinds
    )


def _temperature(keys: Keys, rope: Rope | None) -> Temperature | None:
    """How queries grow with their position: an entry among the rotary parameters, or keys."""
    if keys.has(TUNED):  # then in blocks without rotation
        warmth = Temperature(
            keys.number("attn_scale"), keys.size("floor_scale"), offset=1
        )
        return warmth if keys.flag(TUNED) else None
    entry = keys.mapping("rope_scaling") or keys.mapping("rope_parameters")
    if (
        TEMPERATURE not in keys.family.rope_extras
        or rope is None
        or entry.get(TEMPERATURE) == 0
    ):
        return None
    beta = keys.real(f"rope_parameters.{TEMPERATURE}", entry.get(TEMPERATURE))
    return Temperature(beta, rope.original_max_position_embeddings)


def _rotating(keys: Keys, num_blocks: int) -> list[bool]:
    """Which blocks have rotary positions, as `no_rope_layers` or the interval between 0s says."""
    if keys.family.unrotated != "listed":
        return [keys.family.unrotated != "all"] * num_blocks
    listed, interval = keys.get("no_rope_layers"), keys.size("no_rope_layer_interval")
    if listed is None or (listed == [] and keys.family.windows == "rotated"):
        return [(i + 1) % interval != 0 for i in range(num_blocks)]
    valid = isinstance(listed, list) and len(listed) >= num_blocks
    if valid and all(flag in (0, 1) for flag in listed):
        return [flag == 1 for flag in listed[:num_blocks]]
    keys.wrong(
        f"no_rope_layers: expected {num_blocks} entries of 0 and 1, got {shown(listed)}"
    )
    return [True] * num_blocks


def _windows(keys: Keys, num_blocks: int, rotates: list[bool]) -> list[int | None]:
    """Tokens each block sees, or None: from `layer_types`, or by the family's older rule."""
    rule = keys.family.windows
    if rule == "none" and not keys.family.mixers.keys() - {""}:
        return [None] * num_blocks
    if rule in ("above", "unrotated", "rotated"):
        keys.ignore("sliding_window", "max_window_layers")
    used = not keys.has("use_sliding_window") or keys.flag("use_sliding_window")
    has_window = used and keys.get("sliding_window") is not None
    window = keys.size("sliding_window") if has_window else None

    types = keys.get("layer_types")
    if types is not None:
        name = "sliding_window_pattern"
        keys.ignore(name, f"_{name}", keys.spelling(name))
        known = (CHUNKS if rule == "rotated" else SLIDES) | dict.fromkeys(
            keys.family.mixers, False
        )
        slides = keys.listed("layer_types", types, known, num_blocks)
    elif rule == "none":
        keys.wrong("layer_types: expected the kind of each block, it is missing")
        slides = [False] * num_blocks
    elif rule == "even":
        slides = [i % 2 == 0 for i in range(num_blocks)]
    elif rule in ("pattern", "after first"):
        pattern, full = (
            keys.size("sliding_window_pattern"),
            0 if rule == "after first" else -1,
        )
        slides = [(i - full) % pattern != 0 for i in range(num_blocks)]
    elif rule in ("unrotated", "rotated"):
        slides = [has_window and rotary == (rule == "rotated") for rotary in rotates]
    else:
        first = (
            keys.size("max_window_layers", least=0)
            if has_window and rule == "above"
            else 0
        )
        slides = [has_window and i >= first for i in range(num_blocks)]
    if any(slides) and not has_window:
        name = keys.spelling("sliding_window")
        keys.wrong(f"{name}: {sum(slides)} blocks slide, but it is null or not in use")
    return [window if sliding else None for sliding in slides]


def _ropes(keys: Keys, head_dim: int) -> tuple[Rope | None, Rope | None]:
    """Rotary positions of full and of sliding blocks; None if positions are learned."""
    if keys.family.position_offset is not None:
        return None, None
    if keys.has("alibi") and keys.flag("alibi"):
        keys.ignore("rope_theta", "rope_scaling", "rope_parameters")
        return None, None
    old, new = keys.mapping("rope_scaling"), keys.mapping("rope_parameters")
    if old and not keys.entries.get("rope_parameters"):
        new = {}  # the family's default is for files without either
    local, source, sliding = "rope_local_base_freq", "rope_parameters", dict[str, Any]()
    if keys.has(local):
        for kind, entry in new.items():
            if kind != ORIGINAL and (
                kind not in SLIDES or not isinstance(entry, dict | None)
            ):
                keys.wrong(
                    f"rope_parameters: expected {' and '.join(SLIDES)}, got {shown(kind)}"
                )
        source = "rope_parameters.full_attention"
        sliding, new = (
            e if isinstance(e := new.get(kind), dict) else {} for kind in SLIDES
        )
    if old and new and old != new:
        keys.wrong(
            f"rope_scaling: {shown(old)} contradicts rope_parameters {shown(new)}"
        )
    wide = keys.size("global_head_dim", otherwise=head_dim)
    full = _rope(keys, new or old, source if new else "rope_scaling", wide)
    if not keys.has(local):
        return full, full
    return full, _rope(
        keys, sliding, "rope_parameters.sliding_attention", head_dim, local
    )


def _rope(
    keys: Keys,
    entry: dict[str, Any],
    source: str,
    head_dim: int,
    base: str = "rope_theta",
) -> Rope | None:
    """Rotary positions from one entry and the keys beside it; None if there is a problem."""
    problems_before = len(keys.problems)
    scaling = {
        k: v
        for k, v in entry.items()
        if v is not None and (v != 0 or k[:6] != "mscale")
    }
    theta = keys.real(base, keys.get(base, scaling.pop("rope_theta", None)), least=1)
    fraction = keys.get(
        "partial_rotary_factor", scaling.pop("partial_rotary_factor", None)
    )
    rotary_dim = int(head_dim * keys.real("partial_rotary_factor", fraction, most=1))
    if keys.has("rotary_dim"):
        rotary_dim = keys.size("rotary_dim", most=head_dim)
    known = len(keys.problems) == problems_before
    if known and (rotary_dim < 2 or rotary_dim % 2):
        keys.wrong(
            f"{source}: {rotary_dim} of {head_dim} channels cannot rotate in pairs"
        )
    if keys.has("alpha") and (alpha := scaling.get("alpha")):  # a base for all lengths
        kind = shown(scaling.get("rope_type", scaling.get("type")))
        if kind != '"dynamic"' or rotary_dim <= 2:
            keys.wrong(
                f"{source}: alpha needs type dynamic and head_dim above 2, got {kind}"
            )
        else:
            stretch = keys.real(f"{source}.alpha", alpha, most=1e9)
            theta *= stretch ** (rotary_dim / (rotary_dim - 2))
        scaling = {}
    name, values = _scaling(keys, scaling, source, rotary_dim)
    if name == "proportional":
        values["turning_dim"], rotary_dim = rotary_dim, head_dim
    if len(keys.problems) > problems_before:
        return None
    return Rope(theta, rotary_dim, name, interleaved=keys.family.interleaved, **values)


def _scaling(
    keys: Keys, entry: dict[str, Any], source: str, rotary_dim: int
) -> tuple[Any, dict[str, Any]]:
    """Type of scaling and fields of `Rope`, from an entry without its base; as in transformers."""
    names = [entry[key] for key in ("rope_type", "type") if key in entry] or ["default"]
    names = [keys.family.scalings.get(x, x) if isinstance(x, str) else x for x in names]
    name = names[0]
    if name not in tuple(SCALINGS) or names[-1] != name:
        both = " and ".join(map(shown, names))
        keys.wrong(f"{source}: type {both} is not one of {', '.join(SCALINGS)}")
        return "default", {}
    needed, optional = SCALINGS[name]
    known = (*needed, *optional, *keys.family.rope_extras, "rope_type", "type")
    if unknown := {key: entry[key] for key in entry if key not in known}:
        keys.wrong(f"{source}: not understood: {shown(unknown)}")
    values: dict[str, Any] = {}
    problems_before = len(keys.problems)
    for key in (*needed, *(key for key in optional if key in entry)):
        place = f"{source}.{key}"
        if key == ORIGINAL:
            limit = keys.size("max_position_embeddings") if name != "llama3" else None
            original = keys.get(key, entry.get(key))
            least = 1 if name == "llama3" else 2
            values[key] = keys.whole_number(
                place, limit if original is None else original, least
            )
        elif key in ("short_factor", "long_factor"):
            factors = keys.numbers(place, entry.get(key), rotary_dim // 2)
            values[key] = tuple(
                keys.real(place, factor, least=1e-3) for factor in factors
            )
        elif key == "truncate":
            values[key] = entry[key]
            if not isinstance(values[key], bool):
                keys.wrong(f"{place}: expected true or false, got {shown(entry[key])}")
        else:
            smallest = 1 if key == "factor" else 1e-3
            values[key] = keys.real(place, entry.get(key), least=smallest)
    if name == "llama3" and values["high_freq_factor"] < values["low_freq_factor"]:
        keys.wrong(
            f"{source}: high_freq_factor is below low_freq_factor, got {shown(entry)}"
        )
    if name == "dynamic":
        values[ORIGINAL] = keys.size("max_position_embeddings")
        if rotary_dim == 2:
            keys.wrong(
                f"{source}: dynamic scaling needs more than 2 channels that rotate"
            )
    if name in ("yarn", "longrope") and len(keys.problems) == problems_before:
        original = values[ORIGINAL]
        factor = values.setdefault(
            "factor", keys.size("max_position_embeddings") / original
        )
        mscale, all_dim = values.pop("mscale", 0.0), values.pop("mscale_all_dim", 0.0)
        if name == "yarn" and mscale and all_dim:
            raised = yarn_scale(factor, mscale) / yarn_scale(factor, all_dim)
        elif name == "yarn":
            raised = yarn_scale(factor, 1.0)
        else:
            raised = sqrt(1 + log(factor) / log(original)) if factor > 1 else 1.0
        values.setdefault("attention_factor", raised)  # of cosines and sines
    return name, values
