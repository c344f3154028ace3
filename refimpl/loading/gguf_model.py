"""From a GGUF file to a `Model`: config, tensors under transformers' names, tokenizer."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from refimpl.loading.companions import Companions
from refimpl.loading.config_json import HubModel, read_config
from refimpl.loading.files.file_reading import json_object, read_file, reading
from refimpl.loading.gguf.architectures import (
    EXPERT_STACKS,
    FUSED,
    IN_BLOCK,
    OUTSIDE,
    Architecture,
    architecture_of,
)
from refimpl.loading.gguf.gguf_file import GgufTensor, JoinedTensor, open_shards
from refimpl.loading.gguf.tokenizer_metadata import write_tokenizer
from refimpl.loading.gguf_config import LONG_AND_SHORT, ROPE_FACTORS, config_entries
from refimpl.loading.tensor_claims import claim, roles
from refimpl.model.config import kind_of
from refimpl.model.model import Model


def read_gguf(path: Path, config: Path | None, hub_id: str | None) -> Model:
    """Open a GGUF file, or the first file of a split one; no weight has been read yet."""
    files = open_shards(path)
    metadata = files[0].metadata
    stored = {name: tensor for file in files for name, tensor in file.tensors.items()}
    architecture = architecture_of(metadata, path)
    if config is None:
        source = f"the metadata of {path}"
        entries = config_entries(metadata, stored, architecture, path)
    else:
        source, expected = str(config), "the model's config.json"
        with reading(config, expected):
            entries = json_object(read_file(config), source, expected)
    hub = read_config(entries, source)
    tensors = _as_transformers_names(stored, hub, architecture)
    companions = Companions(
        {**entries, "dtype": "float32"}, {}, lambda folder: write_tokenizer(metadata, folder, path)
    )
    weights = claim(tensors, hub, path)
    return Model(path, hub.config, entries, weights, files, None, hub_id, companions)


def _as_transformers_names(
    stored: Mapping[str, GgufTensor], hub: HubModel, architecture: Architecture
) -> dict[str, GgufTensor]:
    """The tensors as `save_pretrained` would write them; those of no role keep their names."""
    stored = _experts_apart(stored, hub)
    renamed = dict.fromkeys((ROPE_FACTORS, *LONG_AND_SHORT), "")
    tensors: dict[str, GgufTensor] = {}
    for ours, role in roles(hub, hub.family.bases[0]):
        name, suffix = ours.rsplit(".", 1)
        *block, part = name.removeprefix("blocks.").split(".", 1)
        kind = kind_of(part)
        location = hub.names.get(kind)
        together = location.fused if location else ()
        names, key = IN_BLOCK if block else OUTSIDE, kind
        if len(together) > 1:
            names, key = FUSED, together[0]
        theirs = names.get(key, key)  # of another family's config.json: missing
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
        if part == "shared_expert.gate" and len(shape) == 1:
            shape = (1, *shape)
        renamed[theirs] = role.tensor
        tensors[role.tensor] = replace(
            stored[theirs], name=role.tensor, shape=shape, arrangement=how, heads=heads
        )
    return tensors | {name: stored[name] for name in stored if name not in renamed}


def _experts_apart(stored: Mapping[str, GgufTensor], hub: HubModel) -> dict[str, GgufTensor]:
    """The tensors with those of all experts, [E, out, in], as the family has them.

    A tensor for each expert; or if the family stacks them, too, gate and up in one.
    """
    location, tensors = hub.names.get("experts.gate_proj"), dict(stored)
    for name, stack in stored.items():
        stem, _, suffix = name.rpartition(".")
        *block, of = stem.split(".")
        if location is None or len(stack.shape) != 3 or of not in EXPERT_STACKS:
            continue
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
                tensors[joined] = JoinedTensor.of(stack, tensors.pop(other))
    return tensors
