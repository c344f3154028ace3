"""Tensors written into safetensors files one after the other, in pieces."""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.model.weight import DTYPES, count_bad
from refimpl.running.threads import Progress

SHARD = 4_000_000_000  # bytes in one file, unless a single tensor is larger


@dataclass(frozen=True)
class ConvertedTensor:
    """A tensor as it will be written, made when its pieces are asked for.

    Args:
        name, dtype, shape: In the new file.
        kind: How the source stores it, such as "Q4_K".
        pieces: Makes its values in order, in arrays of any shape and dtype.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    pieces: Callable[[], Iterable[Array]]

    @property
    def nbytes(self) -> int:
        """Bytes in the new file."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def contents(self, source: Path) -> Iterator[Array]:
        """Its values in its dtype, contiguous, all finite."""
        for piece in self.pieces():
            with np.errstate(all="ignore"):
                cast = np.ascontiguousarray(piece, DTYPES[self.dtype])
            if bad := count_bad(cast):
                tensor, name = f"{source}: {self.name}", DTYPES[self.dtype].name
                wide = count_bad(piece) == 0
                raise RefimplError(
                    f"{tensor} has {bad} values that {name} cannot hold"
                    if wide
                    else f"{tensor} has {bad} NaN or Inf among its values",
                    f"values within the range of {name}" if wide else "finite weights",
                    "use --dtype float32" if wide else "repair or replace the checkpoint",
                )
            yield cast


def write_weights(
    folder: Path, tensors: Sequence[ConvertedTensor], source: Path, progress: Progress
) -> None:
    """Write `model.safetensors`, or shards with their index, a piece at a time."""
    shards: list[list[ConvertedTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(x.nbytes for x in shards[-1]) + tensor.nbytes > SHARD:
            shards.append([])
        shards[-1].append(tensor)
    names = ["model.safetensors"]
    if (count := len(shards)) > 1:
        names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    total, done = sum(x.nbytes for x in tensors), 0
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            for tensor in shard:
                for piece in tensor.contents(source):
                    file.write(piece.reshape(-1).view(np.uint8).data)
                    done += piece.nbytes
                    progress(done, total)
    if count > 1:
        of_tensor = {x.name: name for name, shard in zip(names, shards, strict=True) for x in shard}
        index = {"metadata": {"total_size": total}, "weight_map": of_tensor}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), "utf-8")


def _header(tensors: Sequence[ConvertedTensor]) -> bytes:
    """The header of a safetensors file; spaces at its end align the data to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        entry = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
        header[tensor.name] = entry
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
