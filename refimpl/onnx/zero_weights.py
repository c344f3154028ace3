"""The zeros in a graph: counted in its own weights, and held against the model's file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor
from onnx.reference import ReferenceEvaluator

from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.pruning.inspection import Requested, inspect


@dataclass(frozen=True)
class Zeros:
    """The zeros of the prunable linears, in a graph and in a model's file.

    Args:
        weights: All their weights in the file.
        graph: Zeros in the graph.
        file: Zeros in the file.
        requested: What was asked for, as the model's `pruning.json` says; None without one.
        differ: Linears with zeros elsewhere in the graph than in the file.
        unnamed: Linears that the graph has no constant array for, under our name.
        named: How many others there are.
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
        """Whether every linear has its zeros where the file has them."""
        return not self.differ and not self.unnamed


class Constants:
    """What a graph can say without being run: initialisers, and what nodes make of them alone.

    Args:
        proto: The graph; external data need not be loaded.
        folder: Where its external data lie.
    """

    def __init__(self, proto: onnx.ModelProto, folder: Path) -> None:
        self.proto, self.folder = proto, folder
        self.dense = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.sparse = {tensor.values.name: tensor for tensor in proto.graph.sparse_initializer}
        self.makers = {name: node for node in proto.graph.node for name in node.output if name}

    def read(self, name: str) -> Array | None:
        """Compute one array; nothing else of the graph is read.

        Args:
            name: Its name in the graph.

        Returns:
            Its numbers; None where there is none of this name, or it depends on the inputs.
        """
        if name in self.dense or name in self.sparse:
            return self.known(name)
        leaves: set[str] = set()
        nodes = list(self._before(name, set(), leaves))
        known = leaves & (self.dense.keys() | self.sparse.keys())
        if not nodes or leaves - known or any(node.domain for node in nodes):
            return None
        tensors = [numpy_helper.from_array(self.known(leaf), leaf) for leaf in sorted(known)]
        output = helper.make_value_info(name, onnx.TypeProto())
        graph = helper.make_graph(nodes, "constant", [], [output], tensors)
        small = helper.make_model(graph, opset_imports=self.proto.opset_import)
        (value,) = ReferenceEvaluator(small).run([name], {})
        return np.asarray(value)

    def _before(self, name: str, seen: set[str], leaves: set[str]) -> Iterator[NodeProto]:
        """The nodes that an array is made by, in their order; what they begin with goes to leaves.

        Args:
            name: Of the array.
            seen: Arrays whose nodes were given.
            leaves: Arrays that no node makes; filled.
        """
        if name not in self.makers:
            leaves.add(name)
        elif name not in seen:
            node = self.makers[name]
            seen |= set(node.output)
            for before in filter(None, node.input):
                yield from self._before(before, seen, leaves)
            yield node

    def known(self, name: str) -> Array:
        """An initialiser, with its zeros.

        Args:
            name: Its name.

        Returns:
            Its numbers.
        """
        if name in self.dense:
            return self._whole(self.dense[name])
        return self._filled(self.sparse[name])

    def _whole(self, tensor: TensorProto) -> Array:
        """A dense tensor, read from the file beside the graph where it lies there."""
        if tensor.data_location == TensorProto.EXTERNAL:
            read = TensorProto()
            read.CopyFrom(tensor)
            load_external_data_for_tensor(read, str(self.folder))
            tensor = read
        return numpy_helper.to_array(tensor)

    def _filled(self, tensor: onnx.SparseTensorProto) -> Array:
        """A sparse tensor with its zeros; indices are linear, or one per axis."""
        values, indices = self._whole(tensor.values), self._whole(tensor.indices)
        filled = np.zeros(tuple(tensor.dims), values.dtype)
        where = np.unravel_index(indices, filled.shape) if indices.ndim == 1 else tuple(indices.T)
        filled[where] = values
        return filled


def count_zeros(model: Model, proto: onnx.ModelProto, folder: Path) -> Zeros:
    """Count the zeros of every prunable linear in a graph, where the graph names it as we do.

    One linear is read at a time.

    Args:
        model: From `read_model`.
        proto: Its graph.
        folder: Where the graph's external data lie.

    Returns:
        The numbers in the graph and in the file, and the linears in which zeros stand elsewhere.

    Raises:
        OSError: External data that cannot be read.

    Source:
        ours; onnx's reference evaluator (a peer) makes what nodes make of a file's tensor.

    Example:
        >>> from refimpl import read_model
        >>> from refimpl.onnx.recording.model_graph import model_graph
        >>> from refimpl.onnx.recording.weight_entries import embedded
        >>> model = read_model("fixtures/llama")
        >>> proto = model_graph(model, "float32", embedded(model, "float32"))
        >>> count_zeros(model, proto, model.folder).weights
        29184
    """
    constants, found = Constants(proto, folder), inspect(model)
    zeros, named, differ, unnamed = 0, 0, [], []
    for index, block in enumerate(found.blocks):
        for linear in block:
            name = f"blocks.{index}.{linear}.weight"
            weight, value = model.weights[name], constants.read(name)
            if value is None:
                unnamed.append(name)
                continue
            zero, theirs = value == 0, weight.read(weight.stored.array.dtype) == 0
            named += 1
            zeros += int(np.count_nonzero(zero))
            if not np.array_equal(zero, theirs):
                differ.append(name)
            weight.stored.file.release()
    total, inside = (sum(getattr(x, key) for x in found.linears) for key in ("weights", "zeros"))
    return Zeros(total, zeros, inside, found.requested, tuple(differ), tuple(unnamed), named)
