"""How weights enter a graph: as copies, or by reference to the model's own files."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from refimpl.model.layout import cut
from refimpl.model.model import Model
from refimpl.model.weight import StoredTensor
from refimpl.onnx.recording.array import Recorded, element
from refimpl.onnx.recording.graph import Graph
from refimpl.onnx.recording.graph_weights import GraphWeight, graph_weights

Enter = Callable[[Graph, str], Recorded]
"""Brings a weight into a graph by our name; the embeddings may come as stored."""

LOOKED_UP = ("embed.weight", "pos_embed.weight")  # rows are taken first, and only those are cast


def copied(weights: Mapping[str, GraphWeight], location: str | None) -> Enter:
    """Let weights enter as copies, each array once: in the graph, or in a data file beside it."""
    entered: dict[str, Recorded] = {}

    def enter(graph: Graph, name: str) -> Recorded:
        array = weights[name]
        if array.name not in entered:
            entered[array.name] = _copy(graph, array, location)
        return entered[array.name]

    return enter


def embedded(model: Model, dtype: npt.DTypeLike) -> Enter:
    """Let weights enter as copies in the graph itself."""
    return copied(graph_weights(model, dtype), None)


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
    values = array.read()
    tensor = TensorProto(name=array.name, data_type=kind, dims=array.shape)
    tensor.raw_data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return graph.initializer(tensor)
