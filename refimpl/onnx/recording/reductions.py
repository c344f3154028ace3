"""NumPy's reductions and selections as nodes, for arrays whose axes may have no known size."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def _mean(x: Any, axis: int, keepdims: bool = False) -> Any:
    _floats("mean", x)
    return x.graph.add("ReduceMean", x, [axis], keepdims=int(keepdims))


def _max(x: Any, axis: int, keepdims: bool = False) -> Any:
    _floats("max", x)
    return x.graph.add("ReduceMax", x, [axis], keepdims=int(keepdims))


def _sum(x: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Any:
    if x.dtype == np.bool_:  # counted, as in NumPy
        x = x.astype(np.int64)
    else:
        _floats("sum", x)
    axes = range(len(x.shape)) if axis is None else [axis] if isinstance(axis, int) else axis
    return x.graph.add("ReduceSum", x, list(axes), keepdims=int(keepdims))


def _norm(
    x: Any, ord: None = None, axis: int | Sequence[int] | None = None, keepdims: bool = False
) -> Any:
    return np.sqrt(_sum(x * x, axis, keepdims))


def _std(x: Any, axis: int, keepdims: bool = False) -> Any:
    centred = x - _mean(x, axis, keepdims=True)
    return np.sqrt(_mean(centred * centred, axis, keepdims))


def _median(x: Any) -> Any:
    """The middle number of a row, or the mean of the two in the middle."""
    add, size = x.graph.add, x.graph.add("Shape", x)
    ordered, _ = add("TopK", x, size, outputs=2, largest=0, axes=("ordered",))
    middle = add("Div", add("Concat", add("Sub", size, [1]), size, axis=0), [2])
    return _mean(add("Gather", ordered, middle), 0)


def _ones_like(x: Any, dtype: npt.DTypeLike) -> Any:
    return x.graph.add("Expand", np.ones((), dtype), x.graph.add("Shape", x), axes=x.axes)


def _compress(condition: Any, x: Any, axis: int) -> Any:
    """Select along an axis, which is then named after the condition."""
    axes = list(x.axes)
    axes[axis] = condition.name
    return x.graph.add("Compress", x, condition, axis=axis, axes=axes)


def _floats(name: str, x: Any) -> None:
    if x.dtype.kind != "f":
        raise TypeError(f"{name} of {x.dtype}: only floats keep their dtype")


REDUCTIONS: dict[Any, Callable[..., Any]] = {
    np.mean: _mean,
    np.max: _max,
    np.sum: _sum,
    np.std: _std,
    np.median: _median,
    np.linalg.norm: _norm,
    np.ones_like: _ones_like,
    np.compress: _compress,
}
