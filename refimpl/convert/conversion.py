"""A checkpoint in GGUF, FP8 or MXFP4, written as an ordinary folder that any command reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfileobj
from typing import Any, Literal

from refimpl.convert.written_folder import ConvertedTensor, write_weights
from refimpl.errors import RefimplError, need
from refimpl.loading.checkpoint import claimed, config_file
from refimpl.loading.config_json import read_config
from refimpl.loading.files.companion_files import companion_files, refuse_links_away
from refimpl.loading.files.hub import local_files
from refimpl.loading.files.refused_formats import QUANTISATION, is_gguf
from refimpl.loading.files.safetensors_file import open_files
from refimpl.model.weight import DTYPES
from refimpl.running.threads import Progress
from refimpl.storage.file_system import open_file
from refimpl.storage.files import whole
from refimpl.storage.target_checks import check_folder

FloatDtype = Literal["float32", "float16", "bfloat16"]
SPARE = 1 << 26  # bytes of all files but the weights
# What a checkpoint becomes: config.json, tensors, and other files or their texts by name
Contents = tuple[dict[str, Any], dict[str, ConvertedTensor], Mapping[str, Path | str]]


@dataclass(frozen=True)
class Conversion:
    """What was written: the family, tensors and bytes, and by the source's types their dtypes."""

    family: str
    tensors: int
    bytes: int
    dtypes: Mapping[str, str]


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
    entries, converted, files = _gguf(path) if is_gguf(path) else _folder(path)
    tensors = [*converted.values()]
    if dtype is not None:
        names = {of.name: name for name, of in DTYPES.items()}
        tensors = [replace(tensor, dtype=names[dtype]) for tensor in tensors]
    total = sum(tensor.nbytes for tensor in tensors)
    check_folder(target, {"SOURCE": path}, force, total + SPARE)
    matrices = (tensor for tensor in tensors if len(tensor.shape) > 1)
    widest = DTYPES[max(matrices, key=lambda tensor: DTYPES[tensor.dtype].itemsize).dtype].name
    with whole(target, force) as folder:
        folder.mkdir()
        write_weights(folder, tensors, path, progress)
        config = json.dumps({**entries, "dtype": widest}, indent=1) + "\n"
        for name, content in {**files, "config.json": config}.items():
            if isinstance(content, str):
                (folder / name).write_text(content, "utf-8")
                continue
            with open_file(content) as original, (folder / name).open("wb") as copy:
                copyfileobj(original, copy)
    dtypes = {x.kind: DTYPES[x.dtype].name for x in sorted(tensors, key=lambda x: x.kind)}
    return Conversion(str(entries["model_type"]), len(tensors), total, dtypes)


def _gguf(path: Path) -> Contents:
    """What a GGUF file becomes."""
    need("convert", "gguf")
    from refimpl.convert.gguf_config import architecture_of, config_entries  # these import gguf
    from refimpl.convert.gguf_file import read_gguf, refusing_damage
    from refimpl.convert.gguf_tensors import converted_tensors
    from refimpl.convert.tokenizer import tokenizer_files

    metadata, stored = read_gguf(path)
    architecture = architecture_of(metadata, path)
    with refusing_damage(path):
        entries = config_entries(metadata, stored, architecture, path)
        hub = read_config(entries, f"the metadata of {path}")
        named = metadata["general.architecture"]
        tensors = converted_tensors(stored, hub, architecture, named)
        claimed(tensors, hub, path)  # type: ignore[arg-type]  # as far as it looks
        return entries, tensors, tokenizer_files(metadata, path)


def _folder(path: Path) -> Contents:
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
    return entries, tensors, beside
