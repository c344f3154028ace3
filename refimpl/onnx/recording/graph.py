"""Record NumPy code as an ONNX graph, by running it on arrays that write down what is done to them.

The code is not changed. `Graph.call` runs a part of it once per structure, and writes it as a
function of the model's own, which is called by name: what repeats is described once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, shape_inference

from refimpl.onnx.recording.array import Recorded, element

OPSET = 21
DOMAIN = "refimpl"  # of the model's own functions
Body = Callable[["Graph", dict[str, Any]], Mapping[str, Any]]


class Graph:
    """Nodes, constants, inputs and outputs, in the order in which they were recorded.

    Args:
        opset: Version of ONNX's operators.
        caller: The graph that calls this one, where it is the body of a function.

    Example:
        >>> graph = Graph()
        >>> x = graph.input("x", np.float32, ("batch", 2))
        >>> _ = graph.output("y", np.tanh(x * 2))
        >>> [node.op_type for node in graph.model().graph.node]
        ['Mul', 'Tanh']
    """

    def __init__(self, opset: int = OPSET, caller: "Graph | None" = None) -> None:
        self.opset, self.caller = opset, caller
        self.imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.sparse_initializers: list[onnx.SparseTensorProto] = []
        self.constants: dict[Any, Recorded] = {}
        self.fresh: dict[str, onnx.NodeProto] = {}  # arrays not named and not read so far
        self.retired: set[str] = set()
        self.functions: dict[str, onnx.FunctionProto] = caller.functions if caller else {}
        self.calls: dict[Any, dict[str, onnx.TypeProto]] = caller.calls if caller else {}

    def input(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> Recorded:
        """An array that is given when the graph runs.

        Args:
            name: Its name.
            dtype: Its dtype.
            shape: A size or a name per axis.

        Returns:
            The array.
        """
        self.inputs.append(helper.make_tensor_value_info(name, element(dtype), shape))
        return Recorded(self, name, self.inputs[-1].type)

    def constant(self, value: npt.ArrayLike, name: str = "") -> Recorded:
        """An array that is part of the graph; equal ones without a name are stored once.

        Args:
            value: Its numbers.
            name: Its name, or none.

        Returns:
            The array.
        """
        array = np.asarray(value)
        key = name or (array.dtype, array.shape, array.tobytes())
        if key not in self.constants:
            tensor = numpy_helper.from_array(array, name or f"constant_{len(self.constants)}")
            self.constants[key] = self.initializer(tensor)
        return self.constants[key]

    def initializer(self, tensor: onnx.TensorProto) -> Recorded:
        """A tensor that is part of the graph, or lies in a file beside it.

        Args:
            tensor: It, with its name.

        Returns:
            The array.
        """
        if self.caller:  # functions have no initialisers
            self.nodes.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            self.initializers.append(tensor)
        kind = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        inside = tensor.data_location != onnx.TensorProto.EXTERNAL
        return Recorded(self, tensor.name, kind, tensor if inside else None)

    def sparse_initializer(self, tensor: onnx.SparseTensorProto) -> Recorded:
        """A tensor of which only what is not zero is part of the graph.

        Args:
            tensor: It; its values carry its name.

        Returns:
            The array, which is like any other to the nodes that read it.
        """
        self.sparse_initializers.append(tensor)
        kind = helper.make_tensor_type_proto(tensor.values.data_type, tensor.dims)
        return Recorded(self, tensor.values.name, kind)

    def add(
        self,
        op: str,
        *operands: Any,
        axes: Sequence[int | str] = (),
        outputs: int = 1,
        **attributes: Any,
    ) -> Any:
        """One node.

        Args:
            op: The operator.
            operands: Arrays, recorded or constant.
            axes: Of every output, where they cannot be inferred.
            outputs: How many there are.
            attributes: Of the operator.

        Returns:
            Its output; a tuple where there are several.

        Raises:
            TypeError: An operand that was overwritten, or an axis that has neither size nor name.
        """
        inputs = [x if isinstance(x, Recorded) else self.constant(x) for x in operands]
        self._read(op, inputs)
        name = f"{op}_{len(self.nodes)}"
        names = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        node = helper.make_node(op, [x.name for x in inputs], names, name, **attributes)
        schema, kinds = onnx.defs.get_schema(op, self.opset), {x.name: x.kind for x in inputs}
        known = {x.name: x.value for x in inputs if x.value is not None and x.dtype == np.int64}
        infer = shape_inference.infer_node_outputs  # sizes and axes are int64
        found = infer(schema, node, kinds, known, opset_imports=self.imports)
        for output in names if axes else ():
            dtype = found[output].tensor_type.elem_type
            found[output] = helper.make_tensor_type_proto(dtype, axes)
        dims = [dim for output in names for dim in found[output].tensor_type.shape.dim]
        if not all(dim.WhichOneof("value") for dim in dims):
            raise TypeError(f"{op} of shapes {[x.shape for x in inputs]}: an axis is lost")
        self.nodes.append(node)
        self.fresh |= dict.fromkeys(names, node)
        made = tuple(Recorded(self, output, found[output]) for output in names)
        return made if outputs > 1 else made[0]

    def call(
        self, function: str, body: Body, inputs: Mapping[str, Recorded], name: str, doc: str = ""
    ) -> dict[str, Recorded]:
        """Call a function of the model's own; its body is recorded for each new kind of inputs.

        Args:
            function: Its name.
            body: Given its graph, and its inputs by name, returns its outputs by name.
            inputs: What it is called with, by its own names for them.
            name: Of this call; its outputs are named `{name}.{output}`.
            doc: What the function does, in a sentence.

        Returns:
            Its outputs, by its own names for them.

        Raises:
            TypeError: A body that would be another one for these inputs.
        """
        self._read(function, list(inputs.values()))
        key = function, *((x, y.kind.SerializeToString()) for x, y in inputs.items())
        if key not in self.calls:
            inner = Graph(self.opset, self)
            given = {x: Recorded(inner, x, y.kind) for x, y in inputs.items()}
            found = {x: inner.named(y, x) for x, y in body(inner, given).items()}
            recorded = helper.make_function(
                DOMAIN, function, list(inputs), list(found), inner.nodes, self.imports,
                doc_string=doc,
            )  # fmt: skip
            known = self.functions.setdefault(function, recorded)
            if (known.node, known.output) != (recorded.node, recorded.output):
                raise TypeError(f"{function} is another function for these inputs")
            self.calls[key] = {x: y.kind for x, y in found.items()}
        kinds = self.calls[key]
        outputs = {x: f"{name}.{x}" for x in kinds}
        self.nodes.append(
            helper.make_node(
                function, [x.name for x in inputs.values()], list(outputs.values()), name,
                domain=DOMAIN,
            )
        )  # fmt: skip
        return {x: Recorded(self, outputs[x], kind) for x, kind in kinds.items()}

    def named(self, value: Recorded, name: str) -> Recorded:
        """The same array under a name; use it in place of `value` from now on.

        Args:
            value: An array.
            name: Its new name.

        Returns:
            The array; a copy where its old name is in use.
        """
        if value.name == name:
            return value
        if value.name not in self.fresh:
            value = self.add("Identity", value)
        node = self.fresh.pop(value.name)
        if node.output[0] == value.name:
            node.name = name
        node.output[list(node.output).index(value.name)] = name
        self.retire(value)
        return Recorded(self, name, value.kind, value.value)

    def labelled(self, value: Recorded, name: str) -> Recorded:
        """The same array under a name, where that costs no node; otherwise as it is.

        Args:
            value: An array.
            name: Its new name, for readers of the graph.

        Returns:
            The array; use it in place of `value` from now on.
        """
        return self.named(value, name) if value.name in self.fresh else value

    def output(self, name: str, value: Recorded) -> Recorded:
        """Hand an array out, under a name, when the graph runs.

        Args:
            name: Its name.
            value: An array.

        Returns:
            The array under its name; use it in place of `value` from now on.
        """
        value = self.named(value, name)
        self.outputs.append(helper.make_value_info(name, value.kind))
        return value

    def handed_out(self, values: Iterable[Recorded]) -> None:
        """Hand arrays out under the names they have when the graph runs.

        Args:
            values: Arrays that were named.
        """
        self.outputs += [helper.make_value_info(value.name, value.kind) for value in values]

    def retire(self, value: Recorded) -> None:
        """Allow nobody to read an array by this name any more.

        Args:
            value: An array.
        """
        self.retired.add(value.name)

    def model(self, name: str = "recorded", **facts: Any) -> onnx.ModelProto:
        """The recorded graph.

        Args:
            name: Of the graph.
            facts: Fields of the model: `doc_string`, `producer_name`, ...

        Returns:
            The model; neither checked nor sorted.
        """
        graph = helper.make_graph(
            self.nodes, name, self.inputs, self.outputs, self.initializers,
            sparse_initializer=self.sparse_initializers,
        )  # fmt: skip
        return helper.make_model(
            graph,
            opset_imports=self.imports,
            functions=list(self.functions.values()),
            ir_version=helper.find_min_ir_version_for(self.imports[:1]),
            **facts,
        )

    def _read(self, op: str, values: Sequence[Recorded]) -> None:
        """Note that arrays are read."""
        if stale := self.retired.intersection(x.name for x in values):
            raise TypeError(f"{op} reads an array that was overwritten: {stale}")
        if strange := [x.name for x in values if x.graph is not self]:
            raise TypeError(f"{op} reads arrays of another graph: {strange}")
        for value in values:
            self.fresh.pop(value.name, None)
