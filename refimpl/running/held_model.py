"""A model that keeps weights in memory once they are read and cast."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from refimpl.model.model import BlockWeights, Model
from refimpl.model.ops import Array
from refimpl.running.settings import parse_memory

T = TypeVar("T")


@dataclass(frozen=True)
class HeldModel(Model):
    """A model for several passes: what it has read stays in memory, as far as it fits.

    Each block and the head are kept, in the dtype they were asked for, until the limit is reached;
    what does not fit then is read at each use, as by `Model`. Several threads may use it.

    Args:
        limit: The most bytes of weights that it keeps.

    Example:
        >>> from refimpl import forward, read_model
        >>> model = HeldModel.of(read_model("fixtures/llama"), "1M")
        >>> first, second = (forward(model, [1, 5, 7]).logits for _ in range(2))
        >>> bool((first == second).all()), model.block(0, "f4") is model.block(0, "f4")
        (True, True)
    """

    limit: int = 0
    _kept: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)
    _lock: Any = field(default_factory=Lock, init=False, repr=False)

    @classmethod
    def of(cls, model: Model, memory: str | int | None = None) -> Self:
        """The same model, which keeps weights of this size; what is free, at most 2 GiB, if None.

        Raises:
            RefimplError: The memory is not a size.
        """
        return model.as_kind(cls, limit=parse_memory(memory))

    def block(
        self, index: int, dtype: npt.DTypeLike, each: Callable[..., Iterable[Any]] = map
    ) -> BlockWeights:
        """As `Model.block`, read once."""
        key = ("block", index, np.dtype(dtype))
        return self._once(key, partial(super().block, index, dtype, each))

    def head(self, dtype: npt.DTypeLike, rows: slice = slice(None)) -> dict[str, Array]:
        """As `Model.head`, each slice of rows read once."""
        key = ("head", rows.start, rows.stop, rows.step, np.dtype(dtype))
        return self._once(key, partial(super().head, dtype, rows))

    def check_finite(self, dtype: npt.DTypeLike | None = None) -> None:
        """As `Model.check_finite`, checked once."""
        self._once(("finite", dtype and np.dtype(dtype)), partial(super().check_finite, dtype))

    def _once(self, key: Hashable, read: Callable[[], T]) -> T:
        """What was read under this key; one thread reads, and others wait for it."""
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            value = read()
            if sum(map(size_of, self._kept.values())) + size_of(value) <= self.limit:
                self._kept[key] = value
            return value


def size_of(weights: Any) -> int:
    """Bytes of weights in memory; none of those that are read when they are used."""
    if isinstance(weights, BlockWeights):
        return weights.nbytes
    return sum(weight.nbytes for weight in (weights or {}).values())
