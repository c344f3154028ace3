"""The weights that a graph carries: their arrays, sizes, and places in a data file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.weight import Weight
from refimpl.storage.file_system import to_disk

ALIGNMENT = 64  # bytes: a cache line
INDEX_BYTES = np.dtype(np.int64).itemsize


@dataclass(frozen=True)
class GraphWeight:
    """One array of weights, in the dtype of the computation.

    Args:
        name: Our name of the first weight that it holds (a tied head is the embedding).
        nonzero: Number of its numbers that are not zero; all if they were not counted.
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
        """Its numbers in row-major order, 1-D, and if sparse their indices; refuses NaN and Inf."""
        values = np.ascontiguousarray(self.weight.read(self.dtype)).reshape(-1)
        if not self.sparse:
            return values, None
        indices = np.flatnonzero(values)
        return values[indices], indices


def graph_weights(
    model: Model, dtype: npt.DTypeLike, sparse: bool = False
) -> dict[str, GraphWeight]:
    """All weights by our names, each array once (tied names share one), placed one after the other.

    If arrays may be sparse, every weight is read, and an array is sparse if that is smaller:
    ``nonzero (item + 8) < size item`` bytes: from 66.7 % zeros in float32, from 50 % in float64.
    """
    arrays: dict[object, GraphWeight] = {}
    by_name, end = {}, 0
    for name, weight in model.weights.items():
        key = weight.stored.name, weight.layout, weight.offset
        if key not in arrays:
            shape = weight.shape
            size = int(np.prod(shape, dtype=np.int64))
            array = GraphWeight(name, weight, shape, np.dtype(dtype), size, offset=end)
            if sparse:
                array = replace(array, nonzero=int(np.count_nonzero(weight.read(dtype))))
                array = replace(array, sparse=array.sparse_bytes < array.dense_bytes)
                weight.stored.file.release()
            arrays[key] = array
            end += -(-array.value_bytes // ALIGNMENT) * ALIGNMENT
        by_name[name] = arrays[key]
    return by_name


def distinct(weights: Mapping[str, GraphWeight]) -> list[GraphWeight]:
    """Every array once, in the order of the data file."""
    return [weight for name, weight in weights.items() if weight.name == name]


def check_finite(weights: Mapping[str, GraphWeight]) -> None:
    """Refuse NaN and Inf in weights that are not written, as stored or in the graph's dtype."""
    for array in distinct(weights):
        array.weight.check(array.dtype)


def write_data(path: Path, weights: Mapping[str, GraphWeight]) -> None:
    """Write the numbers of all arrays to a data file, one array at a time in memory."""
    with path.open("wb") as file:
        for array in distinct(weights):
            values, _ = array.read()
            file.write(b"\0" * (array.offset - file.tell()))
            little = values.astype(values.dtype.newbyteorder("<"), copy=False)
            file.write(little.view(np.uint8).data)
            array.weight.stored.file.release()
    to_disk(path)
