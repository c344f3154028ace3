"""From a path to a `Model`: its files, its `config.json`, and its tensors under our names."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.composites import OTHER_PARTS, PLACES, part
from refimpl.loading.config_json import HubModel, read_config
from refimpl.loading.families import Location
from refimpl.loading.files.file_reading import json_object, read_file, reading
from refimpl.loading.files.hub import local_files
from refimpl.loading.files.refused_formats import refuse_convertible
from refimpl.loading.files.safetensors_file import SafetensorsFile, open_files
from refimpl.loading.tensor_claims import claim
from refimpl.model.model import Model
from refimpl.model.weight import StoredTensor, Weight

_EXPECTED = "the model's config.json"


def read_model(
    path: str | Path, config: str | Path | None = None, *, download: bool = False
) -> Model:
    """Open a model: a safetensors file, an index of shards, a folder, or an id.

    Args:
        path: The file, or the folder of safetensors. If it does not exist,
            ``org/name[@revision]``: a model in the Hugging Face cache (needs the extra `hub`).
        config: The path of `config.json`; if None, `read_model` looks beside the file, then in the
            file's metadata under the key `config.json`.
        download: Whether to ask the server (`HF_ENDPOINT`) for the files of an id, and download
            those that the cache does not hold.

    Returns:
        The model; no weight has been read yet.

    Raises:
        RefimplError: Anything that would make a number wrong: missing, unclaimed or misshapen
            tensors, unknown config keys (each list is complete), or an unsupported format; an id
            that the cache does not hold whole, or that cannot be downloaded.

    Example:
        >>> model = read_model("fixtures/llama")
        >>> model.config.num_blocks, model.config.family
        (4, 'llama')
    """
    path, hub_id = local_files(path, download)
    refuse_convertible(path)
    files = open_files(path)
    option = None if config is None else Path(config)
    entries, source, config_path = config_file(path, option, files)
    refuse_convertible(path, entries)
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    hub = read_config(entries, source)
    weights, ignored = claimed(tensors, hub, path)
    return Model(
        path, hub.config, entries, weights, files, config_path, hub_id, ignored, read_model
    )


def claimed(
    tensors: Mapping[str, StoredTensor], hub: HubModel, path: Path
) -> tuple[dict[str, Weight], tuple[StoredTensor, ...]]:
    """The model's weights, and tensors of other parts of a composite checkpoint."""
    ignored = tuple[StoredTensor, ...]()
    if hub.composite:
        embed = f"{hub.names['embed'].name}.weight"
        base, head = next((x for x in PLACES if x[0] + embed in tensors), PLACES[0])
        family = replace(hub.family, bases=(base,))
        hub = replace(hub, family=family, names={**hub.names, "lm_head": Location(head)})
        ignored = tuple(x for name, x in tensors.items() if part(name) in OTHER_PARTS)
        tensors = {name: x for name, x in tensors.items() if part(name) not in OTHER_PARTS}
    return claim(tensors, hub, path), ignored


def config_file(
    path: Path, option: Path | None, files: tuple[SafetensorsFile, ...]
) -> tuple[dict[str, Any], str, Path | None]:
    """The parsed `config.json`, its name for messages, and its path (None in the metadata)."""
    file = option or (path if path.is_dir() else path.parent) / "config.json"
    with reading(file, _EXPECTED):
        if file.exists():
            return json_object(read_file(file), str(file), _EXPECTED), str(file), file
    texts = [x.metadata["config.json"] for x in files if "config.json" in x.metadata]
    if texts and option is None:
        source = f"config.json in the metadata of {path}"
        return json_object(texts[0], source, _EXPECTED), source, None
    raise RefimplError(
        f"{option}: no such file"
        if option
        else f"{path} has no config.json beside it, and none in its metadata",
        "config.json with the head counts, rope theta and norm eps, which shapes do not tell",
        "put the model's config.json beside the file",
    )
