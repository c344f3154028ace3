"""GGUF files; the tensors in them are de-quantised row by row when they are read."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np

from refimpl.errors import RefimplError, listed, need, unreadable
from refimpl.loading.gguf.header import TensorEntry, damaged, read_header
from refimpl.model.layout import WHOLE, Layout
from refimpl.model.ops import Array
from refimpl.model.weight import DTYPES, StoredTensor, WeightFile
from refimpl.storage.file_system import open_file

PIECE = 1 << 15  # weights that are de-quantised at once


def _tiled(rows: Array, mixer: Any) -> Array:
    """Value heads by their key head; in the file, one of each key head in turn."""
    start = max(len(rows) - mixer.channels[-1], 0)  # behind queries and keys
    values = rows[start:].reshape(mixer.value_heads // mixer.key_heads, mixer.key_heads, -1)
    return np.concatenate((rows[:start], values.swapaxes(0, 1).reshape(-1)))


# The rows of the file's tensor in transformers' order: [rows] to [rows], of a block with a mixer.
ORDERS: dict[str, Callable[[Array, Any], Array]] = {
    # llama.cpp rotates channels 2i and 2i + 1 together, transformers i and i + h / 2
    "paired": lambda rows, mixer: (
        rows.reshape(-1, mixer.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
    ),
    "tiled": _tiled,
}
# What transformers holds in place of the file's values.
CHANGES: dict[str, Callable[[Array], Array]] = {
    "minus one": lambda stored: stored - 1,
    "log": lambda stored: np.log(-stored.astype(np.float64)).astype(stored.dtype),
}


class GgufFile(WeightFile):
    """A GGUF file: its metadata and its tensors by the file's names, checked when it is opened."""

    def __init__(self, path: Path) -> None:
        try:
            with open_file(path) as file:
                super().__init__(path, file)
                self.metadata, entries = read_header(path, file)
        except OSError as error:
            raise unreadable(path, error, "a readable GGUF file") from error
        self.tensors = {entry.name: self._tensor(entry) for entry in entries}
        in_order = sorted(self.tensors.values(), key=lambda tensor: tensor.offset)
        for tensor, following in pairwise(in_order):
            if following.offset < tensor.offset + tensor.nbytes:
                raise damaged(path, f"{tensor.name} and {following.name} overlap")

    def _tensor(self, entry: TensorEntry) -> "GgufTensor":
        """One tensor, whose bytes are all in the file."""
        if (found := _quantisation(entry.kind)) is None:
            raise RefimplError(
                f"{self.path}: {entry.name} has the type {entry.kind}",
                "a type that the gguf library can de-quantise, such as F16, Q8_0 or Q4_K",
                "install the newest gguf, or get the model in another type",
            )
        kind, block, size = found
        if entry.shape[-1] % block:
            problem = f"rows of {entry.name} ({entry.shape[-1]}) are not whole blocks of {kind}"
            raise damaged(self.path, problem)
        if entry.offset + prod(entry.shape) // block * size > self.size:
            raise damaged(self.path, f"it ends before the end of {entry.name}")
        dtype = kind if kind in DTYPES else "F32"
        return GgufTensor(self, entry.name, dtype, entry.shape, entry.offset, kind, block, size)


