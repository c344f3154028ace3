"""The weights of a graph: copies in it or in a data file, or the model's own files by reference."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from refimpl.model.layout import cut
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.weight import StoredTensor, Weight
from refimpl.onnx.recording.array import Recorded, element
from refimpl.onnx.recording.graph import Graph
from refimpl.storage.file_system import to_disk

ALIGNMENT = 64  # bytes: a cache line
LOOKED_UP = ("embed.weight", "pos_embed.weight")  # rows are taken first, and only those are cast

Enter = Callable[[Graph, str], Recorded]
"""Brings a weight into a graph by our name; the embeddings may come as stored."""


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


def check_finite(weights: Mapping[str, GraphWeight]) -> None:
    """Refuse NaN and Inf in weights that are not written, as stored or in the graph's dtype."""
    for array in distinct(weights):
        array.weight.check(array.dtype)


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


def referenced(model: Model, dtype: npt.DTypeLike) -> Enter:
    """Let weights enter from the model's own files, by byte offset, without a copy.

    A tensor that is used as stored has our name. Any other enters once, under the file's name, and
    nodes make of it what the model reads: `Cast` to the dtype of the computation, `Transpose`,
    `Slice`, `Gather` and `Reshape` for weights that share a tensor, `Add` for an offset; the last
    node has our name.
    """
    entered: dict[str, Recorded] = {}

    def stored(graph: Graph, tensor: StoredTensor, name: str = "") -> Recorded:
        """A tensor of the file, by default under the file's name, made distinct from our names."""
        if tensor.name not in entered:
            theirs = f"{tensor.name}.stored" if tensor.name in model.weights else tensor.name
            file, kind = tensor.file.path.name, element(tensor.numpy_dtype)
            place = (file, tensor.offset, tensor.nbytes)
            entered[tensor.name] = graph.initializer(
                _outside(name or theirs, kind, tensor.shape, *place)
            )
        return entered[tensor.name]

    def shared(graph: Graph, tensor: StoredTensor) -> Recorded:
        """All of a tensor in the computation's dtype: runtimes support fewer cuts in 16 bits."""
        if tensor.numpy_dtype == dtype:
            return stored(graph, tensor)
        name = f"{tensor.name}.{np.dtype(dtype)}"
        if name not in entered:
            entered[name] = graph.named(stored(graph, tensor).astype(dtype), name)
        return entered[name]

    def enter(graph: Graph, name: str) -> Recorded:
        weight, tensor = model.weights[name], model.weights[name].stored
        alone = weight.layout.alone
        if name in LOOKED_UP or (alone and tensor.numpy_dtype == dtype and not weight.offset):
            return stored(graph, tensor, name)
        value: Any = stored(graph, tensor).astype(dtype) if alone else shared(graph, tensor)
        value = cut(value, weight.layout)
        return graph.named(value + np.array(weight.offset, dtype) if weight.offset else value, name)

    return enter


def _outside(
    name: str, kind: int, shape: tuple[int, ...], location: str, offset: int, length: int
) -> TensorProto:
    """Describe a tensor that is in a file beside the graph; kind is ONNX's number for its dtype."""
    tensor = TensorProto(name=name, data_type=kind, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _copy(graph: Graph, array: GraphWeight, location: str | None) -> Recorded:
    """Add one array as a copy."""
    kind = element(array.dtype)
    if location is not None:
        place = location, array.offset, array.nbytes
        return graph.initializer(_outside(array.name, kind, array.shape, *place))
    tensor = TensorProto(name=array.name, data_type=kind, dims=array.shape)
    tensor.raw_data = array.stored().tobytes()
    return graph.initializer(tensor)
