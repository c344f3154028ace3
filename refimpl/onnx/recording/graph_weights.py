"""The weights of a graph: copies in it or in a data file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.weight import Weight
from refimpl.onnx.recording.array import Recorded, element
from refimpl.onnx.recording.graph import Graph
from refimpl.storage.file_system import to_disk

ALIGNMENT = 64  # bytes: a cache line

Enter = Callable[[Graph, str], Recorded]
"""Brings a weight into a graph by our name."""


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

    def stored(self) -> Array:
        """The same as files hold them: little-endian."""
        values = self.read()
        return values.astype(values.dtype.newbyteorder("<"), copy=False)


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


def write_data(path: Path, weights: Mapping[str, GraphWeight]) -> None:
    """Write the numbers of all arrays to a data file, one array at a time in memory."""
    with path.open("wb") as file:
        for array in distinct(weights):
            values = array.stored()
            file.write(b"\0" * (array.offset - file.tell()))
            file.write(values.view(np.uint8).data)
    to_disk(path)


def copied(weights: Mapping[str, GraphWeight], location: str | None) -> Enter:
    """Let weights enter as copies, each array once: in the graph, or in a data file beside it."""
    entered: dict[str, Recorded] = {}

    def enter(graph: Graph, name: str) -> Recorded:
        array = weights[name]
        if array.name not in entered:
            entered[array.name] = _copy(graph, array, location)
        return entered[array.name]

    return enter


def _copy(graph: Graph, array: GraphWeight, location: str | None) -> Recorded:
    """Add one array as a copy."""
    tensor = TensorProto(name=array.name, data_type=element(array.dtype), dims=array.shape)
    if location is None:
        tensor.raw_data = array.stored().tobytes()
    else:
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": location, "offset": array.offset, "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
    return graph.initializer(tensor)
