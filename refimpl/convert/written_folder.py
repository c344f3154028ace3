"""Tensors written into a safetensors file one after the other, in pieces."""

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


def write_weights(path: Path, tensors: Sequence[ConvertedTensor], progress: Progress) -> None:
    """Write a safetensors file, a piece at a time; spaces align its data to 8 bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for x in tensors:
        start, end = end, end + x.nbytes
        header[x.name] = {"dtype": x.dtype, "shape": x.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    with path.open("wb") as file, np.errstate(all="ignore"):  # what overflows is counted
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for piece in tensor.pieces():
                stored = np.ascontiguousarray(piece, STORED_DTYPES[tensor.dtype])
                if bad := count_bad(stored):
                    raise RefimplError(
                        f"{tensor.name} has {bad} values that are NaN or Inf in {stored.dtype}",
                        f"finite weights, in the range of {stored.dtype}",
                        "use --dtype float32, or repair the checkpoint",
                    )
                file.write(stored.reshape(-1).view(np.uint8).data)
                done += stored.nbytes
                progress(done, end)
