"""The unchanged code on arrays that round whatever is stored, to measure what a dtype costs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from refimpl.model.model import BlockWeights, Model
from refimpl.model.ops import Array
from refimpl.oracle.measures import Arrays

FEWER = (
    8  # bits less than float64, whose error is that of this arithmetic, divided by 2^8
)


class RoundedArray(np.ndarray):
    """Numbers of few bits, held in a dtype of more, in which NumPy does each operation.

    Its result is rounded once, so sums are as wide as on a GPU. If kernels are fused, only the
    factors of matrix products, these, quotients (the ends of norms, softmax and sigmoids) and
    steps are rounded. Results in float64 are plain arrays.
    """

    held: npt.DTypeLike = np.float32
    narrow: npt.DTypeLike = np.float32
    fewer = 0  # bits than in the dtype that is held
    fused = False

    @classmethod
    def of(cls, x: npt.ArrayLike) -> "RoundedArray":
        """Numbers, rounded to the nearest, half to even; Inf beyond the range."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return cls.rounded(np.asarray(x, cls.held)).view(cls)

    @classmethod
    def rounded(cls, x: Array) -> Array:
        """By way of the narrow dtype; or the upper part of each number, after Veltkamp."""
        if not cls.fewer:
            return x.astype(cls.narrow).astype(cls.held)
        far = x * x.dtype.type(2.0**cls.fewer + 1)
        return np.where(np.isfinite(far), far - (far - x), x)

    def astype(self, dtype: npt.DTypeLike, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        """The array itself in the dtype that is held; in any other a plain array."""
        return self if np.dtype(dtype) == self.held else np.asarray(self).astype(dtype)

    def __array_ufunc__(
        self,
        ufunc: np.ufunc,
        method: str,
        *inputs: Any,
        out: Any = None,
        **options: Any,
    ) -> Any:
        plain = [self._operands(x, factor=ufunc is np.matmul) for x in inputs]
        ends = ufunc in (np.matmul, np.divide)
        result = self._result(getattr(ufunc, method)(*plain, **options), ends)
        if out is not None:
            np.asarray(out[0])[...] = np.asarray(result)
        return result if out is None else out[0]

    def __array_function__(
        self, function: Any, types: Any, args: Any, options: Any
    ) -> Any:
        return self._result(function(*self._operands(args), **options))

    def _operands(self, x: Any, factor: bool = False) -> Any:
        """Plain arrays; one that was not rounded yet, such as a rotary table, is rounded."""
        if isinstance(x, tuple | list):
            return type(x)(self._operands(value) for value in x)
        if not isinstance(x, np.ndarray):
            return x
        fresh = (factor and self.fused) or not isinstance(x, RoundedArray)
        return np.asarray(self.of(x) if fresh and x.dtype == self.held else x)

    def _result(self, x: Any, ends: bool = False) -> Any:
        if getattr(x, "dtype", None) != self.held:
            return x
        return self.of(x) if ends or not self.fused else np.asarray(x).view(type(self))


def rounding(**facts: Any) -> type[RoundedArray]:
    """Numbers of a narrow dtype, or of a dtype with fewer bits."""
    return type("Rounded", (RoundedArray,), facts)


ARITHMETIC: Mapping[str, type[RoundedArray]] = {
    "float64": rounding(held=np.float64, fewer=FEWER),
    "float16": rounding(narrow=np.float16, fused=True),
    "bfloat16": rounding(narrow=ml_dtypes.bfloat16, fused=True),
    "tf32": rounding(fewer=13, fused=True),  # ten bits in the range of float32
}


@dataclass(frozen=True)
class ChangedModel(Model):
    """A model whose weights are read once, held, and changed as they are asked for."""

    change: Callable[[Arrays], Arrays] = dict
    held: dict[Any, Arrays] = field(default_factory=dict)

    def other(
        self, prefix: str, dtype: npt.DTypeLike, read: Callable[[], Arrays]
    ) -> dict[str, Array]:
        """Weights by our names without the prefix of the block; the dtype of embeddings is ""."""
        key = prefix, dtype and np.dtype(dtype)  # all of a head may be read
        if key not in self.held:
            self.held[key] = dict(read())
        return dict(self.change(self.held[key]))

    def embedding(self) -> dict[str, Array]:
        """As `Model.embedding`."""
        return self.other("", "", super().embedding)

    def block(self, index: int, dtype: npt.DTypeLike, *each: Any) -> BlockWeights:
        """As `Model.block`."""
        read = partial(super().block, index, dtype, *each)
        return BlockWeights(self.other(f"blocks.{index}.", dtype, read))

    def head(self, dtype: npt.DTypeLike, rows: slice = slice(None)) -> dict[str, Array]:
        """As `Model.head`."""
        return self.other("", dtype, partial(super().head, dtype, rows))


@dataclass(frozen=True)
class RoundedModel(ChangedModel):
    """A model whose weights are rounded once, and round what is computed with them."""

    kind: type[RoundedArray] = RoundedArray

    def other(self, prefix: str, dtype: npt.DTypeLike, read: Any) -> dict[str, Array]:
        """Weights as stored, rounded; then with their offset, rounded again; exact in float64."""
        weights: dict[str, Array] = dict(read())
        if dtype != "" and np.dtype(dtype) != self.kind.held:
            return weights
        for name in [x for x in weights if prefix + x in self.weights]:  # not tables
            offset = np.array(self.weights[prefix + name].offset, self.kind.held)
            weights[name] = self.kind.of(weights[name] - offset) + offset
        return weights
