"""One weight of a model: the stored tensor that holds it, and how it is read."""

import mmap
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.floating_point import float32_of_half
from refimpl.model.layout import WHOLE, Layout, cut
from refimpl.model.ops import Array

CHUNK = 1 << 22  # weights that are checked at once
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class MappedFile:
    """A file that is mapped into memory: its bytes are read when they are first used."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content = path, content

    def whole(self) -> mmap.mmap:
        """The content, unless the file was cut: the system would end a process that reads on."""
        size = self.content.size()
        if size < len(self.content):
            raise RefimplError(
                f"{self.path} was cut to {size:,} bytes while it was used",
                "files that stay as they are during a run",
                "restore the file, and repeat the command",
            )
        return self.content

    def release(self, start: int = 0, size: int | None = None) -> None:
        """Free the memory of the pages read so far; views stay valid and are read again.

        All pages, or those of `size` bytes from `start` on.
        """
        if hasattr(self.content, "madvise"):  # not on Windows
            page = start - start % mmap.PAGESIZE
            size = len(self.content) if size is None else size + start - page
            assert page + size <= len(self.content)
            self.content.madvise(mmap.MADV_DONTNEED, page, size)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: name, dtype (such as "BF16") and shape there, and its first byte."""

    file: MappedFile
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype of its values, which must be one of `DTYPES`."""
        return DTYPES[self.dtype]

    @property
    def kind(self) -> str:
        """The file's name of how it is stored."""
        return self.dtype

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def array(self) -> Array:
        """The tensor, a read-only view of the mapped file.

        A tensor without axes, a single number, has the shape [1] here.
        """
        raw = np.frombuffer(self.file.whole(), self.numpy_dtype, prod(self.shape), self.offset)
        return raw.reshape(self.shape or 1)

    @property
    def table(self) -> Array:
        """The tensor for looking up rows with `np.take`."""
        return self.array

    def rows(self, rows: slice) -> Array:
        """Some of its rows."""
        return self.array[rows]

    def release(self, part: int, parts: int) -> None:
        """Free the memory of the mapped pages that hold one of several equal parts."""
        size = self.nbytes // parts
        self.file.release(self.offset + size * part, size)


@dataclass(frozen=True)
class Weight:
    """One of our tensors.

    Args:
        stored: The file's tensor that holds it.
        layout: Which part of that tensor it is.
        offset: Number added to every value after reading.
    """

    stored: StoredTensor
    layout: Layout = WHOLE
    offset: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, [out, in] or [out]."""
        layout, stored = self.layout, self.stored.shape
        stored = stored[1:] if layout.stack else stored
        whole = (stored[::-1] if layout.transposed else stored) or (1,)
        return (layout.rows[layout.index], *whole[1:]) if len(layout.rows) > 1 else whole

    def read(self, dtype: npt.DTypeLike, rows: slice = slice(None)) -> Array:
        """Read the weight: ``cast(rows of the stored tensor) + offset``.

        Args:
            dtype: Dtype of the computation.
            rows: Which of its rows, all by default.

        Returns:
            The rows, [out, in] or [out]; a view of the file if no value changes.

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

    def read_again(self, dtype: npt.DTypeLike) -> Array:
        """What `read` returned before; the mapped pages that hold it are freed."""
        weight = self._cast(dtype, slice(None))
        self.release()
        return weight + np.array(self.offset, dtype) if self.offset else weight

    def release(self) -> None:
        """Free the memory of the mapped pages that hold it."""
        layout = self.layout
        self.stored.release(*((layout.expert, layout.stack) if layout.stack else (0, 1)))

    @property
    def as_stored(self) -> Array:
        """The weight in the dtype of the file, before the offset; a view if the layout allows."""
        return self._rows(slice(None))

    def check(self, dtype: npt.DTypeLike) -> None:
        """Refuse the weight if any value is NaN or Inf, as stored or in `dtype`, and count them."""
        count, size = self.shape[0], prod(self.shape)
        step = max(1, CHUNK // max(1, prod(self.shape[1:])))
        bad_stored = bad_cast = 0
        for start in range(0, count, step):
            rows = slice(start, start + step)
            if bad := count_bad(self._cast(dtype, rows)):
                bad_cast += bad
                bad_stored += count_bad(self._rows(rows))
            self.stored.file.release()
        tensor, name = f"{self.stored.file.path}: {self.stored.name}", np.dtype(dtype).name
        if bad_stored:
            raise RefimplError(
                f"{tensor} holds {bad_stored} NaN or Inf among {size} weights",
                "finite weights",
                "repair or replace the checkpoint",
            )
        if bad_cast:
            raise RefimplError(
                f"{tensor} holds {bad_cast} weights of {size} that {name} cannot hold",
                f"weights within the range of {name}",
                "use --dtype float64",
            )

    def _cast(self, dtype: npt.DTypeLike, rows: slice) -> Array:
        """Rows in the dtype of the computation, before the offset."""
        stored = self._rows(rows)
        if stored.dtype == np.float16 and np.dtype(dtype) == np.float32:
            return float32_of_half(stored)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller counts Inf and NaN
            return np.require(stored, dtype, ["A"])

    def _rows(self, rows: slice) -> Array:
        """Rows as stored."""
        if self.layout.alone:
            return self.stored.rows(rows)
        if not self.layout.stack:
            return cut(self.stored.array, self.layout)[rows]
        expert = self.layout.expert
        one = self.stored.rows(slice(expert, expert + 1))
        return cut(one, replace(self.layout, expert=0))[rows]


def count_bad(values: Array) -> int:
    """Count the NaN and Inf among floating-point values of any shape."""
    return values.size - int(np.count_nonzero(np.isfinite(values)))
