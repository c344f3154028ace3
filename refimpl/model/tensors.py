"""Tensors in safetensors files, mapped into memory and read one at a time."""

import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from refimpl.errors import RefimplError
from refimpl.model.ops import Array

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class Stored:
    """One tensor of a file.

    Args:
        file: The mapped file.
        name: The tensor's name in it.
        dtype: The file's name of its dtype, such as "BF16".
        shape: Its shape.
        offset: Where its bytes start, counted from the start of the file.
    """

    file: "SafetensorsFile"
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def array(self) -> Array:
        """The tensor, a read-only view of the mapped file."""
        dtype, count = DTYPES[self.dtype], int(np.prod(self.shape))
        if count == 0:
            return np.empty(self.shape, dtype)
        return np.frombuffer(self.file.map, dtype, count, self.offset).reshape(self.shape)


class SafetensorsFile:
    """A safetensors file: its tensors and metadata, with the data mapped, not read.

    Args:
        path: The file.

    Raises:
        RefimplError: No such file, not readable, truncated, overlapping, or not safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="np"):  # the library checks header, offsets and length
                pass
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise RefimplError(
                f"{path}: cannot be read ({error.strerror or error})",
                "a readable safetensors file",
                "check the path and its permissions",
            ) from error
        except (SafetensorError, ValueError) as error:
            raise RefimplError(
                f"{path}: not a whole safetensors file ({error})",
                "a file written by safetensors (its library checks header, offsets and length)",
                "download or save the file again; compare its size with the source",
            ) from error
        self.metadata: Mapping[str, str] = header.pop("__metadata__", {})
        self.tensors = {
            name: Stored(
                self,
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
            )
            for name, entry in header.items()
        }

    def release(self) -> None:
        """Let the system take back the pages read so far; views stay valid and are read again."""
        if hasattr(self.map, "madvise"):  # not on Windows
            self.map.madvise(mmap.MADV_DONTNEED)


def open_files(path: Path) -> tuple[SafetensorsFile, ...]:
    """Find and open the files that hold a model's weights.

    Args:
        path: A safetensors file, an index (`*.safetensors.index.json`), or a folder.

    Returns:
        The files, mapped.

    Raises:
        RefimplError: Nothing there, another format, several candidates, or an index that does not
            match its shards.
    """
    if not path.exists():
        raise RefimplError(
            f"{path}: no such file or folder",
            "a .safetensors file, an index, or a folder that holds one",
            "check the path",
        )
    if path.is_dir():
        indices, files = (
            sorted(path.glob(p)) for p in ("*.safetensors.index.json", "*.safetensors")
        )
        preferred = [f for f in files if f.name == "model.safetensors"]
        found = preferred or indices or files
        if len(found) != 1:
            raise _no_single_file(path, found)
        path = found[0]
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    if path.suffix != ".safetensors":
        raise RefimplError(
            f"{path}: {path.suffix or 'this file'} is not a safetensors file",
            "a .safetensors file, an index, or a folder that holds one",
            WAY_OUT.get(path.suffix, "save the model with save_pretrained(DIR)"),
        )
    return (SafetensorsFile(path),)


_BIN = (
    "convert it where you trust it, since pickles run code (transformers: "
    "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW))"
)
WAY_OUT = {
    ".bin": _BIN,
    ".pt": _BIN,
    ".pth": _BIN,
    ".ckpt": _BIN,
    ".gguf": "de-quantise it (transformers: from_pretrained(DIR, gguf_file=...).save_pretrained(NEW))",
}


def _no_single_file(folder: Path, found: list[Path]) -> RefimplError:
    """Why a folder does not name one model."""
    if found:
        return RefimplError(
            f"{folder}: {len(found)} candidates: {', '.join(f.name for f in found)}",
            "model.safetensors, or one index, or one .safetensors file",
            "name the file itself",
        )
    if (folder / "adapter_config.json").exists():
        return RefimplError(
            f"{folder}: holds an adapter, not a model",
            "a folder with .safetensors weights of a whole model",
            "merge it (peft: merge_and_unload().save_pretrained(DIR))",
        )
    others = [f for f in sorted(folder.iterdir()) if f.suffix in WAY_OUT]
    return RefimplError(
        f"{folder}: no .safetensors file in it" + (f", only {others[0].name}" if others else ""),
        "a folder with .safetensors weights",
        WAY_OUT[others[0].suffix] if others else "check the path",
    )


def _open_shards(index: Path) -> tuple[SafetensorsFile, ...]:
    """The shards an index names, checked against it."""
    try:
        where = json.loads(index.read_text("utf-8"))["weight_map"]
        names = list(dict.fromkeys(where.values()))
        outside = [n for n in names if Path(n).name != n or n in (".", "..")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefimplError(
            f"{index}: not an index of shards ({error})",
            'JSON with a "weight_map" from tensor to file name',
            "download it again",
        ) from error
    if outside:
        raise RefimplError(
            f"{index}: names files outside its folder: {', '.join(outside)}",
            "plain file names",
            "do not use this index; get the model from its source",
        )
    files = tuple(SafetensorsFile(index.parent / n) for n in names)
    problems = [
        f"{name}: in the index under {shard}, not in that file"
        for name, shard in where.items()
        if name not in files[names.index(shard)].tensors
    ] + [
        f"{name}: in {file.path.name}, in the index under {where.get(name, 'nothing')}"
        for file in files
        for name in file.tensors
        if where.get(name) != file.path.name
    ]
    if problems:
        raise RefimplError(
            f"{index}: does not match its shards:\n  " + "\n  ".join(problems),
            "every tensor in the file the index names, and no other",
            "download the index and its shards again",
        )
    return files
