"""From a GGUF file to a `Model`: config, tensors under transformers' names, tokenizer."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.companions import Companions
from refimpl.loading.config_json import HubModel, read_config
from refimpl.loading.families import FAMILIES, Family
from refimpl.loading.families.family import MOST
from refimpl.loading.gguf.architectures import (
    EPSILON,
    EXPERT_STACKS,
    FUSED,
    KEYS,
    NAMES,
    NEEDED,
    Architecture,
    architecture_of,
)
from refimpl.loading.gguf.derived_facts import (
    INNER,
    KV_HEADS,
    NEXTN,
    ROPE_FACTORS,
    SCALING,
    SLIDES,
    WINDOW,
)
from refimpl.loading.gguf.gguf_file import GgufTensor, JoinedTensor, LearnedNumber, open_shards
from refimpl.loading.gguf.tokenizer_metadata import write_tokenizer
from refimpl.loading.tensor_claims import claim, roles
from refimpl.model.config import Rope, kind_of
from refimpl.model.layout import Layout
from refimpl.model.mixers.sizes import SharedAttention
from refimpl.model.model import Model

IRRELEVANT = ("general.", "tokenizer.", "split.", "quantize.")  # beginnings of keys
CAUSAL, RECURRENT = "attention.causal", "attention.recurrent_layers"
GATING, SCORING = "expert_gating_func", {1: "softmax", 2: "sigmoid"}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow",
}  # fmt: skip
PRESENT = {  # keys that are true if there is such a tensor
    "attention_bias": "attn_q.bias", "use_qkv_bias": "attn_q.bias", "mlp_bias": "ffn_up.bias",
    "use_bias": "attn_output.bias", "attention_out_bias": "attn_output.bias",
    "use_qk_norm": "attn_q_norm.weight", "mamba_conv_bias": "ssm_conv1d.bias",
    "mamba_rms_norm": "ssm_norm.weight",
}  # fmt: skip
TOKEN_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
LARGEST = {46: "gemma2", 62: "gemma3"}  # blocks of the sizes whose attention scale is D / H
LONG_AND_SHORT = ["rope_factors_long.weight", "rope_factors_short.weight"]


def read_gguf(
    path: Path, entries: dict[str, Any], config_path: Path | None, hub_id: str | None
) -> Model:
    """Open a GGUF file, or the first of a split one, with its metadata or the `config.json`."""
    files = open_shards(path)
    metadata, architecture = files[0].metadata, architecture_of(files[0].metadata, path)
    stored = {name: tensor for file in files for name, tensor in file.tensors.items()}
    if config_path and architecture.multiplied:
        raise RefimplError(
            f"{path} has the factors of the model's config.json in its weights",
            f"no config.json for a file of {metadata['general.architecture']}",
            "omit --config",
        )
    if config_path is None:
        entries = _config_entries(metadata, stored, architecture, path)
    hub = read_config(entries, str(config_path or f"the metadata of {path}"))
    for key, values in metadata.items():  # of an activation in each block
        if key.startswith("xielu.") and isinstance(values, np.ndarray):
            for i, x in enumerate(map(float, values)):
                name = f"blk.{i}.act.{key[6:]}"
                stored[name] = LearnedNumber(files[0], name, "F32", (1,), 0, number=x)
    further = metadata.get(f"{metadata['general.architecture']}.{NEXTN}", 0)
    if NEXTN in architecture.keys and further > 0:
        last = hub.config.num_blocks + further
        stored = {
            name: tensor
            for name, tensor in stored.items()
            if not (block := re.match(r"blk\.(\d+)\.", name))
            or not hub.config.num_blocks <= int(block[1]) < last
        }
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
    problems, epsilon = list[str](), EPSILON[family.norm]
    needed = [*NEEDED, epsilon, *(x for x in architecture.keys if x not in architecture.optional)]
    needed += [SLIDES] if facts.get(WINDOW) and architecture.lists_windows else []
    needed += [INNER] if "up_proj" in family.names else []
    if "num_experts_per_tok" in family.keys and "expert_count" not in architecture.optional:
        needed += ["expert_count", "expert_used_count"]
    problems += [f"{key}: missing" for key in needed if key not in facts]
    further = facts.get(NEXTN, 0) if NEXTN in architecture.keys else 0
    blocks = facts.get("block_count", 0) - further
    lists = {
        key: x
        for key in (SLIDES, KV_HEADS, INNER, RECURRENT)
        if isinstance(x := metadata.get(f"{prefix}.{key}"), np.ndarray)
    }
    problems += [
        f"{key}: {len(x)} values for {blocks + further} blocks"
        for key, x in lists.items()
        if len(x) != blocks + further
    ]
    entries: dict[str, Any] = {
        "model_type": architecture.model_type,
        "architectures": [architecture.hub_class],
        **architecture.fixed,
    }
    if not problems and 0 < blocks <= MOST:
        facts |= {"block_count": blocks, **{key: _plain(x[:blocks]) for key, x in lists.items()}}
        entries |= architecture.variant(facts, tensors)

    def put(key: str, value: Any) -> None:
        entries[family.spelling(key)] = value

    if facts.get(WINDOW) == 0:
        facts[WINDOW] = None
    word, others, heads = "sliding_attention", lists.get(SLIDES), facts.get(KV_HEADS)
    if others is None and architecture.lists_windows:
        others = np.zeros(min(max(blocks, 0), MOST))  # no block slides
    if family.mixers and RECURRENT in lists:
        word, others = next(iter(family.mixers)), lists[RECURRENT]
        del facts[RECURRENT]
    elif family.mixers and isinstance(heads, list) and heads:  # 0 in blocks without attention
        word, others, facts[KV_HEADS] = next(iter(family.mixers)), np.equal(heads, 0), max(heads)
    if "layer_types" in family.keys and others is not None:
        kinds = [word if other else "full_attention" for other in others[: max(blocks, 0)]]
        entries["layer_types"] = kinds
        facts.pop(SLIDES, None)
    if "rope_theta" in family.keys and "rope_parameters" not in entries:
        put("rope_theta", 10000.0)  # llama.cpp's, whatever the family's
    for key, ours in {**KEYS, **architecture.keys, epsilon: "norm_eps"}.items():
        value = facts.pop(key, None)
        if ours and value is not None:
            known = family.keys[ours].only if ours in family.keys else ()
            put(ours, next((x for x in known if x == value), value))  # 8, not 8.0
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
    theta, channels = (entries.get(family.spelling(x)) for x in ("rope_theta", "head_dim"))
    own, factors = entries.pop("rope_scaling", {}), {} if "rope_parameters" in entries else tensors
    if (rope := _scaling(scaling, factors, (theta, channels), problems)) is not None:
        entries["rope_scaling"] = {**rope, **own, **architecture.scaling}
        if rope["rope_type"] == "longrope" and "original_max_position_embeddings" not in entries:
            problems.append(f"{SCALING}original_context_length: missing")
    elif architecture.scaling:
        problems.append(f"{SCALING}factor: missing")
    gating = facts.pop(GATING, 0)
    if gating and (scoring := SCORING.get(gating, gating)) != family.scoring:
        problems.append(f"{GATING}: {scoring} is not {family.scoring}")
    if facts.pop(CAUSAL, True) is not True:
        problems.append(f"{CAUSAL}: only true is supported")
    rows = tensors["token_embd.weight"].shape[0] if "token_embd.weight" in tensors else None
    facts.pop("vocab_size", None)  # some files count padding, some do not
    put("vocab_size", rows)
    put("tie_word_embeddings", "output.weight" not in tensors)
    for key, part in PRESENT.items():
        if key in (*family.biased.values(), *family.optional.values()):
            put(key, any(name.replace("_qkv.", "_q.").endswith(f".{part}") for name in tensors))
    for theirs, ours in TOKEN_IDS.items():
        entries[ours] = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
    problems += [f"{key}: not understood (value {str(facts[key])[:80]})" for key in facts]
    for key in [x for x in entries if "." in x]:  # of an object in the object
        outer, inner = key.split(".")
        entries.setdefault(outer, {})[inner] = entries.pop(key)
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
        entries[family.spelling("head_dim")] = head_dim
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
    config, stored = hub.config, _experts_apart(stored, hub)
    names, tensors = {**NAMES, **architecture.names}, dict[str, GgufTensor]()
    used = {ROPE_FACTORS, *LONG_AND_SHORT} | {  # and of blocks with another block's keys
        f"blk.{i}.{x}.weight"
        for i, kind in enumerate(config.blocks)
        if isinstance(kind.mixer, SharedAttention)
        for x in ("attn_k", "attn_v", "attn_k_norm")
    }
    for ours, role in roles(hub, hub.family.bases[0]):
        number, part = ours.split(".", 2)[1:] if ours.startswith("blocks.") else ("", ours)
        stem, _, suffix = (kind := kind_of(part)).rpartition(".")
        name, location = kind if kind in names else stem, hub.names.get(stem)
        before = f"blk.{number}." if f".{number}." in role.tensor else ""
        digits = [] if location and location.stacked else filter(str.isdigit, part.split("."))
        together, after = location.fused if location else (), ".".join(["", *digits, suffix])
        theirs = [f"{before}{names.get(x, x)}{after}" for x in together or (stem,)]
        if kind in names:
            theirs = [before + names[kind]]
        elif stem == "kv_b_proj" and theirs[0] not in stored:
            theirs = [f"{before}attn_{x}_b.weight" for x in "kv"]
        elif len(theirs) > 1 and not (location.alternating or {*theirs} <= stored.keys()):  # type: ignore[union-attr]
            place = architecture.names.get(stem, FUSED.get(stem, stem))
            theirs = [f"{before}{x}{after}" for x in place.split()]
        if role.tensor in tensors or not {*theirs} <= stored.keys() - used:
            continue
        how, layout = architecture.arranged.get(name, ""), role.layout
        mixer = config.mixer(int(number)) if number else None
        first, *others = (stored[x] for x in theirs)
        tensor: GgufTensor | None = first
        if stem == "kv_b_proj" and others:
            tensor = _keys_and_values(mixer, first, *others)
        elif others or how == "in turn" or (layout.stack and layout.transposed):
            tensor = JoinedTensor.of(layout, first, *others)
        else:
            shape = first.shape[::-1] if how == "transposed" else first.shape
            wanted = tuple(x for x in role.shape if x > 1)  # llama.cpp has no axes of length 1
            if shape == wanted or (len(wanted) < 2 and prod(shape) == prod(wanted)):
                shape = role.shape
            change = "minus one" if role.offset else "log" if name == "A_log" else ""
            tensor = replace(first, shape=shape, arrangement=how, mixer=mixer, change=change)
        if tensor is not None:
            tensors[role.tensor] = replace(tensor, name=role.tensor)
            used |= {*theirs}
    return tensors | {name: stored[name] for name in stored if name not in used}


def _keys_and_values(mixer: Any, k: GgufTensor, v: GgufTensor) -> GgufTensor | None:
    """What makes keys and values from a latent vector, [H, rank, h] and [H, h, rank], as one."""
    heads, rank, rows = mixer.num_attention_heads, mixer.rank, (mixer.plain_dim, mixer.value_dim)
    if (k.shape, v.shape) != ((heads, rank, rows[0]), (heads, rows[1], rank)):
        return None
    shapes = [(heads * x, rank) for x in rows]
    k = replace(k, shape=shapes[0], arrangement="heads transposed", mixer=mixer)
    layout = Layout((heads * rows[0], heads * rows[1]), groups=heads)
    return JoinedTensor.of(layout, k, replace(v, shape=shapes[1]))


def _experts_apart(stored: Mapping[str, GgufTensor], hub: HubModel) -> dict[str, GgufTensor]:
    """The tensors, one [out, in] for each expert if the family has them apart."""
    location, tensors = hub.names.get("experts.up_proj"), dict(stored)
    stacks = EXPERT_STACKS if location and not location.stacked else []
    for name, stack in stored.items():
        stem, _, suffix = name.rpartition(".")
        wanted = 3 if suffix == "weight" else 2
        if stem.rpartition(".")[2] in stacks and len(stack.shape) == wanted:
            del tensors[name]
            size = stack.nbytes // stack.shape[0]
            for e in range(stack.shape[0]):
                one = replace(stack, shape=stack.shape[1:], offset=stack.offset + e * size)
                tensors[f"{stem}.{e}.{suffix}"] = one
    return tensors
