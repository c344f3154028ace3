"""The zeros in a graph's weights, counted and compared with those in the model's file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.pruning.inspection import Requested, inspect


@dataclass(frozen=True)
class Zeros:
    """The zeros of the prunable linears, in a graph and in a model's file.

    Args:
        weights: Number of all their weights in the file.
        requested: The request in the model's `pruning.json`; None without one.
        differ: Linears whose zeros are at other places in the graph than in the file.
        unnamed: Linears that have no constant array of our name in the graph.
        named: Number of the others.
    """

    weights: int
    graph: int
    file: int
    requested: Requested | None
    differ: tuple[str, ...]
    unnamed: tuple[str, ...]
    named: int

    @property
    def agree(self) -> bool:
        """Whether every linear has the same zeros in the graph as in the file."""
        return not self.differ and not self.unnamed


class Constants:
    """Arrays that a graph has without being run: initialisers, and nodes that read only those.

    Args:
        proto: The graph; external data need not be loaded.
        folder: The folder of its external data.
    """

    def __init__(self, proto: onnx.ModelProto, folder: Path) -> None:
        self.proto, self.folder = proto, folder
        self.dense = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.sparse = {tensor.values.name: tensor for tensor in proto.graph.sparse_initializer}
        self.makers = {name: node for node in proto.graph.node for name in node.output if name}

    def read(self, name: str) -> Array | None:
        """Compute one array; None if no array has this name, or if it depends on the inputs."""
        if name in self.dense or name in self.sparse:
            return self.stored(name)
        leaves: set[str] = set()
        nodes = list(self._before(name, set(), leaves))
        initializers = leaves & (self.dense.keys() | self.sparse.keys())
        if not nodes or leaves - initializers or any(node.domain for node in nodes):
            return None
        tensors = [numpy_helper.from_array(self.stored(x), x) for x in sorted(initializers)]
        output = helper.make_value_info(name, onnx.TypeProto())
        graph = helper.make_graph(nodes, "constant", [], [output], tensors)
        small = helper.make_model(graph, opset_imports=self.proto.opset_import)
        from onnx.reference import ReferenceEvaluator  # slow to import, and few weights need it

        (value,) = ReferenceEvaluator(small).run([name], {})
        return np.asarray(value)

    def _before(self, name: str, seen: set[str], leaves: set[str]) -> Iterator[NodeProto]:
        """The nodes that compute an array, in order; adds arrays that no node makes to leaves."""
        if name not in self.makers:
            leaves.add(name)
        elif name not in seen:
            node = self.makers[name]
            seen |= set(node.output)
            for before in filter(None, node.input):
                yield from self._before(before, seen, leaves)
            yield node

    def stored(self, name: str) -> Array:
        """An initialiser, with its zeros; indices of a sparse one are linear, or one per axis."""
        if name in self.dense:
            return self._numbers(self.dense[name])
        tensor = self.sparse[name]
        values, indices = self._numbers(tensor.values), self._numbers(tensor.indices)
        filled = np.zeros(tuple(tensor.dims), values.dtype)
        at = np.unravel_index(indices, filled.shape) if indices.ndim == 1 else tuple(indices.T)
        filled[at] = values
        return filled

    def _numbers(self, tensor: TensorProto) -> Array:
        """A dense tensor, read from the file beside the graph if it is there."""
        if tensor.data_location == TensorProto.EXTERNAL:
            loaded = TensorProto()
            loaded.CopyFrom(tensor)
            load_external_data_for_tensor(loaded, str(self.folder))
            tensor = loaded
        return numpy_helper.to_array(tensor)


def count_zeros(model: Model, proto: onnx.ModelProto, folder: Path) -> Zeros:
    """Count the zeros of every prunable linear that has our name in a graph, one linear at a time.

    The folder is that of the graph's external data.
    """
    constants, inspection = Constants(proto, folder), inspect(model)
    zeros, named, differ, unnamed = 0, 0, [], []
    for index, block in enumerate(inspection.blocks):
        for linear in block:
            name = f"blocks.{index}.{linear}.weight"
            weight, value = model.weights[name], constants.read(name)
            if value is None:
                unnamed.append(name)
                continue
            zero, theirs = value == 0, weight.read(weight.stored.numpy_dtype) == 0
            named += 1
            zeros += int(np.count_nonzero(zero))
            if not np.array_equal(zero, theirs):
                differ.append(name)
            weight.stored.file.release()
    weights = sum(linear.weights for linear in inspection.linears)
    in_file = sum(linear.zeros for linear in inspection.linears)
    requested = inspection.requested
    return Zeros(weights, zeros, in_file, requested, tuple(differ), tuple(unnamed), named)
