"""Record NumPy code as an ONNX graph, by running it on arrays that write down what is done to them.

The code is not changed: a `Recorded` array answers NumPy's `__array_ufunc__` and
`__array_function__`. Dtypes follow NumPy's promotion; shapes are inferred by ONNX, whose axes have
a size or a name. The size behind a name is not known while recording, so code that would fix a
batch size or a length fails instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, shape_inference

OPSET, IR_VERSION = 18, 10
IMPORTS = [helper.make_opsetid("", OPSET)]
UFUNCS = {
    np.add: "Add", np.subtract: "Sub", np.multiply: "Mul", np.divide: "Div", np.matmul: "MatMul",
    np.minimum: "Min", np.maximum: "Max", np.negative: "Neg", np.absolute: "Abs", np.sign: "Sign",
    np.sqrt: "Sqrt", np.exp: "Exp", np.tanh: "Tanh", np.sin: "Sin",
    np.less: "Less", np.greater: "Greater", np.greater_equal: "GreaterOrEqual",
    np.bitwise_or: "Or",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Axis:
    """The unknown size of a named axis: passed on, compared with its like, and nothing else."""

    name: str

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Axis):
            return self.name == other.name
        raise TypeError(f"the size of axis {self.name!r} is not known while recording")


class Graph:
    """Nodes, constants, inputs and outputs, in the order in which they were recorded."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.constants: dict[Any, Recorded] = {}
        self.initializers: list[onnx.TensorProto] = []
        self.overwritten: set[str] = set()

    def input(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> "Recorded":
        """An array that is given when the graph runs."""
        self.inputs.append(helper.make_tensor_value_info(name, _element(dtype), shape))
        return Recorded(self, name, self.inputs[-1].type)

    def constant(self, value: npt.ArrayLike, name: str = "") -> "Recorded":
        """An array that is part of the graph; equal ones without a name are stored once."""
        array = np.asarray(value)
        key = name or (array.dtype, array.shape, array.tobytes())
        if key not in self.constants:
            tensor = numpy_helper.from_array(array, name or f"constant_{len(self.constants)}")
            kind = helper.make_tensor_type_proto(tensor.data_type, array.shape)
            self.initializers.append(tensor)
            self.constants[key] = Recorded(self, tensor.name, kind, tensor)
        return self.constants[key]

    def add(self, op: str, *operands: Any, axes: Sequence[str] = (), **attributes: Any) -> Any:
        """One node with one output; `axes` names them where that cannot be inferred."""
        inputs = [x if isinstance(x, Recorded) else self.constant(x) for x in operands]
        if stale := self.overwritten.intersection(x.name for x in inputs):
            raise TypeError(f"{op} reads an array that was overwritten: {stale}")
        name = f"{op}_{len(self.nodes)}"
        node = helper.make_node(op, [x.name for x in inputs], [name], name, **attributes)
        schema, kinds = onnx.defs.get_schema(op, OPSET), {x.name: x.kind for x in inputs}
        known = {x.name: x.value for x in inputs if x.value is not None and x.dtype == np.int64}
        infer = shape_inference.infer_node_outputs  # sizes and axes are int64
        kind = infer(schema, node, kinds, known, opset_imports=IMPORTS)[name]
        if axes:
            kind = helper.make_tensor_type_proto(kind.tensor_type.elem_type, axes)
        if not all(axis.WhichOneof("value") for axis in kind.tensor_type.shape.dim):
            raise TypeError(f"{op} of shapes {[x.shape for x in inputs]}: an axis is lost")
        self.nodes.append(node)
        return Recorded(self, name, kind)

    def output(self, name: str, value: "Recorded") -> None:
        """Hand an array out, under a name, when the graph runs."""
        self.outputs.append(helper.make_value_info(name, self.add("Identity", value).kind))
        self.nodes[-1].output[0] = name

    def model(self) -> onnx.ModelProto:
        """The recorded graph, checked."""
        parts = self.nodes, "recorded", self.inputs, self.outputs, self.initializers
        graph = helper.make_graph(*parts)
        model = helper.make_model(graph, opset_imports=IMPORTS, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


@dataclass(frozen=True, eq=False)
class Recorded(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of a graph: a name, a dtype and a shape; its numbers only where it is constant."""

    graph: Graph
    name: str
    kind: onnx.TypeProto
    value: onnx.TensorProto | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        return helper.tensor_dtype_to_np_dtype(self.kind.tensor_type.elem_type)

    @property
    def shape(self) -> tuple[int | Axis, ...]:
        axes = self.kind.tensor_type.shape.dim
        return tuple(Axis(axis.dim_param) if axis.dim_param else axis.dim_value for axis in axes)

    @property
    def T(self) -> Any:
        return self.graph.add("Transpose", self)

    def astype(self, dtype: npt.DTypeLike) -> Any:
        return self if self.dtype == dtype else self.graph.add("Cast", self, to=_element(dtype))

    def __getitem__(self, key: Any) -> Any:
        dots, cut = key if isinstance(key, tuple) and len(key) == 2 else (None, None)
        if dots is not Ellipsis or not isinstance(cut, slice) or cut.step is not None:
            raise TypeError(f"only x[..., start:stop] is recorded, not x[{key}]")
        stop = np.iinfo(np.int64).max if cut.stop is None else cut.stop
        return self.graph.add("Slice", self, [cut.start or 0], [stop], [-1])

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple[Any, ...] = (), **options: Any
    ) -> Any:
        if method != "__call__" or options or (out and out[0] is not self):
            return NotImplemented
        if ufunc is np.cos:  # 1 - 2 sin(x/2)^2: few runtimes have a Cos for float64
            half = np.sin(0.5 * self)
            return 1 - half * half * 2
        if ufunc not in UFUNCS:
            return NotImplemented
        dtypes = ufunc.resolve_dtypes((*(_kind(x) for x in inputs), None))
        result = self.graph.add(UFUNCS[ufunc], *map(_cast, inputs, dtypes))
        if out:  # x += y: the name x means the result from now on, and nobody else may hold it
            self.graph.overwritten.add(self.name)
            return result.astype(self.dtype)
        return result

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return FUNCTIONS[function](*args, **options) if function in FUNCTIONS else NotImplemented

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise TypeError("a recorded array has no numbers")

    def __bool__(self) -> bool:
        raise TypeError("a recorded array is neither true nor false")


def _element(dtype: npt.DTypeLike) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _kind(x: Any) -> Any:
    """Dtype of an operand; Python's numbers only have a kind, as in NumPy."""
    return type(x) if type(x) in (int, float) else x.dtype


def _cast(x: Any, dtype: npt.DTypeLike) -> Any:
    return x.astype(dtype) if isinstance(x, Recorded) else np.asarray(x, dtype)


def _where(condition: Recorded, x: Any, y: Any) -> Any:
    *_, dtype = np.add.resolve_dtypes((_kind(x), _kind(y), None))  # the rule of promotion
    return condition.graph.add("Where", condition, _cast(x, dtype), _cast(y, dtype))


def _swapaxes(x: Recorded, one: int, other: int) -> Any:
    order = list(range(len(x.shape)))
    order[one], order[other] = order[other], order[one]
    return x.graph.add("Transpose", x, perm=order)


def _reshape(x: Recorded, shape: Sequence[int | Axis]) -> Any:
    """Reshape; named axes stay, all of them and where they are, which ONNX writes as 0."""
    named, kept = (
        [(i, a.name) for i, a in enumerate(s) if isinstance(a, Axis)] for s in (x.shape, shape)
    )
    if named != kept:
        raise TypeError(f"reshape from {x.shape} to {shape}: an axis without a size would move")
    return x.graph.add("Reshape", x, [0 if isinstance(size, Axis) else size for size in shape])


def _reduction(op: str) -> Callable[..., Any]:
    def reduce(x: Recorded, axis: int, keepdims: bool) -> Any:
        if x.dtype.kind != "f":
            raise TypeError(f"{op} of {x.dtype}: only floats keep their dtype")
        return x.graph.add(op, x, [axis], keepdims=int(keepdims))

    return reduce


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.mean: _reduction("ReduceMean"),
    np.sum: _reduction("ReduceSum"),
    np.max: _reduction("ReduceMax"),
    np.concatenate: lambda parts, axis: parts[0].graph.add("Concat", *parts, axis=axis),
    np.expand_dims: lambda x, axis: x.graph.add("Unsqueeze", x, [axis]),
    np.transpose: lambda x, axes: x.graph.add("Transpose", x, perm=axes),
    np.take: lambda x, indices, axis: x.graph.add("Gather", x, indices, axis=axis),
    np.swapaxes: _swapaxes,
    np.reshape: _reshape,
    np.where: _where,
}
