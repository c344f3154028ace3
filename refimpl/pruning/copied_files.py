"""Which of a model's files are copied for the pruned model, their size, and how."""

import json
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.companions import INDEX, companion_files
from refimpl.model.model import Model
from refimpl.model.weight import StoredTensor
from refimpl.storage.file_system import open_file
from refimpl.storage.target_checks import RECORD, SCORES

CONVERTED = "model.safetensors"  # what quantised weights become
PIECE = 1 << 20  # bytes copied at once
PAGE, SPARE = 1 << 12, 1 << 20  # bytes: files fill whole pages; the record and longer headers


@dataclass(frozen=True)
class Copies:
    """Files of a model by their names in the new folder: its weights, and all others to copy.

    `left_out` names what else its folder holds, folders with a slash. `converted` are the tensors
    that are converted to safetensors, into `CONVERTED`, instead of copying their file.
    """

    weights: Mapping[str, Path]
    companions: Mapping[str, Path]
    left_out: tuple[str, ...]
    converted: tuple[StoredTensor, ...] = ()

    @property
    def files(self) -> dict[str, Path]:
        """All files by their names in the new folder."""
        return {**self.weights, **self.companions}

    @property
    def needed_bytes(self) -> int:
        """Room that the new folder takes on a disk, in bytes."""
        sizes = [path.stat().st_size for path in self.companions.values()]
        if self.converted:
            sizes += [written_bytes(tensor) for tensor in self.converted]
        else:
            sizes += [path.stat().st_size for path in self.weights.values()]
        return SPARE + sum(-(-size // PAGE) * PAGE for size in sizes)


def copies(model: Model) -> Copies:
    """Find which files of a model are copied: its weights, the index in use, and its companions.

    Quantised weights are converted, and have companions of their own. A link out of the folder is
    refused: whoever made the folder chose where it leads, and its copy may be published.
    """
    weights = {file.path.name: file.path for file in model.files}
    converted: tuple[StoredTensor, ...] = ()
    if model.companions is not None:
        stored = {weight.stored.name: weight.stored for weight in model.weights.values()}
        weights, converted = {CONVERTED: model.path}, (*stored.values(), *model.ignored)
        companions = dict(model.companions())
    else:
        companions = companion_files(model.path, (RECORD, SCORES, *weights))
        if index := _index(model, weights):
            companions[index] = model.folder / index
        if model.config_path is not None:
            companions["config.json"] = model.config_path
    entries = sorted(model.folder.iterdir()) if model.path.is_dir() else []
    used_files = [file.path for file in model.files]
    used = {path.name for path in used_files} | companions.keys()
    left = [entry for entry in entries if entry.name not in used]
    names = tuple(f"{entry.name}/" if entry.is_dir() else entry.name for entry in left)
    plan = Copies(weights, companions, names, converted)
    read = {
        *plan.files.values(),
        *used_files,
        model.config_path or model.path,
        model.folder / RECORD,
    }
    if away := _links_away(model.folder, sorted(read - {model.path})):  # the user named that
        raise RefimplError(
            f"{model.folder} has links to files outside, which would be copied:",
            "files, or links to files in the folder; in the Hugging Face cache, links to blobs/ of "
            "the same repository",
            "if others may have such a file, put a copy in the place of the link, or remove the "
            "link",
            [f"{path.name} -> {path.resolve()}" for path in away],
        )
    return plan


def _links_away(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Those of a folder's files that are links out of it, and out of its repository in a cache."""
    real = folder.resolve()
    above = (path.parent for path in real.parents if path.name == "snapshots")
    inside = (real, *(path / "blobs" for path in above if path.name.startswith("models--")))
    links = (path for path in paths if path.parent == folder and path.is_symlink())
    return [x for x in links if not any(x.resolve().is_relative_to(y) for y in inside)]


def copy_weights(source: Path, target: Path) -> bool:
    """Copy a safetensors file; whether `format: pt` was added to its metadata."""
    with open_file(source) as file, target.open("wb") as copy:
        header = file.read(*struct.unpack("<Q", file.read(8)))
        new = with_format(header)
        copy.write(struct.pack("<Q", len(new)) + new)
        shutil.copyfileobj(file, copy, PIECE)
    return new != header


def copy_file(source: Path, target: Path) -> None:
    """Copy a file."""
    with open_file(source) as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy, PIECE)


def written_bytes(tensor: StoredTensor) -> int:
    """Bytes of a tensor in a safetensors file."""
    return prod(tensor.shape) * tensor.numpy_dtype.itemsize


def convert_weights(tensors: Sequence[StoredTensor], target: Path) -> None:
    """Write tensors as a safetensors file, a piece at a time; quantised ones become float32."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + written_bytes(tensor)
        entry = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
        header[tensor.name] = entry
    text = _aligned(header)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for rows in tensor.pieces():
                file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)


def with_format(header: bytes) -> bytes:
    """A safetensors header with a format in its metadata, which older transformers require."""
    content = json.loads(header)
    metadata = content.get("__metadata__") or {}
    if "format" in metadata:
        return header
    return _aligned(content | {"__metadata__": {"format": "pt", **metadata}})


def _aligned(header: Mapping[str, Any]) -> bytes:
    """A header as JSON; spaces at the end align the data to 8 bytes."""
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)


def _index(model: Model, weights: Mapping[str, Path]) -> str | None:
    """The name of the index that led to the weights; `model.safetensors` has precedence."""
    if not model.path.is_dir():
        return model.path.name if model.path.name.endswith(INDEX) else None
    if "model.safetensors" in weights:
        return None
    paths = model.folder.glob(f"*.safetensors{INDEX}")
    return next((path.name for path in paths), None)  # at most one, or reading had refused it
