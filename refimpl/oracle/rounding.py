"""What a dtype costs: the unchanged code, run on arrays that round whatever is stored.

An array of float32 whose numbers are those of float16 or bfloat16. NumPy asks it before it computes
(`__array_ufunc__`, `__array_function__`): each operation is done in float32, and its result rounded
once. So sums and products are as wide as on a GPU, and what would be stored has 16 bits. Results
in float64 (statistics, scores, drifts) are plain arrays, and not rounded.

What float64 costs is seen in large, by rounding to eight bits less: there, statistics are rounded
as everything else is.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.oracle.steps import Recipe, steps

UNFILLED = (np.empty_like,)  # there is nothing to round in it


class Rounded(np.ndarray):
    """Numbers of few bits, held in a dtype of more, in which they are computed with.

    Source:
        ours (docs/explanation/tolerances.md).

    Example:
        >>> x = Bfloat16.of(np.array([1.0, 1.01], np.float32))
        >>> (x * x).tolist(), (x * x).dtype.name, type(x * np.ones(2)).__name__
        ([1.0, 1.015625], 'float32', 'ndarray')
    """

    held: npt.DTypeLike = np.float32

    @classmethod
    def of(cls, x: npt.ArrayLike) -> "Rounded":
        """Numbers, rounded to the nearest, half to even; Inf beyond the range."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return cls.rounded(np.asarray(x, cls.held)).view(cls)

    @classmethod
    def rounded(cls, x: Array) -> Array:
        """Numbers of the dtype that is held, with few bits."""
        raise NotImplementedError

    def astype(self, dtype: npt.DTypeLike, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        """Of the dtype that is held itself; of any other a plain array."""
        return self if np.dtype(dtype) == self.held else np.asarray(self).astype(dtype)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any
    ) -> Any:
        plain = [self._operand(x) for x in inputs]
        if out is None:
            return self._result(getattr(ufunc, method)(*plain, **options))
        (target,) = out
        made = getattr(ufunc, method)(*plain, **options)
        np.asarray(target)[...] = np.asarray(self._result(made))
        return target

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        made = function(*self._operands(args), **self._operands(options))
        return made if function in UNFILLED else self._result(made)

    def _operand(self, x: Any) -> Any:
        """A plain array; one that was not rounded yet, such as a rotary table, rounded."""
        if isinstance(x, Rounded):
            return np.asarray(x)
        fresh = isinstance(x, np.ndarray) and x.dtype == self.held
        return np.asarray(self.of(x)) if fresh else x

    def _operands(self, x: Any) -> Any:
        """The same of what a function was called with."""
        if isinstance(x, dict):
            return {name: self._operands(value) for name, value in x.items()}
        if isinstance(x, tuple | list):
            return type(x)(self._operands(value) for value in x)
        return self._operand(x)

    def _result(self, x: Any) -> Any:
        return self.of(x) if getattr(x, "dtype", None) == self.held else x


class Float16(Rounded):
    """Numbers of float16."""

    @classmethod
    def rounded(cls, x: Array) -> Array:
        """Numbers of float32 by way of float16."""
        return x.astype(np.float16).astype(np.float32)


class Bfloat16(Rounded):
    """Numbers of bfloat16."""

    @classmethod
    def rounded(cls, x: Array) -> Array:
        """Numbers of float32 by way of bfloat16."""
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)


class InLarge(Rounded):
    """Numbers of the dtype that is held with `less` bits fewer."""

    less = 8

    @classmethod
    def rounded(cls, x: Array) -> Array:
        """The upper part of each number, after Veltkamp."""
        far = x * x.dtype.type(2.0**cls.less + 1)
        return np.where(np.isfinite(far), far - (far - x), x)


class Float64InLarge(InLarge):
    """Numbers of float64 with eight bits fewer."""

    held = np.float64


class Float32InLarge(InLarge):
    """Numbers of float32 with eight bits fewer."""


class Float32Larger(InLarge):
    """Numbers of float32 with seven bits fewer: another sample of its rounding."""

    less = 7


KINDS: Mapping[str, type[Rounded]] = {
    "float64": Float64InLarge,
    "float16": Float16,
    "bfloat16": Bfloat16,
}


@dataclass(frozen=True)
class RoundedModel(Model):
    """A model whose weights are rounded once, and round what is computed with them.

    Args:
        kind: How its numbers are rounded.
    """

    kind: type[Rounded] = Bfloat16

    def embedding(self) -> dict[str, Array]:
        """As `Model.embedding`, rounded."""
        return self._rounded("", super().embedding(), self.kind.held)

    def block(
        self, index: int, dtype: npt.DTypeLike, each: Callable[..., Iterable[Array]] = map
    ) -> dict[str, Array]:
        """As `Model.block`; rounded in the dtype that is held, exact in another."""
        return self._rounded(f"blocks.{index}.", super().block(index, dtype, each), dtype)

    def head(self, dtype: npt.DTypeLike, rows: slice = slice(None)) -> dict[str, Array]:
        """As `Model.head`, rounded."""
        return self._rounded("", super().head(dtype, rows), dtype)

    def _rounded(
        self, prefix: str, read: dict[str, Array], dtype: npt.DTypeLike
    ) -> dict[str, Array]:
        """What was read: as stored, rounded; then with its offset, rounded again."""
        if np.dtype(dtype) != self.kind.held:
            return read
        made: dict[str, Array] = {}
        for name, value in read.items():
            offset = np.array(self.weights[prefix + name].offset, dtype)
            made[name] = self.kind.of(value - offset) + offset if offset else self.kind.of(value)
        return made


def rounded_steps(
    model: Model, ids: npt.NDArray[np.int64], recipe: Recipe, kind: type[Rounded]
) -> dict[str, Array]:
    """Every step of a recipe, rounded.

    Args:
        model: From `read_model`.
        ids: Token ids, [N, S].
        recipe: What is computed.
        kind: How numbers are rounded; in large, errors are ``2^less`` times as great.

    Returns:
        Plain arrays by name, as `steps` returns them.

    Source:
        ours.

    Example:
        >>> from refimpl import read_model
        >>> model, ids = read_model("fixtures/llama"), np.arange(32).reshape(2, 16)
        >>> logits = rounded_steps(model, ids, Recipe(), Bfloat16)["logits"]
        >>> bool((logits == logits.astype(ml_dtypes.bfloat16)).all())
        True
    """
    known = {field.name: getattr(model, field.name) for field in fields(Model)}
    found = steps(RoundedModel(**known, kind=kind), ids, recipe, kind.held)
    return {name: np.asarray(value) for name, value in found.items()}
