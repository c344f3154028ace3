"""An array that records the operations on it as nodes of a graph, and computes nothing.

NumPy code runs on it unchanged, because NumPy asks its operands first. The size behind the name of
an axis is unknown while recording, so code that would fix a batch size or a length fails.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

UFUNCS = {
    np.add: "Add",
    np.subtract: "Sub",
    np.multiply: "Mul",
    np.divide: "Div",
    np.matmul: "MatMul",
    np.power: "Pow",
    np.minimum: "Min",
    np.maximum: "Max",
    np.negative: "Neg",
    np.absolute: "Abs",
    np.sqrt: "Sqrt",
    np.exp: "Exp",
    np.log: "Log",
    np.tanh: "Tanh",
    np.sin: "Sin",
    np.greater: "Greater",
    np.greater_equal: "GreaterOrEqual",
    np.equal: "Equal",
    np.floor_divide: "Div",
    np.bitwise_or: "Or",
    np.invert: "Not",
}
Axes = int | Sequence[int] | None


@dataclass(frozen=True, eq=False)
class Axis:
    """The unknown size of a named axis such as "batch"; it can be compared with another Axis."""

    name: str

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Axis):
            return self.name == other.name
        raise TypeError(f"the size of axis {self.name!r} is not known while recording")


@dataclass(frozen=True, eq=False)
class Recorded(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of a graph: its name there, its dtype and axes, its numbers if it is constant."""

    graph: Any  # a `Graph`
    name: str
    kind: onnx.TypeProto
    value: onnx.TensorProto | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype."""
        return helper.tensor_dtype_to_np_dtype(self.kind.tensor_type.elem_type)

    @property
    def shape(self) -> tuple[int | Axis, ...]:
        """A size or a name per axis."""
        axes = self.kind.tensor_type.shape.dim
        return tuple(
            Axis(axis.dim_param) if axis.dim_param else axis.dim_value for axis in axes
        )

    @property
    def axes(self) -> tuple[int | str, ...]:
        """A size or a name per axis, as ONNX writes them."""
        return tuple(
            size.name if isinstance(size, Axis) else size for size in self.shape
        )

    @property
    def T(self) -> Any:
        """The array with its axes in reverse."""
        return self.graph.add("Transpose", self)

    def astype(self, dtype: npt.DTypeLike) -> Any:
        """The array in another dtype."""
        return (
            self
            if self.dtype == dtype
            else self.graph.add("Cast", self, to=element(dtype))
        )

    def __getitem__(self, key: Any) -> Any:
        match key:
            case (EllipsisType(), slice(start=start, stop=stop, step=step)):
                last = np.iinfo(np.int64).max if stop is None else stop
                steps = [] if step is None else [[step]]
                return self.graph.add("Slice", self, [start or 0], [last], [-1], *steps)
            case (EllipsisType(), int(index)):
                return self.graph.add("Gather", self, index, axis=-1)
            case Recorded():
                rows = _rows(key)
                axes = (rows.axes[0], *self.axes[len(key.shape) :])
                return self.graph.add("GatherND", self, rows, axes=axes)
        raise TypeError(
            f"only [..., i], [..., start:stop:step], or a mask, not [{key}]"
        )

    def __setitem__(self, mask: Any, values: Any) -> None:
        """Let the array's rows where a mask is true be others: from now on it has another name."""
        changed = self.graph.add("ScatterND", self, _rows(mask), values, axes=self.axes)
        self.graph.retired.add(self.name)
        object.__setattr__(self, "name", changed.name)

    def __array_ufunc__(
        self,
        ufunc: np.ufunc,
        method: str,
        *inputs: Any,
        out: tuple[Any, ...] = (),
        **options: Any,
    ) -> Any:
        if dtype := options.pop("dtype", None):
            inputs = tuple(_cast(x, dtype) for x in inputs)
        if method != "__call__" or options or (out and out[0] is not self):
            return NotImplemented
        if ufunc is np.cos:  # 1 - 2 sin(x/2)^2: few runtimes have a Cos for float64
            half = np.sin(0.5 * self)
            return 1 - half * half * 2
        if (
            ufunc is np.expm1
        ):  # 2 t / (1 - t), t = tanh(x / 2): ONNX has no operator for it
            t = np.tanh(0.5 * self)
            return 2 * t / (1 - t)
        if ufunc is np.log1p:  # no operator either: what is lost is a rounding of 1
            return np.log(1 + self)
        if ufunc not in UFUNCS:
            return NotImplemented
        dtypes = ufunc.resolve_dtypes((*map(_kind, inputs), None))
        result = self.graph.add(UFUNCS[ufunc], *map(_cast, inputs, dtypes))
        if out:  # x += y: from now on x names the result, so no other name may refer to the old x
            self.graph.retired.add(self.name)
            return result.astype(self.dtype)
        return result

    def __array_function__(
        self, function: Any, types: Any, args: Any, options: Any
    ) -> Any:
        return (
            FUNCTIONS[function](*args, **options)
            if function in FUNCTIONS
            else NotImplemented
        )

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise TypeError("a recorded array has no numbers")

    def __bool__(self) -> bool:
        raise TypeError("a recorded array is neither true nor false")


