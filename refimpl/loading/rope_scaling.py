"""How rotary positions are stretched to a longer context, as `config.json` says."""

from math import log, sqrt
from typing import Any

from refimpl.loading.config_keys import Keys, shown

ORIGINAL = "original_max_position_embeddings"
# The keys of each type of scaling: those that it needs, and those that it may have.
SCALINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", ORIGINAL), ()),
    "dynamic": (("factor",), ()),
    "yarn": (
        (ORIGINAL,),
        ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
         "truncate"),
    ),
    "longrope": (("short_factor", "long_factor", ORIGINAL), ("factor", "attention_factor")),
}  # fmt: skip


def read_scaling(
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
            values[key] = keys.whole(place, limit if original is None else original, least)
        elif key in ("short_factor", "long_factor"):
            values[key] = _factors(keys, place, entry.get(key), rotary_dim // 2)
        elif key == "truncate":
            values[key] = entry[key]
            if not isinstance(values[key], bool):
                keys.wrong(f"{place}: expected true or false, got {shown(entry[key])}")
        else:
            smallest = 1 if key == "factor" else 1e-3
            values[key] = keys.real(place, entry.get(key), least=smallest)
    if name == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        keys.wrong(f"{source}: high_freq_factor must be above low_freq_factor, got {shown(entry)}")
    if name == "dynamic":
        values[ORIGINAL] = keys.size("max_position_embeddings")
        if rotary_dim == 2:
            keys.wrong(f"{source}: dynamic scaling needs more than 2 channels that rotate")
    if name in ("yarn", "longrope") and len(keys.problems) == problems_before:
        _complete(keys, name, values)
    return name, values


def _factors(keys: Keys, place: str, value: Any, waves: int) -> tuple[float, ...]:
    """One positive number for each wave; any other value is a problem."""
    if not isinstance(value, list) or len(value) != waves:
        got = f"{len(value)}" if isinstance(value, list) else shown(value)
        keys.wrong(f"{place}: expected a list of {waves} numbers, got {got}")
        return (1.0,) * waves
    return tuple(keys.real(place, x, least=1e-3) for x in value)


def _complete(keys: Keys, name: str, values: dict[str, Any]) -> None:
    """Add the factors that follow from others: of the context, and of cosines and sines."""
    original = values[ORIGINAL]
    factor = values.setdefault("factor", keys.size("max_position_embeddings") / original)
    mscale, all_dim = values.pop("mscale", 0.0), values.pop("mscale_all_dim", 0.0)
    if name == "yarn" and mscale and all_dim:
        magnitude = _magnitude(factor, mscale) / _magnitude(factor, all_dim)
    elif name == "yarn":
        magnitude = _magnitude(factor, 1.0)
    else:
        magnitude = sqrt(1 + log(factor) / log(original)) if factor > 1 else 1.0
    values.setdefault("attention_factor", magnitude)


def _magnitude(factor: float, mscale: float) -> float:
    """How much yarn raises the scores of a context that is stretched by a factor."""
    return 1.0 if factor <= 1 else 0.1 * mscale * log(factor) + 1.0
