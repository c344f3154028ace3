"""The weights of a graph, in the dtype of the computation, and the file beside the graph."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.weight import Weight
from refimpl.onnx.recording.array import element
from refimpl.storage.file_system import to_disk

ALIGNMENT = 64  # bytes: a cache line


@dataclass(frozen=True)
class GraphWeight:
    """One array: our first name of it (a tied head is the embedding), and its place, in bytes."""

    name: str
    weight: Weight
    dtype: np.dtype[Any]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in the dtype of the computation."""
        return int(np.prod(self.weight.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self) -> Array:
        """Its numbers, contiguous, in its shape; refuses NaN and Inf."""
        return np.ascontiguousarray(self.weight.read(self.dtype))

    def tensor(self, location: str) -> TensorProto:
        """It as a tensor of a graph, with its numbers in a file."""
        kind = element(self.dtype)
        tensor = TensorProto(name=self.name, data_type=kind, dims=self.weight.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": location, "offset": self.offset, "length": self.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def graph_weights(model: Model, dtype: npt.DTypeLike) -> dict[str, GraphWeight]:
    """All weights by our names, one after the other; tied names share an array."""
    arrays: dict[object, GraphWeight] = {}
    by_name, end = {}, 0
    for name, weight in model.weights.items():
        key = weight.stored.name, weight.layout, weight.offset
        if key not in arrays:
            arrays[key] = GraphWeight(name, weight, np.dtype(dtype), end)
            end += -(-arrays[key].nbytes // ALIGNMENT) * ALIGNMENT
        by_name[name] = arrays[key]
    return by_name


def distinct(weights: Mapping[str, GraphWeight]) -> list[GraphWeight]:
    """Every array once, in the order of the data file."""
    return [weight for name, weight in weights.items() if weight.name == name]


def write_data(path: Path, weights: Mapping[str, GraphWeight]) -> None:
    """Write all arrays to a data file, little-endian, one at a time in memory."""
    with path.open("wb") as file:
        for array in distinct(weights):
            values = array.read().reshape(-1)
            file.write(b"\0" * (array.offset - file.tell()))
            little = values.astype(values.dtype.newbyteorder("<"), copy=False)
            file.write(little.view(np.uint8).data)
    to_disk(path)
