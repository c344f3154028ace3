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
from refimpl.storage.target_checks import RECORD

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

    The `config.json` that was read, wherever it was, becomes `config.json`. Quantised weights are
    converted, and have companions of their own. A link out of the folder is refused: whoever made
    the folder chose where it leads, and its copy may be published.
    """
    weights = {file.path.name: file.path for file in model.files}
    converted: tuple[StoredTensor, ...] = ()
    if model.companions is not None:
        stored = {weight.stored.name: weight.stored for weight in model.weights.values()}
        weights, converted = {CONVERTED: model.path}, (*stored.values(), *model.ignored)
        companions = dict(model.companions())
    else:
        companions = companion_files(model.path, (RECORD, *weights))
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
    header = header_bytes(source)
    new = with_format(header)
    with open_file(source) as file, target.open("wb") as copy:
        file.seek(8 + len(header))
        copy.write(struct.pack("<Q", len(new)) + new)
        shutil.copyfileobj(file, copy, PIECE)
    return new != header


def copy_file(source: Path, target: Path) -> None:
    """Copy a file."""
    with open_file(source) as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy, PIECE)


def header_bytes(path: Path) -> bytes:
    """The header of a safetensors file, JSON after its length in 8 bytes."""
    with open_file(path) as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        return file.read(min(length, path.stat().st_size))


def written_bytes(tensor: StoredTensor) -> int:
    """Bytes of a tensor in a safetensors file."""
    return prod(tensor.shape) * tensor.numpy_dtype.itemsize


def converted_header(tensors: Sequence[StoredTensor]) -> bytes:
    """The header of the safetensors file that `convert_weights` writes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + written_bytes(tensor)
        entry = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
        header[tensor.name] = entry
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)


def convert_weights(tensors: Sequence[StoredTensor], target: Path) -> None:
    """Write tensors as a safetensors file, a piece at a time; quantised ones become float32."""
    text = converted_header(tensors)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for rows in tensor.pieces():
                file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)


def with_format(header: bytes) -> bytes:
    """Add `format: pt` to the metadata of a safetensors header (JSON) that name no format.

    Older versions of transformers load no file without a format. Everything else stays as it is,
    byte by byte; spaces at the end align the data to 8 bytes.
    """
    text = header.decode("utf-8")
    metadata = json.loads(text).get("__metadata__")
    if metadata and "format" in metadata:
        return header
    members = _members(text)
    start, end = members.get("__metadata__", (1, 1))
    if metadata:
        start, end, added = start + 1, start + 1, '"format":"pt",'
    elif start < end:  # {} or null
        added = '{"format":"pt"}'
    else:
        added = '"__metadata__":{"format":"pt"}' + ("," if members else "")
    new = text[:start] + added + text[end:]
    whole = new.encode("utf-8")
    return whole + b" " * (-len(whole) % 8)


def _index(model: Model, weights: Mapping[str, Path]) -> str | None:
    """The name of the index that led to the weights; `model.safetensors` has precedence."""
    if not model.path.is_dir():
        return model.path.name if model.path.name.endswith(INDEX) else None
    if "model.safetensors" in weights:
        return None
    paths = model.folder.glob(f"*.safetensors{INDEX}")
    return next((path.name for path in paths), None)  # at most one, or reading had refused it


def _members(text: str) -> dict[str, tuple[int, int]]:
    """The start and the end of the value of each member of a JSON object."""
    decoder, members, at = json.JSONDecoder(), {}, 1

    def skip(at: int) -> int:
        while text[at] in " \t\r\n,:":
            at += 1
        return at

    while text[at := skip(at)] != "}":
        key, at = decoder.raw_decode(text, at)
        start = skip(at)
        _, at = decoder.raw_decode(text, start)
        members[key] = (start, at)
    return members