def element(dtype: npt.DTypeLike) -> int:
    """ONNX's number for a NumPy dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _kind(x: Any) -> Any:
    """Dtype of an operand; of a Python number its type, which NumPy promotes weakly."""
    return type(x) if type(x) in (int, float) else x.dtype


def _cast(x: Any, dtype: npt.DTypeLike) -> Any:
    return x.astype(dtype) if isinstance(x, Recorded) else np.asarray(x, dtype)


def _where(condition: Any, x: Any, y: Any) -> Any:
    *_, dtype = np.add.resolve_dtypes(
        (_kind(x), _kind(y), None)
    )  # the rule of promotion
    graph = next(a.graph for a in (condition, x, y) if isinstance(a, Recorded))
    return graph.add("Where", condition, _cast(x, dtype), _cast(y, dtype))


def _swapaxes(x: Recorded, axis1: int, axis2: int) -> Any:
    order = list(range(len(x.shape)))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return x.graph.add("Transpose", x, perm=order)


def _reshape(x: Recorded, shape: Sequence[int | Axis]) -> Any:
    """Reshape; every named axis stays in its position, which ONNX writes as 0."""
    before, after = (
        [(i, a.name) for i, a in enumerate(s) if isinstance(a, Axis)]
        for s in (x.shape, shape)
    )
    if before != after:
        raise TypeError(
            f"reshape from {x.shape} to {shape}: an axis without a size would move"
        )
    return x.graph.add(
        "Reshape", x, [0 if isinstance(size, Axis) else size for size in shape]
    )


def _reduced(operator: str, x: Any, axis: Axes = None, keepdims: bool = False) -> Any:
    if x.dtype.kind != "f":
        raise TypeError(f"{operator} of {x.dtype}: only floats keep their dtype")
    axes = (
        range(len(x.shape))
        if axis is None
        else [axis]
        if isinstance(axis, int)
        else axis
    )
    return x.graph.add(operator, x, list(axes), keepdims=int(keepdims))


def _rows(mask: Recorded) -> Any:
    """Indices where a mask is true, [n, axes of the mask]; n is named after the mask."""
    add, rank = mask.graph.add, len(mask.shape)
    where = add("NonZero", mask, axes=(rank, f"{mask.name}.rows"))
    return add("Transpose", where)


def _filled(value: int, x: Any, dtype: npt.DTypeLike | None = None) -> Any:
    number = np.asarray(value, x.dtype if dtype is None else dtype)
    return x.graph.add("Expand", number, x.graph.add("Shape", x), axes=x.axes)


def _roll(x: Any, shift: int, axis: int) -> Any:
    """The last entries of an axis before the others, of which there may be none."""
    add, last = x.graph.add, np.iinfo(np.int64).max
    axes = [f"{x.name}.rolled" if i == axis else size for i, size in enumerate(x.axes)]
    parts = [
        add("Slice", x, [a], [b], [axis], axes=axes)
        for a, b in ((-shift, last), (0, -shift))
    ]
    return add("Concat", *parts, axis=axis, axes=x.axes)


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.mean: partial(_reduced, "ReduceMean"),
    np.max: partial(_reduced, "ReduceMax"),
    np.sum: partial(_reduced, "ReduceSum"),
    np.ones_like: partial(_filled, 1),
    np.zeros_like: partial(_filled, 0),
    # True everywhere: while recording, any number may be true.
    np.any: lambda x, axis: np.ones(
        [n for i, n in enumerate(x.shape) if i not in axis], np.bool_
    ),
    np.argmax: lambda x, axis: x.graph.add("ArgMax", x, axis=axis, keepdims=0),
    np.stack: lambda parts, axis: np.concatenate(
        [np.expand_dims(x, axis) for x in parts], axis
    ),
    np.concatenate: lambda parts, axis: parts[0].graph.add("Concat", *parts, axis=axis),
    np.expand_dims: lambda x, axis: x.graph.add("Unsqueeze", x, [axis]),
    np.transpose: lambda x, axes: x.graph.add("Transpose", x, perm=axes),
    np.take: lambda x, indices, axis: x.graph.add("Gather", x, indices, axis=axis),
    np.swapaxes: _swapaxes,
    np.roll: _roll,
    np.cumsum: lambda x, axis: x.graph.add("CumSum", x, np.int64(axis % len(x.shape))),
    np.reshape: _reshape,
    np.where: _where,
}
