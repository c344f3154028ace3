"""Record NumPy code as an ONNX graph, by running it on arrays that record; the graph's weights."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.weight import Weight
from refimpl.onnx.recording.array import Recorded, element
from refimpl.running.file_system import to_disk

DEFAULT_OPSET = 21
DOMAIN = "refimpl"  # of the model's own functions
WHOLE_FUNCTION = ("input", "node", "output")
Kinds = dict[str, onnx.TypeProto]  # of the outputs of a function, by name
Body = Callable[["Graph", dict[str, Any]], Mapping[str, Any]]


class Graph:
    """Nodes, constants, inputs and outputs as recorded; the body of a function has a caller."""

    def __init__(
        self, opset: int = DEFAULT_OPSET, caller: "Graph | None" = None
    ) -> None:
        self.opset, self.caller = opset, caller
        self.imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.constants: dict[Any, Recorded] = {}
        self.fresh: dict[
            str, onnx.NodeProto
        ] = {}  # makers of arrays neither named nor read so far
        self.retired: set[str] = set()  # names that no later node may read
        self.functions: dict[str, onnx.FunctionProto] = (
            caller.functions if caller else {}
        )
        self.calls: dict[Any, tuple[str, Kinds]] = caller.calls if caller else {}

    def input(
        self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]
    ) -> Recorded:
        """Declare an input; the shape has a size or a name per axis."""
        self.inputs.append(helper.make_tensor_value_info(name, element(dtype), shape))
        return Recorded(self, name, self.inputs[-1].type)

    def constant(self, value: npt.ArrayLike, name: str = "") -> Recorded:
        """Add an array to the graph; equal arrays without a name are stored once."""
        array = np.asarray(value)
        key = name or (array.dtype, array.shape, array.tobytes())
        if key not in self.constants:
            tensor = numpy_helper.from_array(
                array, name or f"constant_{len(self.constants)}"
            )
            self.constants[key] = self.initializer(tensor)
        return self.constants[key]

    def initializer(self, tensor: onnx.TensorProto) -> Recorded:
        """Add a named tensor, whose numbers may be in a file beside the graph."""
        if self.caller:  # functions have no initialisers
            self.nodes.append(
                helper.make_node("Constant", [], [tensor.name], value=tensor)
            )
        else:
            self.initializers.append(tensor)
        kind = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        inside = tensor.data_location != onnx.TensorProto.EXTERNAL
        return Recorded(self, tensor.name, kind, tensor if inside else None)

    def add(
        self, op: str, *operands: Any, axes: Sequence[int | str] = (), **attributes: Any
    ) -> Any:
        """Add a node, with the axes of its output if ONNX cannot infer them."""
        inputs = [x if isinstance(x, Recorded) else self.constant(x) for x in operands]
        self._read(op, inputs)
        name = f"{op}_{len(self.nodes)}"
        node = helper.make_node(
            op, [x.name for x in inputs], [name], name, **attributes
        )
        schema, kinds = (
            onnx.defs.get_schema(op, self.opset),
            {x.name: x.kind for x in inputs},
        )
        sizes = {
            x.name: x.value
            for x in inputs
            if x.value is not None and x.dtype == np.int64
        }
        kind = shape_inference.infer_node_outputs(
            schema, node, kinds, sizes, opset_imports=self.imports
        )[name]
        if axes:
            kind = helper.make_tensor_type_proto(kind.tensor_type.elem_type, axes)
        if not all(dim.WhichOneof("value") for dim in kind.tensor_type.shape.dim):
            raise TypeError(
                f"{op} of shapes {[x.shape for x in inputs]}: an axis is lost"
            )
        self.nodes.append(node)
        self.fresh[name] = node
        return Recorded(self, name, kind)

    def call(
        self,
        function: str,
        body: Body,
        inputs: Mapping[str, Recorded],
        name: str,
        variant: Hashable = None,
    ) -> dict[str, Recorded]:
        """Call a function of the model, recorded once for each variant and kind of inputs."""
        self._read(function, list(inputs.values()))
        key = (
            function,
            variant,
            *((x, y.kind.SerializeToString()) for x, y in inputs.items()),
        )
        if key not in self.calls:
            inner = Graph(self.opset, self)
            parameters = {x: Recorded(inner, x, y.kind) for x, y in inputs.items()}
            results = {x: inner.named(y, x) for x, y in body(inner, parameters).items()}
            recorded = helper.make_function(
                DOMAIN, function, list(inputs), list(results), inner.nodes, self.imports
            )
            for number in count(2):
                first = self.functions.setdefault(recorded.name, recorded)
                if all(
                    getattr(first, x) == getattr(recorded, x) for x in WHOLE_FUNCTION
                ):
                    break
                recorded.name = f"{function}_{number}"
            kinds = {x: y.kind for x, y in results.items()}
            self.calls[key] = recorded.name, kinds
        called, kinds = self.calls[key]
        outputs = [f"{name}.{x}" for x in kinds]
        names = [x.name for x in inputs.values()]
        self.nodes.append(helper.make_node(called, names, outputs, name, domain=DOMAIN))
        return {x: Recorded(self, f"{name}.{x}", kind) for x, kind in kinds.items()}

    def named(self, value: Recorded, name: str) -> Recorded:
        """Rename an array, or copy it if its old name is in use; use the result in its place."""
        if value.name == name:
            return value
        if value.name not in self.fresh:
            value = self.add("Identity", value)
        node = self.fresh.pop(value.name)
        node.name = node.output[0] = name
        self.retired.add(value.name)
        return Recorded(self, name, value.kind, value.value)

    def labelled(self, value: Recorded, name: str) -> Recorded:
        """Rename an array if that needs no node, for readers of the graph; use the result."""
        return self.named(value, name) if value.name in self.fresh else value

    def output(self, name: str, value: Recorded) -> Recorded:
        """Make an array an output under a name; use the result in its place."""
        value = self.named(value, name)
        self.outputs.append(helper.make_value_info(name, value.kind))
        return value

    def model(self, name: str = "recorded", **facts: Any) -> onnx.ModelProto:
        """The recorded graph as a model, not checked."""
        graph = helper.make_graph(
            self.nodes, name, self.inputs, self.outputs, self.initializers
        )
        return helper.make_model(
            graph,
            opset_imports=self.imports,
            functions=list(self.functions.values()),
            ir_version=helper.find_min_ir_version_for(self.imports[:1]),
            **facts,
        )

    def _read(self, op: str, values: Sequence[Recorded]) -> None:
        """Note that arrays are read, and refuse those that must not be."""
        if stale := self.retired.intersection(x.name for x in values):
            raise TypeError(f"{op} reads an array that was overwritten: {stale}")
        if foreign := [x.name for x in values if x.graph is not self]:
            raise TypeError(f"{op} reads arrays of another graph: {foreign}")
        for value in values:
            self.fresh.pop(value.name, None)


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
            file.write(b"\0" * (array.offset - file.tell()))
            little = array.read().astype(array.dtype.newbyteorder("<"), copy=False)
            file.write(little.reshape(-1).view(np.uint8).data)
    to_disk(path)
