"""One weight of a model: where it lies on disk, and how it is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.layout import WHOLE, Layout, cut
from refimpl.model.ops import Array

CHUNK = 1 << 22  # weights looked through at once


class TensorFile(Protocol):
    """A file of tensors, mapped into memory, whatever its format."""

    path: Path

    def release(self) -> None:
        """Let the system take back the pages read so far; views stay valid and are read again."""
        ...


class StoredTensor(Protocol):
    """One tensor of a file: its name and dtype in the file's words, its shape and values."""

    @property
    def file(self) -> TensorFile: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def array(self) -> Array: ...  # noqa: D102


@dataclass(frozen=True)
class Weight:
    """One of our tensors.

    Args:
        stored: The file's tensor that holds it.
        layout: How it lies there.
        offset: Added on reading.
    """

    stored: StoredTensor
    layout: Layout = WHOLE
    offset: float = 0.0

    def read(self, dtype: npt.DTypeLike, rows: slice = slice(None)) -> Array:
        """Read the weight: ``cast(rows of the stored tensor) + offset``.

        Args:
            dtype: Dtype of the computation.
            rows: Which of its rows, all by default.

        Returns:
            The rows, [out, in] or [out]; a view of the file where nothing needs to change.

        Raises:
            RefimplError: NaN or Inf in it, as stored or in `dtype`.

        Example:
            >>> from refimpl import read_model
            >>> read_model("fixtures/llama").weights["lm_head.weight"].read("f8", slice(2)).shape
            (2, 32)
        """
        weight = self._cast(dtype, rows)
        if count_bad(weight):
            self.check(dtype)
        return weight + np.array(self.offset, dtype) if self.offset else weight

    def check(self, dtype: npt.DTypeLike) -> None:
        """Look through the whole weight, a piece at a time.

        Args:
            dtype: Dtype of the computation.

        Raises:
            RefimplError: NaN or Inf in it, as stored or in `dtype`, with their number.
        """
        part = cut(self.stored.array, self.layout)
        step = max(1, CHUNK // max(1, part[:1].size))
        stored = cast = 0
        for start in range(0, len(part), step):
            rows = slice(start, start + step)
            if bad := count_bad(self._cast(dtype, rows)):
                cast += bad
                stored += count_bad(part[rows])
            self.stored.file.release()
        where = f"{self.stored.file.path}: {self.stored.name} holds"
        if stored:
            raise RefimplError(
                f"{where} {stored} NaN or Inf among {part.size} weights",
                "finite weights",
                "repair or replace the checkpoint",
            )
        if cast:
            raise RefimplError(
                f"{where} {cast} weights of {part.size} that {np.dtype(dtype).name} cannot hold",
                f"weights within the range of {np.dtype(dtype).name}",
                "use --dtype float64",
            )

    def _cast(self, dtype: npt.DTypeLike, rows: slice) -> Array:
        """Rows in the dtype of the computation, before the offset."""
        with np.errstate(over="ignore", invalid="ignore"):  # looked for right after
            return np.require(cut(self.stored.array, self.layout)[rows], dtype, ["A"])


def count_bad(values: Array) -> int:
    """Count what is NaN or Inf.

    Args:
        values: Floating-point values of any shape.

    Returns:
        How many.

    Example:
        >>> count_bad(np.array([1.0, np.nan, -np.inf]))
        2
    """
    return values.size - int(np.count_nonzero(np.isfinite(values)))
