"""How weights enter a graph: copied into it or beside it, or left where they are."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import SparseTensorProto, TensorProto

from refimpl.model.layout import cut
from refimpl.model.model import Model
from refimpl.model.weight import StoredTensor
from refimpl.onnx.recording.array import Recorded, element
from refimpl.onnx.recording.external_data import Piece, pieces
from refimpl.onnx.recording.graph import Graph

Enter = Callable[[Graph, str], Recorded]
"""Brings a weight into a graph by our name; the embeddings may come as stored."""

LOOKED_UP = ("embed.weight", "pos_embed.weight")  # rows are taken first, and only those are cast


def copied(found: Mapping[str, Piece], location: str | None) -> Enter:
    """Let weights enter as copies, in the dtype of the computation.

    Args:
        found: From `data.pieces`.
        location: Name of the data file beside the graph; None to have them in the graph itself.

    Returns:
        A function that takes a graph and our name of a weight, and returns the array.
    """
    entered: dict[str, Recorded] = {}

    def enter(graph: Graph, name: str) -> Recorded:
        piece = found[name]
        if piece.name not in entered:
            entered[piece.name] = _copy(graph, piece, location)
        return entered[piece.name]

    return enter


def embedded(model: Model, dtype: npt.DTypeLike) -> Enter:
    """Let weights enter as copies in the graph itself, dense.

    Args:
        model: From `read_model`.
        dtype: Dtype of the computation.

    Returns:
        As `copied`.
    """
    return copied(pieces(model, dtype), None)


def declared(found: Mapping[str, Piece]) -> Enter:
    """Let weights enter as inputs of the graph, so that it has their shapes and not their numbers.

    Args:
        found: From `data.pieces`.

    Returns:
        As `copied`.
    """
    entered: dict[str, Recorded] = {}

    def enter(graph: Graph, name: str) -> Recorded:
        piece = found[name]
        if piece.name not in entered:
            entered[piece.name] = graph.input(piece.name, piece.dtype, piece.shape)
        return entered[piece.name]

    return enter


def referenced(model: Model, dtype: npt.DTypeLike) -> Enter:
    """Let weights enter from the model's own files, by byte offset, without a copy.

    A tensor that is used as it lies there has our name. Any other enters once, under the file's
    name, and nodes make of it what the model reads: `Cast` to the dtype of the computation,
    `Transpose`, `Slice`, `Gather` and `Reshape` for weights that share a tensor, `Add` for an
    offset; the last one has our name.

    Args:
        model: From `read_model`; the graph will lie in the folder of its files.
        dtype: Dtype of the computation.

    Returns:
        As `copied`.
    """
    entered: dict[str, Recorded] = {}

    def stored(graph: Graph, tensor: StoredTensor, name: str = "") -> Recorded:
        """A tensor of the file, under a name; by default the file's, where that is not ours too."""
        if tensor.name not in entered:
            theirs = f"{tensor.name}.stored" if tensor.name in model.weights else tensor.name
            entered[tensor.name] = graph.initializer(_in_file(tensor, name or theirs))
        return entered[tensor.name]

    def shared(graph: Graph, tensor: StoredTensor) -> Recorded:
        """All of a tensor in the computation's dtype: runtimes cut less of what has 16 bits."""
        if tensor.array.dtype == dtype:
            return stored(graph, tensor)
        name = f"{tensor.name}.{np.dtype(dtype)}"
        if name not in entered:
            entered[name] = graph.named(stored(graph, tensor).astype(dtype), name)
        return entered[name]

    def enter(graph: Graph, name: str) -> Recorded:
        weight, tensor = model.weights[name], model.weights[name].stored
        alone = not weight.layout.transposed and len(weight.layout.rows) < 2
        if name in LOOKED_UP or (alone and tensor.array.dtype == dtype and not weight.offset):
            return stored(graph, tensor, name)
        value: Any = stored(graph, tensor).astype(dtype) if alone else shared(graph, tensor)
        value = cut(value, weight.layout)
        return graph.named(value + np.array(weight.offset, dtype) if weight.offset else value, name)

    return enter


def outside(
    name: str, kind: int, shape: tuple[int, ...], location: str, offset: int, length: int
) -> TensorProto:
    """Describe a tensor that lies in a file beside the graph.

    Args:
        name: Its name.
        kind: ONNX's number for its dtype.
        shape: Its shape.
        location: Name of the file.
        offset: Where it starts, in bytes.
        length: Its size, in bytes.

    Returns:
        The description.
    """
    tensor = TensorProto(name=name, data_type=kind, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _in_file(tensor: StoredTensor, name: str) -> TensorProto:
    """Describe a tensor of a model's file, under a name."""
    file, kind, size = tensor.file.path.name, element(tensor.array.dtype), tensor.array.nbytes
    return outside(name, kind, tensor.shape, file, tensor.offset, size)


def _copy(graph: Graph, piece: Piece, location: str | None) -> Recorded:
    """Bring one piece into a graph."""
    values = indices = None
    if location is None or piece.sparse:
        values, indices = piece.read()
    shape = (piece.nonzero,) if piece.sparse else piece.shape
    kind = element(piece.dtype)
    if location is None and values is not None:
        tensor = TensorProto(name=piece.name, data_type=kind, dims=shape)
        tensor.raw_data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    else:
        size = piece.value_bytes
        tensor = outside(piece.name, kind, shape, location or "", piece.offset, size)
    if indices is None:
        return graph.initializer(tensor)
    where = TensorProto(name=f"{piece.name}.indices", data_type=TensorProto.INT64)
    where.dims.append(piece.nonzero)
    where.raw_data = indices.astype("<i8").tobytes()
    sparse = SparseTensorProto(values=tensor, indices=where, dims=piece.shape)
    return graph.sparse_initializer(sparse)
