"""A checkpoint in GGUF, FP8 or MXFP4, written as an ordinary folder that any command reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from refimpl.convert.written_folder import ConvertedTensor, write_weights
from refimpl.errors import RefimplError, need
from refimpl.loading.checkpoint import claimed, config_file
from refimpl.loading.config_json import read_config
from refimpl.loading.files.companion_files import companion_files, refuse_links_away
from refimpl.loading.files.file_reading import read_file
from refimpl.loading.files.hub import local_files
from refimpl.loading.files.refused_formats import QUANTISATION, is_gguf
from refimpl.loading.files.safetensors_file import open_files
from refimpl.model.weight import STORED_DTYPES
from refimpl.running.files import whole
from refimpl.running.target_checks import check_folder
from refimpl.running.threads import Progress

FloatDtype = Literal["float32", "float16", "bfloat16"]
NAMES = {dtype.name: name for name, dtype in STORED_DTYPES.items()}
SPARE, MOST = 1 << 26, 1 << 30  # bytes of all files but the weights, and of one of these


@dataclass(frozen=True)
class Conversion:
    """What was written: the family, tensors and bytes, and by the source's types their dtypes."""

    family: str
    tensors: int
    bytes: int
    dtypes: Mapping[str, str]


@dataclass(frozen=True)
class Contents:
    """What a checkpoint becomes: config.json, tensors, and the bytes of other files by name."""

    config: Mapping[str, Any]
    tensors: Mapping[str, ConvertedTensor]
    files: Mapping[str, bytes]


def convert(
    source: str | Path,
    target: Path,
    dtype: FloatDtype | None = None,
    *,
    force: bool = False,
    download: bool = False,
    progress: Progress = lambda done, total: None,
) -> Conversion:
    """Write a checkpoint as safetensors, `config.json` and tokenizer; whole or not at all.

    Args:
        source: A GGUF file (of a split model, the first), or a folder or hub id in FP8 or MXFP4.
        target: The new folder.
        dtype: Of all tensors. None: of each one the narrowest that contains its values exactly.
        force: Whether to replace a model's folder.
        download: Whether to download the files of an id.
        progress: Called with the bytes that are written, and those of all tensors.

    Raises:
        RefimplError: A source that is damaged or not understood; values that are not finite.
    """
    path, _ = local_files(source, download)
    made = _from_gguf(path) if is_gguf(path) else _from_folder(path)
    tensors = [*made.tensors.values()]
    if dtype is not None:
        tensors = [replace(tensor, dtype=NAMES[dtype]) for tensor in tensors]
    total = sum(tensor.nbytes for tensor in tensors)
    check_folder(target, {"SOURCE": path}, force, total + SPARE)
    matrices = {STORED_DTYPES[tensor.dtype] for tensor in tensors if len(tensor.shape) > 1}
    widest = max(matrices, key=lambda each: each.itemsize).name
    with whole(target, force) as folder:
        folder.mkdir()
        write_weights(folder, tensors, progress)
        config = json.dumps({**made.config, "dtype": widest}, indent=1) + "\n"
        for name, content in {**made.files, "config.json": config.encode()}.items():
            (folder / name).write_bytes(content)
    dtypes = {x.kind: STORED_DTYPES[x.dtype].name for x in sorted(tensors, key=lambda x: x.kind)}
    return Conversion(str(made.config["model_type"]), len(tensors), total, dtypes)


def _from_gguf(path: Path) -> Contents:
    """What a GGUF file becomes."""
    need("convert", "gguf")
    from refimpl.convert.gguf_config import architecture_of, config_entries
    from refimpl.convert.gguf_file import read_gguf, refusing_damage
    from refimpl.convert.gguf_tensors import converted_tensors
    from refimpl.convert.tokenizer import tokenizer_files

    metadata, stored = read_gguf(path)
    architecture = architecture_of(metadata, path)
    with refusing_damage(path):
        entries = config_entries(metadata, stored, architecture, path)
        hub = read_config(entries, f"the metadata of {path}")
        tensors = converted_tensors(stored, hub, architecture, metadata["general.architecture"])
        claimed(tensors, hub, path)  # type: ignore[arg-type]  # as far as it looks
        texts = tokenizer_files(metadata, path)
        return Contents(entries, tensors, {name: x.encode() for name, x in texts.items()})


def _from_folder(path: Path) -> Contents:
    """What a checkpoint in FP8 or MXFP4 becomes, with the files beside it."""
    from refimpl.convert.block_formats import converted_blocks

    files = open_files(path)
    entries, source, _ = config_file(path, None, files)
    if not entries.get(QUANTISATION):
        raise RefimplError(
            f"{path} is not quantised, by its config.json",
            "a GGUF file, or a checkpoint in FP8 or MXFP4",
            "pass it to the other commands as it is",
        )
    stored = {name: tensor for file in files for name, tensor in file.tensors.items()}
    tensors = converted_blocks(entries[QUANTISATION], stored, source)
    entries = {x: value for x, value in entries.items() if x not in (QUANTISATION, "torch_dtype")}
    claimed(tensors, read_config(entries, source), path)  # type: ignore[arg-type]
    beside = companion_files(path, [file.path.name for file in files])
    refuse_links_away(path, beside.values())
    return Contents(entries, tensors, {name: read_file(x, MOST) for name, x in beside.items()})
