"""From the metadata of a GGUF file to the `config.json` of its family."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.convert.architectures import ARCHITECTURES, KEYS, MIXTRAL, Architecture, Facts
from refimpl.errors import RefimplError
from refimpl.loading.families import FAMILIES, Family
from refimpl.model.position_tables import Rope

IRRELEVANT = ("general.", "tokenizer.", "split.", "quantize.", "GGUF.")  # beginnings of keys
NEEDED = ("context_length", "embedding_length", "block_count", "attention.head_count")
EPSILON = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
KV_HEADS, SCALING, ROPE_FACTORS = "attention.head_count_kv", "rope.scaling.", "rope_freqs.weight"
LONG_AND_SHORT = ("rope_factors_long.weight", "rope_factors_short.weight")
SCORING = {"softmax": 1, "sigmoid": 2}  # their numbers in a file
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow",
}  # fmt: skip
NEUTRAL = ("attn_factor", "yarn_attn_factor", "yarn_ext_factor", "finetuned")  # if 1, or true
PRESENT = {  # keys that are true if there is such a tensor
    "attention_bias": "attn_q.bias", "use_qkv_bias": "attn_q.bias", "mlp_bias": "ffn_up.bias",
    "use_bias": "attn_output.bias", "attention_out_bias": "attn_output.bias",
    "use_qk_norm": "attn_q_norm.weight",
}  # fmt: skip
LARGEST = {46: "gemma2", 62: "gemma3"}  # blocks of the sizes whose attention scale is D / H


def architecture_of(metadata: Facts, path: Path) -> Architecture:
    """The architecture of a file; Mixtral's files call theirs llama."""
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise RefimplError(
            f"{path} has the architecture {name!r}",
            f"one of {', '.join(ARCHITECTURES)}",
            "use the original checkpoint in safetensors, if refimpl reads its family",
        )
    return MIXTRAL if metadata.get("llama.expert_count") else ARCHITECTURES[name]


def config_entries(
    metadata: Facts, tensors: Mapping[str, Any], architecture: Architecture, path: Path
) -> dict[str, Any]:
    """The entries of `config.json`, as the family spells them."""
    family, prefix = FAMILIES[architecture.model_type], metadata["general.architecture"]
    facts = {
        key.removeprefix(f"{prefix}."): _plain(value)
        for key, value in metadata.items()
        if not key.startswith(IRRELEVANT)
    }
    entries: dict[str, Any] = {
        "model_type": architecture.model_type,
        "architectures": [architecture.hub_class],
    }
    absent = sorted(_needed(architecture, family, tensors) - facts.keys())
    problems = [f"{key}: missing" for key in absent]
    if family.mixers and isinstance(heads := facts.get(KV_HEADS), list):  # 0 where none attends
        words = ("full_attention", next(iter(family.mixers)))
        entries["layer_types"] = [words[not count] for count in heads]
        facts[KV_HEADS] = max(heads)
    values: dict[str, Any] = {**architecture.fixed}
    if "rope_theta" in family.keys:
        values["rope_theta"] = 10000.0  # llama.cpp's, whatever the family's
    for key, ours in {**KEYS, **architecture.keys, EPSILON[family.norm]: "norm_eps"}.items():
        if (value := facts.pop(key, None)) is not None and ours:
            known = family.keys[ours].only if ours in family.keys else ()
            values[ours] = next((x for x in known if x == value), value)  # 8, not 8.0
    if "sliding_window" in values:
        values["sliding_window"] = values["sliding_window"] or None
    values["vocab_size"] = tensors["token_embd.weight"].shape[0]
    values["tie_word_embeddings"] = "output.weight" not in tensors
    for key, part in PRESENT.items():
        if key in (*family.biased.values(), *family.optional.values()):
            values[key] = any(x.replace("_qkv.", "_q.").endswith(f".{part}") for x in tensors)
    entries |= {family.spelling(key): value for key, value in values.items()}
    for token in ("bos", "eos", "padding"):
        entries[f"{token[:3]}_token_id"] = metadata.get(f"tokenizer.ggml.{token}_token_id")
    for key in ("vocab_size", *EPSILON.values()):  # with padding or not; norms that it lacks
        facts.pop(key, None)
    problems += _heads(entries, family, facts)
    problems += _scaling(entries, family, facts, tensors)
    expected = {"expert_gating_func": SCORING.get(str(family.scoring)), "attention.causal": True}
    facts = {key: value for key, value in facts.items() if value != expected.get(key, ...)}
    problems += [f"{key}: not understood (value {str(facts[key])[:80]})" for key in facts]
    for key in [x for x in entries if "." in x]:  # of an object in the object
        outer, inner = key.split(".")
        entries.setdefault(outer, {})[inner] = entries.pop(key)
    if problems:
        raise RefimplError(
            f"{path} does not describe a model that refimpl can compute exactly:",
            f"metadata of {prefix} as llama.cpp's converter writes it",
            "use the original checkpoint in safetensors",
            problems,
        )
    return entries


