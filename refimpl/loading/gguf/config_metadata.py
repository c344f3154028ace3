"""`config.json` out of the metadata of a GGUF file; what is not understood is an error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.gguf.architectures import ARCHITECTURES, KEYS, Architecture
from refimpl.loading.gguf.gguf_file import GgufTensor
from refimpl.model.config import Rope

IRRELEVANT = ("general.", "tokenizer.", "split.", "quantize.")  # beginnings of keys
CAUSAL, SCALING = "attention.causal", "rope.scaling."
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
TOKEN_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
LARGEST = {46: "gemma2", 62: "gemma3"}  # blocks of the sizes whose attention scale is D / H
ROPE_FACTORS = "rope_freqs.weight"


def architecture_of(metadata: Mapping[str, Any], path: Path) -> Architecture:
    """The architecture of a file."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise RefimplError(
            f"{path} has the architecture {name!r}",
            f"one of {', '.join(ARCHITECTURES)}",
            "use the original checkpoint in safetensors, if refimpl reads its family",
        )
    return ARCHITECTURES[name]


def config_entries(
    metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor], path: Path
) -> dict[str, Any]:
    """The entries of `config.json`."""
    architecture, prefix = architecture_of(metadata, path), metadata["general.architecture"]
    facts = {
        key.removeprefix(f"{prefix}."): _plain(value)
        for key, value in metadata.items()
        if not key.startswith(IRRELEVANT)
    }
    family, problems = architecture.family, list[str]()
    entries: dict[str, Any] = {
        "model_type": architecture.model_type,
        "architectures": [architecture.hub_class],
        **architecture.fixed,
    }

    def put(key: str, value: Any) -> None:
        if key in family.defaults or key not in ("tie_word_embeddings", "attention_bias"):
            entries[family.keys.get(key, key)] = value

    for key, ours in {**KEYS, **architecture.keys}.items():
        if key in facts:
            put(ours, facts.pop(key))
    hidden, heads, blocks = (
        entries.get(family.keys.get(key, key))
        for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    key_length = facts.pop("attention.key_length", None)
    if facts.pop("attention.value_length", key_length) != key_length:
        problems.append("attention.value_length: differs from attention.key_length")
    rotary = facts.pop("rope.dimension_count", None)
    sizes = (hidden, heads, blocks)
    if all(isinstance(size, int) and size > 0 for size in sizes):
        _heads(entries, architecture, sizes, key_length, rotary, problems)
    scaling = {
        key.removeprefix(SCALING): facts.pop(key) for key in list(facts) if key.startswith(SCALING)
    }
    if (rope := _scaling(scaling, tensors.get(ROPE_FACTORS), entries, problems)) is not None:
        entries["rope_scaling"] = rope
    if facts.pop(CAUSAL, True) is not True:
        problems.append(f"{CAUSAL}: only true is supported")
    rows = tensors["token_embd.weight"].shape[0] if "token_embd.weight" in tensors else None
    facts.pop("vocab_size", None)  # some files count padding, some do not
    put("vocab_size", rows)
    put("tie_word_embeddings", "output.weight" not in tensors)
    if "attention_bias" in family.defaults:
        put("attention_bias", any(".attn_q" in n and n.endswith(".bias") for n in tensors))
    for key in ("mlp_bias", "use_sliding_window"):
        if key in family.defaults:
            entries[key] = key == "mlp_bias" and any("ffn_up.bias" in name for name in tensors)
    entries |= {
        ours: int(metadata[f"tokenizer.ggml.{theirs}_token_id"])
        for theirs, ours in TOKEN_IDS.items()
        if isinstance(metadata.get(f"tokenizer.ggml.{theirs}_token_id"), int)
    }
    problems += [f"{key}: not understood (value {str(facts[key])[:80]})" for key in facts]
    if problems:
        raise RefimplError(
            f"{path} does not describe a model that refimpl can compute exactly:\n  "
            + "\n  ".join(problems),
            f"metadata of {prefix} as llama.cpp's converter writes it",
            "pass the config.json of the original model with --config",
        )
    return entries