@dataclass(frozen=True)
class GgufTensor(StoredTensor):
    """A tensor of a GGUF file as transformers would hold it; `dtype` is that after reading."""

    kind: str = "F32"  # in the file, such as "Q4_K"
    block: int = 1  # weights that are quantised together, in so many bytes
    block_bytes: int = 4
    # In the file: a key of `ORDERS`, "tiled columns", "transposed" (as GPT-2's) or "heads
    # transposed" (each of them)
    arrangement: str = ""
    mixer: Any = None  # of its block, for these
    change: str = ""  # a key of `CHANGES`

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) // self.block * self.block_bytes

    def rows(self, rows: slice | Array) -> Array:
        """Some rows, de-quantised; float32 if they were quantised."""
        if self.arrangement.endswith("transposed") and len(self.shape) > 1:
            heads = 1 if self.arrangement == "transposed" else self.mixer.num_attention_heads
            shape = heads, self.shape[1], self.shape[0] // heads
            return self._in_file(shape, slice(None)).swapaxes(1, 2).reshape(self.shape)[rows]
        if self.arrangement in ORDERS:
            rows = ORDERS[self.arrangement](np.arange(self.shape[0]), self.mixer)[rows]
        stored = self._in_file(self.shape, rows)
        if self.arrangement == "tiled columns":
            stored = stored[:, _tiled(np.arange(self.shape[1]), self.mixer)]
        with np.errstate(all="ignore"):  # infinities are counted by whoever reads
            return CHANGES[self.change](stored) if self.change else stored

    def _in_file(self, shape: tuple[int, ...], rows: slice | Array) -> Array:
        """Rows of the file's tensor; of a vector, its values."""
        if len(shape) == 1:
            return self._in_file((1, *shape), slice(None))[0][rows]
        width = shape[-1] // self.block * self.block_bytes
        inner = *shape[1:-1], width
        stored = self.file.rows(self.offset, prod(inner), shape[0], rows)
        stored = stored.reshape(len(stored), *inner)
        if self.kind in DTYPES:
            return stored.view(DTYPES[self.kind])
        from gguf import GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType[self.kind]
        values = np.empty((*stored.shape[:-1], shape[-1]), np.float32)
        step = max(1, PIECE // prod(shape[1:]))
        with np.errstate(all="ignore"):  # infinities are counted by whoever reads
            for start in range(0, len(stored), step):
                # one long row: the library handles 16 rows at a time, however short
                piece = stored[start : start + step].reshape(1, -1)
                values[start : start + step].reshape(-1)[:] = dequantize(piece, kind)[0]
        return values


@dataclass(frozen=True)
class JoinedTensor(GgufTensor):
    """Tensors of a file that transformers holds as one: all rows, in the order of a layout."""

    parts: tuple[GgufTensor, ...] = ()
    layout: Layout = WHOLE

    @classmethod
    def of(cls, layout: Layout, *parts: GgufTensor) -> Self | None:
        """The tensor of these parts; None if their shapes do not fit together."""
        axis, first = int(layout.stack > 0), parts[0]
        facts = {x.name: getattr(first, x.name) for x in fields(first)}
        others = {(*x.shape[:axis], len(x.shape), *x.shape[axis + 1 :]) for x in parts}
        count = sum(x.shape[axis] for x in parts if len(x.shape) > axis)
        if len(others) > 1 or count != sum(layout.rows):
            return None
        inner = count, *first.shape[axis + 1 :]
        facts["dtype"] = first.dtype if len({part.dtype for part in parts}) == 1 else "F32"
        facts["shape"] = *first.shape[:axis], *(inner[::-1] if layout.transposed else inner)
        return cls(**facts, parts=parts, layout=layout)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return sum(part.nbytes for part in self.parts)

    def rows(self, rows: slice | Array) -> Array:
        """Some experts, or rows of a tensor that is read as a whole."""
        layout, axis = self.layout, int(self.layout.stack > 0)
        values = [part.rows(rows if axis else slice(None)) for part in self.parts]
        whole = np.concatenate([x.astype(self.numpy_dtype, copy=False) for x in values], axis)
        before, after = whole.shape[:axis], whole.shape[axis + 1 :]
        runs = [
            x.reshape(*before, layout.groups, -1, *after)
            for x in np.split(whole, np.cumsum(layout.rows)[:-1], axis)
        ]
        whole = np.concatenate(runs, axis + 1).reshape(whole.shape)
        whole = whole.swapaxes(-1, -2) if layout.transposed else whole
        return whole if axis else whole[rows]


@dataclass(frozen=True)
class LearnedNumber(GgufTensor):
    """A number that a file has in its metadata, and transformers in a tensor."""

    number: float = 0.0

    def rows(self, rows: slice | Array) -> Array:
        """The number, [1]."""
        return np.array([self.number], np.float32)[rows]


def open_shards(path: Path) -> tuple[GgufFile, ...]:
    """A GGUF file, or all files of a split model by its first."""
    first = GgufFile(path)
    count = first.metadata.get("split.count", 1)
    if count in (0, 1):
        return (first,)
    match = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", path.name)
    if match is None or int(match[2]) != count or first.metadata.get("split.no") != 0:
        raise RefimplError(
            f"{path} is one of {count} files of a split model",
            "the first of them, whose name ends in -00001-of- and their number",
            "pass the first file, with all others in its folder",
        )
    paths = [path.with_name(f"{match[1]}-{i + 1:05}-of-{match[2]}.gguf") for i in range(count)]
    if absent := [other.name for other in paths if not other.exists()]:
        raise RefimplError(
            f"{path}: {len(absent)} of its {count} files are missing: {listed(absent)}",
            "all files of a split model in one folder",
            "download the missing files",
        )
    files = (first, *(GgufFile(other) for other in paths[1:]))
    for i, file in enumerate(files):
        if (file.metadata.get("split.no"), file.metadata.get("split.count")) != (i, count):
            raise damaged(file.path, f"it is not file {i} of {count} by its own header")
    total = sum(len(file.tensors) for file in files)
    names = {name for file in files for name in file.tensors}
    if len(names) < total or first.metadata.get("split.tensors.count", total) != total:
        raise damaged(path, f"its {count} files hold {total} tensors of {len(names)} names")
    return files


@lru_cache
def _quantisation(number: int) -> tuple[str, int, int] | None:
    """Name, weights per block and bytes per block of a type; None if nobody can read it."""
    need("gguf", "gguf")
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    try:
        kind = GGMLQuantizationType(number)
        block, size = GGML_QUANT_SIZES[kind]
        if kind.name not in DTYPES:
            dequantize(np.zeros((1, size), np.uint8), kind)
    except (ValueError, NotImplementedError):
        return None
    return kind.name, block, size