def _needed(architecture: Architecture, family: Family, tensors: Mapping[str, Any]) -> set[str]:
    """The keys that a file must have."""
    own = (key for key, ours in architecture.keys.items() if ours not in ("", *architecture.fixed))
    needed = {*NEEDED, EPSILON[family.norm], *own}
    if any("ffn_gate_inp" in name for name in tensors):
        needed |= {"expert_count", "expert_used_count"}
    return needed


def _heads(entries: dict[str, Any], family: Family, facts: Facts) -> Iterator[str]:
    """Enter what depends on the size of a head: channels, those that rotate, the scale."""
    key_length = facts.pop("attention.key_length", None)
    if facts.pop("attention.value_length", key_length) != key_length:
        yield "attention.value_length: differs from attention.key_length"
    rotary = facts.pop("rope.dimension_count", None)
    named = ("hidden_size", "num_attention_heads", "num_hidden_layers")
    sizes: list[Any] = [entries.get(family.spelling(key)) for key in named]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return  # which the family's reader refuses
    hidden, heads, blocks = sizes
    plain = hidden // heads
    fractions = family.keys.get("partial_rotary_factor")
    rotates_all = fractions is not None and bool(fractions.only)
    head_dim = key_length or (rotary if rotates_all else None) or plain
    if "head_dim" in family.keys:
        entries[family.spelling("head_dim")] = head_dim
    elif head_dim != plain:
        yield f"attention.key_length: expected {plain}, got {head_dim}"
    if rotary not in (None, head_dim):
        if fractions is None or rotates_all:
            yield f"rope.dimension_count: expected {head_dim}, got {rotary}"
        entries[family.spelling("partial_rotary_factor")] = rotary / head_dim
    if "query_pre_attn_scalar" in family.keys:
        largest = family.model_type.startswith(LARGEST.get(blocks, "none"))
        entries["query_pre_attn_scalar"] = plain if largest else head_dim


def _scaling(
    entries: dict[str, Any], family: Family, facts: Facts, tensors: Mapping[str, Any]
) -> Iterator[str]:
    """Enter `rope_scaling`: linear, yarn, longrope, or Llama 3's if the file has its factors."""
    scaling = {x.removeprefix(SCALING): facts.pop(x) for x in [*facts] if x.startswith(SCALING)}
    factor = scaling.pop("factor", facts.pop("rope.scale_linear", 0)) or 1.0  # as in llama.cpp
    kind, rope = scaling.pop("type", "linear"), dict[str, Any]()
    long, short, factors = (tensors.get(name) for name in (*LONG_AND_SHORT, ROPE_FACTORS))
    if kind == "linear" and factor != 1:
        rope = {"rope_type": "linear", "factor": factor}
    if long and short:
        rope = {
            "rope_type": "longrope",
            "attention_factor": scaling.pop("attn_factor", 1.0),
            "long_factor": [_plain(x) for x in long.array.tolist()],
            "short_factor": [_plain(x) for x in short.array.tolist()],
        }
    if long or short:
        alone = long and short and factor == 1 and not factors
        if not alone or entries.get("original_max_position_embeddings") is None:
            yield f"{LONG_AND_SHORT[0]}: expected short factors, too, and no other scaling"
    scaling = {x: value for x, value in scaling.items() if x not in NEUTRAL or value != 1}
    if kind == "yarn" and not (scaling.keys() - YARN.keys() or factors):
        rope = {"rope_type": "yarn", "factor": factor}
        rope |= {YARN[x]: scaling.pop(x) for x in [*scaling]}
        rope |= {"truncate": False} if family.model_type == "gpt_oss" else {}
    elif kind not in ("none", "linear") and not rope:
        yield f"{SCALING}type: expected none, linear or yarn, got {kind}"
    if factors:
        theta, channels = (entries.get(family.spelling(x)) for x in ("rope_theta", "head_dim"))
        llama3 = LLAMA3 | {"factor": float(factors.array.max())}
        if rope or not _is_llama3(factors.array, theta, channels, llama3):
            yield f"{ROPE_FACTORS}: not the factors of Llama 3's scaling alone"
        rope = {"rope_type": "llama3"} | llama3
    if family.model_type == "gpt_oss" and not rope:
        yield f"{SCALING}factor: missing"
    yield from (f"{SCALING}{x}: not understood (value {scaling[x]})" for x in scaling)
    if rope:
        entries["rope_scaling"] = rope


def _is_llama3(stored: Any, theta: Any, channels: Any, llama3: dict[str, Any]) -> bool:
    """Whether factors of waves are those of Llama 3's scaling."""
    if 2 * stored.size != channels or not 1 <= stored.min() <= stored.max() < np.inf:
        return False
    plain, scaled = Rope(theta, channels), Rope(theta, channels, "llama3", **llama3)
    return np.allclose(
        plain.inv_freq() / scaled.inv_freq(), stored.astype(np.float64), rtol=1e-5, atol=0
    )


def _plain(value: Any) -> Any:
    """A value as JSON has it: float32 by its shortest decimals, equal ones of all blocks as one."""
    if isinstance(value, list) and value and value == value[:1] * len(value):
        value = value[0]
    return float(str(np.float32(value))) if isinstance(value, float) else value
