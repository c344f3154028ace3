"""From a GGUF file to a `Model`: config, tensors under transformers' names, tokenizer."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.companions import Companions
from refimpl.loading.config_json import HubModel, read_config
from refimpl.loading.families import FAMILIES, Family
from refimpl.loading.gguf.architectures import (
    EPSILON,
    EXPERT_STACKS,
    FUSED,
    IN_BLOCK,
    KEYS,
    NEEDED,
    OUTSIDE,
    WINDOW,
    Architecture,
    architecture_of,
)
from refimpl.loading.gguf.gguf_file import GgufTensor, JoinedTensor, open_shards
from refimpl.loading.gguf.tokenizer_metadata import write_tokenizer
from refimpl.loading.tensor_claims import claim, roles
from refimpl.model.config import Rope, kind_of
from refimpl.model.model import Model

IRRELEVANT = ("general.", "tokenizer.", "split.", "quantize.")  # beginnings of keys
CAUSAL, SCALING = "attention.causal", "rope.scaling."
SLIDES, KV_HEADS = f"{WINDOW}_pattern", "attention.head_count_kv"
GATING, SCORING = "expert_gating_func", {1: "softmax", 2: "sigmoid"}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow",
}  # fmt: skip
BIASES = {  # the keys of biases, and a linear that then has one
    "attention_bias": "attn_q", "mlp_bias": "ffn_up", "use_bias": "attn_output",
    "use_qkv_bias": "attn_q", "attention_out_bias": "attn_output",
}  # fmt: skip
TOKEN_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
LARGEST = {46: "gemma2", 62: "gemma3"}  # blocks of the sizes whose attention scale is D / H
ROPE_FACTORS, *LONG_AND_SHORT = (
    "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight",
)  # fmt: skip


def read_gguf(
    path: Path, entries: dict[str, Any], config_path: Path | None, hub_id: str | None
) -> Model:
    """Open a GGUF file, or the first of a split one, with its metadata or the `config.json`."""
    files = open_shards(path)
    metadata = files[0].metadata
    stored = {name: tensor for file in files for name, tensor in file.tensors.items()}
    architecture = architecture_of(metadata, path)
    if config_path is None:
        entries = _config_entries(metadata, stored, architecture, path)
    hub = read_config(entries, str(config_path or f"the metadata of {path}"))
    tensors = _as_transformers_names(stored, hub, architecture)
    companions = Companions(
        {**entries, "dtype": "float32"}, {}, lambda folder: write_tokenizer(metadata, folder, path)
    )
    weights = claim(tensors, hub, path)
    return Model(path, hub.config, entries, weights, files, config_path, hub_id, companions)


def _config_entries(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, GgufTensor],
    architecture: Architecture,
    path: Path,
) -> dict[str, Any]:
    """The entries of `config.json`, as its family spells them."""
    family, prefix = FAMILIES[architecture.model_type], metadata["general.architecture"]
    facts = {
        key.removeprefix(f"{prefix}."): _plain(value)
        for key, value in metadata.items()
        if not key.startswith(IRRELEVANT)
    }
    problems = list[str]()
    entries: dict[str, Any] = {
        "model_type": architecture.model_type,
        "architectures": [architecture.hub_class],
        **architecture.fixed,
    }

    def put(key: str, value: Any) -> None:
        entries[family.spelling(key)] = value

    if facts.get(WINDOW) == 0:
        facts[WINDOW] = None
    word, others = "sliding_attention", metadata.get(f"{prefix}.{SLIDES}")
    heads = facts.get(KV_HEADS)
    if family.mixers and isinstance(heads, list):  # 0 in blocks without attention
        word, others, facts[KV_HEADS] = next(iter(family.mixers)), np.equal(heads, 0), max(heads)
    if "layer_types" in family.keys and isinstance(others, np.ndarray):
        entries["layer_types"] = [word if other else "full_attention" for other in others]
    epsilon = EPSILON[family.norm]
    needed = [*NEEDED, epsilon, *(x for x in architecture.keys if x not in architecture.optional)]
    needed += [SLIDES] if facts.get(WINDOW) and architecture.lists_windows else []
    if "num_experts_per_tok" in family.keys:
        needed += ["expert_count", "expert_used_count"]
    problems += [f"{key}: missing" for key in needed if key not in facts]
    if "layer_types" in entries:
        facts.pop(SLIDES, None)
    if "rope_theta" in family.keys:
        put("rope_theta", 10000.0)  # llama.cpp's, whatever the family's
    for key, ours in {**KEYS, **architecture.keys, epsilon: "norm_eps"}.items():
        value = facts.pop(key, None)
        if ours and value is not None:
            put(ours, value)
    for key in EPSILON.values():  # of norms that the family does not have
        facts.pop(key, None)
    key_length = facts.pop("attention.key_length", None)
    if facts.pop("attention.value_length", key_length) != key_length:
        problems.append("attention.value_length: differs from attention.key_length")
    rotary = facts.pop("rope.dimension_count", None)
    problems += _heads(entries, family, key_length, rotary)
    scaling = {
        key.removeprefix(SCALING): facts.pop(key) for key in list(facts) if key.startswith(SCALING)
    }
    scaling.setdefault("factor", facts.pop("rope.scale_linear", 0))  # its old name
    if scaling.pop("finetuned", True) is False and "granite" in family.model_type:
        problems.append(f"{SCALING}finetuned: false switches Granite's rotary positions off")
    rotation = entries.get(family.spelling("rope_theta")), entries.get("head_dim")
    if (rope := _scaling(scaling, tensors, rotation, problems)) is not None:
        entries["rope_scaling"] = {**rope, **architecture.scaling}
        if rope["rope_type"] == "longrope" and "original_max_position_embeddings" not in entries:
            problems.append(f"{SCALING}original_context_length: missing")
    elif architecture.scaling:
        problems.append(f"{SCALING}factor: missing")
    if (scoring := SCORING.get(facts.pop(GATING, 0), family.scoring)) != family.scoring:
        problems.append(f"{GATING}: {scoring} is not {family.scoring}")
    if facts.pop(CAUSAL, True) is not True:
        problems.append(f"{CAUSAL}: only true is supported")
    rows = tensors["token_embd.weight"].shape[0] if "token_embd.weight" in tensors else None
    facts.pop("vocab_size", None)  # some files count padding, some do not
    put("vocab_size", rows)
    put("tie_word_embeddings", "output.weight" not in tensors)
    for key, part in BIASES.items():
        if key in family.biased.values():
            ends = (f".{part}.bias", f".{part}kv.bias")
            put(key, any(name.endswith(ends) for name in tensors))
    for theirs, ours in TOKEN_IDS.items():
        entries[ours] = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
    problems += [f"{key}: not understood (value {str(facts[key])[:80]})" for key in facts]
    if problems:
        raise RefimplError(
            f"{path} does not describe a model that refimpl can compute exactly:",
            f"metadata of {prefix} as llama.cpp's converter writes it",
            "pass the config.json of the original model with --config",
            problems,
        )
    return entries


def _heads(entries: dict[str, Any], family: Family, key_length: Any, rotary: Any) -> Iterator[str]:
    """Enter what depends on the size of a head: channels, those that rotate, the scale."""
    named = ("hidden_size", "num_attention_heads", "num_hidden_layers")
    sizes: list[Any] = [entries.get(family.spelling(key)) for key in named]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return
    hidden, heads, blocks = sizes
    plain = hidden // heads
    fractions = family.keys.get("partial_rotary_factor")
    rotates_all = fractions is not None and bool(fractions.only)
    head_dim = key_length or (rotary if rotates_all else None) or plain
    if not head_dim:
        yield f"attention.head_count: {heads} heads of {hidden} channels"
        return
    if "head_dim" in family.keys:
        entries["head_dim"] = head_dim
    elif head_dim != plain:
        yield f"attention.key_length: expected {plain}, got {head_dim}"
    fraction = 1.0 if rotary is None else rotary / head_dim
    if fraction != 1 and rotates_all:
        yield f"rope.dimension_count: expected {head_dim}, got {rotary}"
    elif fractions is not None and fraction != fractions.default:
        entries[family.spelling("partial_rotary_factor")] = fraction
    if "query_pre_attn_scalar" in family.keys:
        largest = family.model_type.startswith(LARGEST.get(blocks, "none"))
        entries["query_pre_attn_scalar"] = plain if largest else head_dim


def _scaling(
    scaling: dict[str, Any],
    tensors: Mapping[str, GgufTensor],
    rotation: tuple[Any, Any],  # base, and channels of a head
    problems: list[str],
) -> dict[str, Any] | None:
    """`rope_scaling`: linear, yarn, longrope of the file, or Llama 3's if it has those factors."""
    kind, factor = scaling.pop("type", "linear"), scaling.pop("factor") or 1.0  # as in llama.cpp
    linear = {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1 else None
    long, short, factors = (tensors.get(name) for name in (*LONG_AND_SHORT, ROPE_FACTORS))
    if long and short and not (linear or factors):
        return {
            "rope_type": "longrope",
            "attention_factor": scaling.pop("attn_factor", 1.0),
            "long_factor": list(map(_plain, long.array.tolist())),
            "short_factor": list(map(_plain, short.array.tolist())),
        }
    if long or short:
        problems.append(f"{', '.join(LONG_AND_SHORT)}: both, and no other scaling, or none")
    for key, neutral in (("attn_factor", 1), ("yarn_attn_factor", 1), ("yarn_ext_factor", 1)):
        if scaling.get(key) == neutral:
            del scaling[key]
    if kind == "yarn" and not (scaling.keys() - YARN.keys() or factors):
        return {"rope_type": "yarn", "factor": factor} | {YARN[x]: scaling[x] for x in scaling}
    problems += [f"{SCALING}{x}: not understood (value {scaling[x]})" for x in scaling]
    if kind not in ("none", "linear"):
        problems.append(f"{SCALING}type: expected none, linear or yarn, got {kind}")
    if factors is None or problems:
        return linear
    stored, (theta, channels) = factors.array.astype(np.float64), rotation
    fits = 2 * stored.size == channels and 1 <= stored.min() <= stored.max() < np.inf
    if linear is None and fits and theta > 0:
        llama3 = LLAMA3 | {"factor": float(stored.max())}
        plain, scaled = (
            Rope(theta, channels, name, **values).inv_freq()  # type: ignore[arg-type]
            for name, values in (("default", {}), ("llama3", llama3))
        )
        if np.allclose(plain / scaled, stored, rtol=1e-5, atol=0):
            return {"rope_type": "llama3"} | llama3
    problems.append(f"{ROPE_FACTORS}: not the factors of Llama 3's scaling alone")
    return None


def _plain(value: Any) -> Any:
    """A value as JSON has it: float32 by its shortest decimals, equal ones of all blocks as one."""
    if isinstance(value, np.ndarray):
        return value[0].item() if len(value) and (value == value[0]).all() else value.tolist()
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _as_transformers_names(
    stored: Mapping[str, GgufTensor], hub: HubModel, architecture: Architecture
) -> dict[str, GgufTensor]:
    """The tensors as `save_pretrained` would write them; those of no role keep their names."""
    stored = _experts_apart(stored, hub)
    renamed = dict.fromkeys((ROPE_FACTORS, *LONG_AND_SHORT), "")
    tensors: dict[str, GgufTensor] = {}
    for ours, role in roles(hub, hub.family.bases[0]):
        ours += {"sinks": ".weight", "correction": ".bias"}.get(ours.rpartition(".")[2], "")
        name, suffix = ours.rsplit(".", 1)
        *block, part = name.removeprefix("blocks.").split(".", 1)
        kind = kind_of(part)
        together = location.fused if (location := hub.names.get(kind)) else ()
        names, key = IN_BLOCK if block else OUTSIDE, kind
        if len(together) > 1:
            names, key = FUSED, together[0]
        theirs = architecture.names.get(key, names.get(key, key))  # another family: missing
        number = [] if location and location.stacked else filter(str.isdigit, part.split("."))
        theirs = ".".join([*(["blk", *block] if block else []), theirs, *number, suffix])
        if theirs not in stored or theirs in renamed:
            continue
        how, heads = architecture.arranged.get(part, ""), hub.config.num_attention_heads
        if how == "paired" and part == "k_proj":
            heads = hub.config.num_key_value_heads
        if "norm" in part and suffix == "weight":
            how = architecture.norms
        shape = stored[theirs].shape
        shape = shape[::-1] if how == "transposed" else shape
        if shape == tuple(x for x in role.shape if x > 1):  # llama.cpp has no axes of length 1
            shape = role.shape
        renamed[theirs] = role.tensor
        tensors[role.tensor] = replace(
            stored[theirs], name=role.tensor, shape=shape, arrangement=how, heads=heads
        )
    return tensors | {name: stored[name] for name in stored if name not in renamed}


def _experts_apart(stored: Mapping[str, GgufTensor], hub: HubModel) -> dict[str, GgufTensor]:
    """The tensors, one [out, in] for each expert; or if the family stacks them, gate with up."""
    location, tensors = hub.names.get("experts.gate_proj"), dict(stored)
    for name, stack in stored.items():
        stem, _, suffix = name.rpartition(".")
        *block, of = stem.split(".")
        if location and location.alternating and of == FUSED["experts.gate_proj"]:
            tensors[f"{name}, gate before up"] = tensors.pop(name)  # of no role in this order
        wanted = 3 if suffix == "weight" else 2
        if location is None or len(stack.shape) != wanted or of not in EXPERT_STACKS:
            continue
        turned, by_row = location.transposed and wanted == 3, location.alternating
        if not location.stacked:
            del tensors[name]
            size = stack.nbytes // stack.shape[0]
            for e in range(stack.shape[0]):
                tensors[".".join([*block, of, f"{e}", suffix])] = replace(
                    stack, shape=stack.shape[1:], offset=stack.offset + e * size
                )
        elif of == IN_BLOCK["experts.gate_proj"]:
            other = ".".join([*block, IN_BLOCK["experts.up_proj"], suffix])
            if other in tensors and tensors[other].shape == stack.shape:
                del tensors[name]
                joined = ".".join([*block, FUSED["experts.gate_proj"], suffix])
                tensors[joined] = JoinedTensor.of(turned, by_row, stack, tensors.pop(other))
        elif of == IN_BLOCK["experts.down_proj"]:
            tensors[name] = JoinedTensor.of(turned, False, stack)
    return tensors
