"""The weights that a graph carries: their arrays, sizes, and places in a data file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.weight import Weight
from refimpl.storage.file_system import to_disk

ALIGNMENT = 64  # bytes: a cache line


@dataclass(frozen=True)
class GraphWeight:
    """One array of weights, in the dtype of the computation.

    Args:
        name: Our name of the first weight that it holds (a tied head is the embedding).
        offset: Where it starts in the data file, in bytes.
    """

    name: str
    weight: Weight
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Size in the dtype of the computation."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self) -> Array:
        """Its numbers in row-major order, 1-D; refuses NaN and Inf."""
        return np.ascontiguousarray(self.weight.read(self.dtype)).reshape(-1)


def graph_weights(model: Model, dtype: npt.DTypeLike) -> dict[str, GraphWeight]:
    """All weights by our names, one after the other; tied names share an array."""
    arrays: dict[object, GraphWeight] = {}
    by_name, end = {}, 0
    for name, weight in model.weights.items():
        key = weight.stored.name, weight.layout, weight.offset
        if key not in arrays:
            arrays[key] = GraphWeight(name, weight, weight.shape, np.dtype(dtype), end)
            end += -(-arrays[key].nbytes // ALIGNMENT) * ALIGNMENT
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
            values = array.read()
            file.write(b"\0" * (array.offset - file.tell()))
            little = values.astype(values.dtype.newbyteorder("<"), copy=False)
            file.write(little.view(np.uint8).data)
    to_disk(path)
