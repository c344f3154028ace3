"""From a GGUF file to a `Model`: config, tensors under transformers' names, tokenizer."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from refimpl.loading.companions import Companions
from refimpl.loading.config_json import HubModel, read_config
from refimpl.loading.families import FAMILIES
from refimpl.loading.files.file_reading import json_object, read_file, reading, require_file
from refimpl.loading.gguf.architectures import FUSED, IN_BLOCK, OUTSIDE, Architecture
from refimpl.loading.gguf.config_metadata import ROPE_FACTORS, architecture_of, config_entries
from refimpl.loading.gguf.gguf_file import GgufTensor, open_shards
from refimpl.loading.gguf.tokenizer_metadata import write_tokenizer
from refimpl.loading.tensor_claims import claim, roles
from refimpl.model.model import Model


def read_gguf(path: Path, config: Path | None, hub_id: str | None) -> Model:
    """Open a GGUF file, or the first file of a split one; no weight has been read yet."""
    with reading(path, "a readable GGUF file"):
        require_file(path)
    files = open_shards(path)
    metadata = files[0].metadata
    stored = {name: tensor for file in files for name, tensor in file.tensors.items()}
    architecture = architecture_of(metadata, path)
    family = FAMILIES[architecture.model_type]
    if config is None:
        source, entries = f"the metadata of {path}", config_entries(metadata, stored, family, path)
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
    renamed: dict[str, str] = {ROPE_FACTORS: ""}
    tensors: dict[str, GgufTensor] = {}
    for ours, role in roles(hub, hub.family.bases[0]):
        name, suffix = ours.rsplit(".", 1)
        *block, part = name.removeprefix("blocks.").split(".", 1)
        together = hub.names[part].fused if part in hub.names else ()
        theirs = FUSED[together[0]] if together else (IN_BLOCK if block else OUTSIDE)[part]
        theirs = ".".join([*(["blk", *block] if block else []), theirs, suffix])
        if theirs not in stored or theirs in renamed:
            continue
        how, heads = architecture.arranged.get(part, ""), hub.config.num_attention_heads
        if how == "paired" and part == "k_proj":
            heads = hub.config.num_key_value_heads
        if "norm" in part and suffix == "weight":
            how = architecture.norms
        shape = stored[theirs].shape
        shape = shape[::-1] if how == "transposed" else shape
        renamed[theirs] = role.tensor
        tensors[role.tensor] = replace(
            stored[theirs], name=role.tensor, shape=shape, arrangement=how, heads=heads
        )
    return tensors | {name: stored[name] for name in stored if name not in renamed}
