"""A checkpoint in GGUF, FP8 or MXFP4, written as an ordinary folder that any command reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from refimpl.errors import need
from refimpl.loading.checkpoint import claim, config_file
from refimpl.loading.config_json import read_config
from refimpl.loading.files.documents import read_file
from refimpl.loading.files.hub import (
    LARGEST,
    companion_files,
    local_files,
    refuse_links_away,
)
from refimpl.loading.files.safetensors_file import (
    QUANTISATION,
    ConvertedTensor,
    is_gguf,
    open_files,
    write_weights,
)
from refimpl.model.weight import STORED_DTYPES
from refimpl.running.outputs import check_folder, whole
from refimpl.running.threads import Progress

FloatDtype = Literal["float32", "float16", "bfloat16"]
STORED_NAMES = {dtype.name: name for name, dtype in STORED_DTYPES.items()}


@dataclass(frozen=True)
class Conversion:
    """What was written: the family, tensors and bytes, and the dtypes by the source's types."""

    family: str
    tensors: int
    bytes: int
    dtypes: Mapping[str, str]


# Of the new folder: the entries of config.json, the tensors, and the bytes of other files by name
Contents = tuple[dict[str, Any], dict[str, ConvertedTensor], dict[str, bytes]]


def convert(
    source: str | Path,
    output: Path,
    dtype: FloatDtype | None = None,
    *,
    force: bool = False,
    download: bool = False,
    progress: Progress = lambda done, total: None,
) -> Conversion:
    """Write a checkpoint as safetensors, `config.json` and tokenizer; whole or not at all.

    Without a dtype, each tensor has the narrowest that contains its values exactly.
    """
    path, _ = local_files(source, download)
    config, made, files = _from_gguf(path) if is_gguf(path) else _from_folder(path)
    tensors = [
        replace(x, dtype=STORED_NAMES[dtype]) if dtype else x for x in made.values()
    ]
    total = sum(tensor.nbytes for tensor in tensors)
    check_folder(output, {"SOURCE": path}, force)
    matrices = {
        STORED_DTYPES[tensor.dtype] for tensor in tensors if len(tensor.shape) > 1
    }
    config["dtype"] = max(matrices, key=lambda each: each.itemsize).name
    files["config.json"] = (json.dumps(config, indent=1) + "\n").encode()
    with whole(output, force) as folder:
        folder.mkdir()
        write_weights(folder / "model.safetensors", tensors, progress)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    dtypes = {
        x.kind: STORED_DTYPES[x.dtype].name
        for x in sorted(tensors, key=lambda x: x.kind)
    }
    return Conversion(str(config["model_type"]), len(tensors), total, dtypes)


def _from_gguf(path: Path) -> Contents:
    """What a GGUF file becomes."""
    need("convert", "gguf")
    from refimpl.convert.gguf_config import architecture_of, config_entries
    from refimpl.convert.gguf_file import read_gguf, refusing_damage
    from refimpl.convert.gguf_tensors import converted_tensors
    from refimpl.convert.tokenizer import tokenizer_files

    with refusing_damage(path):
        metadata, stored = read_gguf(path)
        architecture = architecture_of(metadata)
        entries = config_entries(metadata, stored, architecture)
        facts = read_config(entries, f"the metadata of {path}")
        tensors = converted_tensors(
            stored, facts, architecture, metadata["general.architecture"]
        )
        claim(tensors, facts, path)  # type: ignore[arg-type]  # as far as it looks
        return entries, tensors, tokenizer_files(metadata)


def _from_folder(path: Path) -> Contents:
    """What a checkpoint in FP8 or MXFP4 becomes, with the files beside it."""
    from refimpl.convert.block_formats import converted_blocks

    files = open_files(path)
    entries, source, _ = config_file(path, None, files)
    stored = {name: tensor for file in files for name, tensor in file.tensors.items()}
    tensors = converted_blocks(entries.pop(QUANTISATION, None), stored, source)
    entries.pop("torch_dtype", None)
    claim(tensors, read_config(entries, source), path)  # type: ignore[arg-type]
    beside = companion_files(path, [file.path.name for file in files])
    refuse_links_away(path, beside.values())
    return entries, tensors, {name: read_file(x, LARGEST) for name, x in beside.items()}
