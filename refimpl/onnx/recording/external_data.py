"""The arrays that a graph carries along: which, how large, and in a file beside it where."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.weight import Weight

ALIGNMENT = 64  # bytes: a cache line
INDEX_BYTES = np.dtype(np.int64).itemsize


@dataclass(frozen=True)
class Piece:
    """One array that is written, in the dtype of the computation.

    Args:
        name: Ours, of the first weight that it holds (a tied head is the embedding).
        weight: What it holds.
        shape: Its shape.
        dtype: Its dtype.
        nonzero: How many of its numbers are not zero; all, where that was not counted.
        sparse: Whether only those are written, with their indices.
        offset: Where it starts in the data file, in bytes.
    """

    name: str
    weight: Weight
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nonzero: int
    sparse: bool = False
    offset: int = 0

    @property
    def dense_bytes(self) -> int:
        """Size with its zeros."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def sparse_bytes(self) -> int:
        """Size without its zeros, and with an index for each of the others."""
        return self.nonzero * (self.dtype.itemsize + INDEX_BYTES)

    @property
    def index_bytes(self) -> int:
        """Size of its indices, which are always in the graph itself."""
        return self.nonzero * INDEX_BYTES if self.sparse else 0

    @property
    def value_bytes(self) -> int:
        """Size of its numbers as written."""
        return self.nonzero * self.dtype.itemsize if self.sparse else self.dense_bytes

    def read(self) -> tuple[Array, Array | None]:
        """Read it.

        Returns:
            Its numbers, in row-major order and one after the other, and where they stand in that
            order; None where it is dense.

        Raises:
            RefimplError: NaN or Inf among them.
        """
        values = np.ascontiguousarray(self.weight.read(self.dtype)).reshape(-1)
        if not self.sparse:
            return values, None
        indices = np.flatnonzero(values)
        return values[indices], indices


def pieces(model: Model, dtype: npt.DTypeLike, sparse: bool = False) -> dict[str, Piece]:
    """Find what is written of a model, and where: every weight once, one after the other.

    An array is sparse where that is smaller: ``nonzero (item + 8) < size item`` bytes, which is
    from 66.7 % zeros in float32 and from 50 % in float64.

    Args:
        model: From `read_model`.
        dtype: Dtype of the computation.
        sparse: Whether arrays may be sparse; all weights are read to see.

    Returns:
        By our names; names of the same weight have the same piece.

    Raises:
        RefimplError: NaN or Inf among the weights, where they are read.

    Source:
        ours; the format: ONNX's SparseTensorProto, with linear indices.

    Example:
        >>> from refimpl import read_model
        >>> found = pieces(read_model("fixtures/gemma2"), np.float32)
        >>> found["lm_head.weight"] is found["embed.weight"]
        True
    """
    first: dict[object, Piece] = {}
    found, end = {}, 0
    for name, weight in model.weights.items():
        key = weight.stored.name, weight.layout, weight.offset
        if key not in first:
            shape = _shape(weight)
            piece = Piece(name, weight, shape, np.dtype(dtype), int(np.prod(shape, dtype=np.int64)))
            if sparse:
                piece = replace(piece, nonzero=int(np.count_nonzero(weight.read(dtype))))
                piece = replace(piece, sparse=piece.sparse_bytes < piece.dense_bytes)
                weight.stored.file.release()
            first[key] = replace(piece, offset=end)
            end += -(-piece.value_bytes // ALIGNMENT) * ALIGNMENT
        found[name] = first[key]
    return found


def distinct(found: Mapping[str, Piece]) -> list[Piece]:
    """Every piece once, in the order of the file.

    Args:
        found: From `pieces`.

    Returns:
        The pieces.
    """
    return [piece for name, piece in found.items() if piece.name == name]


def check_finite(found: Mapping[str, Piece]) -> None:
    """Look through weights that are not written.

    Args:
        found: From `pieces`.

    Raises:
        RefimplError: NaN or Inf among them, as stored or in the dtype of the computation.

    Source:
        ours.
    """
    for piece in distinct(found):
        piece.weight.check(piece.dtype)


def write_data(path: Path, found: Mapping[str, Piece]) -> int:
    """Write the numbers of all pieces, one at a time in memory.

    Args:
        path: The file.
        found: From `pieces`.

    Returns:
        Bytes written.

    Raises:
        RefimplError: NaN or Inf among the weights.
        OSError: A file that cannot be written.
    """
    with path.open("wb") as file:
        for piece in distinct(found):
            _write(file, piece)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _shape(weight: Weight) -> tuple[int, ...]:
    """Shape of a weight, [out, in] or [out], without a look at its numbers."""
    stored, layout = weight.stored.shape, weight.layout
    whole = stored[::-1] if layout.transposed else stored
    return (layout.rows[layout.index], *whole[1:]) if len(layout.rows) > 1 else whole


def _write(file: BinaryIO, piece: Piece) -> None:
    """Write one piece where it belongs."""
    values, _ = piece.read()
    file.write(b"\0" * (piece.offset - file.tell()))
    file.write(values.astype(values.dtype.newbyteorder("<"), copy=False).view(np.uint8).data)
    piece.weight.stored.file.release()
