"""Tensors written into safetensors files one after the other, in pieces."""

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.model.weight import STORED_DTYPES, count_bad
from refimpl.running.threads import Progress

SHARD = 4_000_000_000  # bytes in one file, unless a single tensor is larger


@dataclass(frozen=True)
class ConvertedTensor:
    """A tensor as it will be written: its name, dtype and shape in the new file.

    `kind` is how the source stores it, such as "Q4_K". `pieces` makes its values in their order, in
    arrays of any shape and dtype.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    pieces: Callable[[], Iterable[Array]]

    @property
    def nbytes(self) -> int:
        """Bytes in the new file."""
        return prod(self.shape) * STORED_DTYPES[self.dtype].itemsize

    def stored(self, piece: Array) -> Array:
        """A piece in its dtype, contiguous, all finite."""
        with np.errstate(all="ignore"):  # also of NaN whose first bit of the fraction is 0
            stored = np.ascontiguousarray(piece, STORED_DTYPES[self.dtype])
            bad, wide = count_bad(stored), count_bad(piece) == 0
        if bad:
            dtype = STORED_DTYPES[self.dtype].name
            raise RefimplError(
                f"{self.name} has {bad} values that are NaN or Inf in {dtype}",
                f"finite weights, in the range of {dtype}",
                "use --dtype float32" if wide else "repair the checkpoint",
            )
        return stored


def write_weights(folder: Path, tensors: Sequence[ConvertedTensor], progress: Progress) -> None:
    """Write `model.safetensors`, or shards with their index, a piece at a time."""
    shards: list[list[ConvertedTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(x.nbytes for x in shards[-1]) + tensor.nbytes > SHARD:
            shards.append([])
        shards[-1].append(tensor)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    total, done = sum(x.nbytes for x in tensors), 0
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            for tensor in shard:
                for piece in map(tensor.stored, tensor.pieces()):
                    file.write(piece.reshape(-1).view(np.uint8).data)
                    done += piece.nbytes
                    progress(done, total)
    if len(shards) > 1:
        of_tensor = {x.name: name for name, shard in zip(names, shards, strict=True) for x in shard}
        index = {"metadata": {"total_size": total}, "weight_map": of_tensor}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), "utf-8")


def _header(tensors: Sequence[ConvertedTensor]) -> bytes:
    """The header of a safetensors file; spaces at its end align the data to 8 bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for x in tensors:
        start, end = end, end + x.nbytes
        header[x.name] = {"dtype": x.dtype, "shape": x.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
