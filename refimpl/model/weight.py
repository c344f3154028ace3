"""One weight of a model: the stored tensor, the part of it that the weight is, how it is read."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO
from weakref import finalize

import ml_dtypes
import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError, reading
from refimpl.model.ops import Array

CHUNK = 1 << 20  # weights that are checked at once
STORED_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class Layout:
    """The rows of a stored tensor that belong to one weight."""

    # Number of rows of each weight that shares the tensor, in the file's order
    rows: tuple[int, ...] = ()
    index: int = 0  # Which of these weights this is
    groups: int = 1  # Number of runs that each weight is cut into; the weights alternate run by run
    transposed: bool = False  # Whether the file holds [in, out]
    stack: int = 0  # Number of experts whose weights are stacked in the tensor; 0 if they are not
    expert: int = 0  # Which expert's weight this is

    @property
    def alone(self) -> bool:
        """Whether the weight is the whole tensor, rows first."""
        return not self.transposed and not self.stack and len(self.rows) < 2

    def weight_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one weight, [out, in] or [out], in a stored tensor of this shape."""
        one = stored[1:] if self.stack else stored
        every = (one[::-1] if self.transposed else one) or (1,)
        return (self.rows[self.index], *every[1:]) if len(self.rows) > 1 else every


OWN_TENSOR = Layout()  # a tensor of its own, rows first


def extract(stored: Array, layout: Layout) -> Array:
    """Cut one weight [out, in], or bias [out], out of the stored tensor; a view if possible.

    The stored tensor is [rows, in], [in, rows] or (a bias) [rows]; of a stack, one such per expert.

    Source: transformers: Phi-3 and GPT-2 concatenate the weights; GPT-NeoX puts each head's q, k
    and v together, Falcon each key-value head's k and v behind its queries; GPT-2's Conv1D holds
    [in, out].

    Example:
        >>> fused = np.arange(8).reshape(8, 1)   # two heads of (q, k), two rows each
        >>> extract(fused, Layout(rows=(4, 4), index=1, groups=2)).ravel().tolist()
        [2, 3, 6, 7]
    """
    runs = _runs(stored, layout)
    return runs if layout.groups == 1 else runs.reshape(-1, *runs.shape[2:])


def paste(stored: Array, weight: Array, layout: Layout) -> None:
    """Put one weight into the stored tensor, in place: the opposite of `extract`.

    Example:
        >>> fused = np.zeros((8, 1), int)
        >>> paste(fused, np.array([[1], [2], [3], [4]]), Layout(rows=(4, 4), index=1, groups=2))
        >>> fused.ravel().tolist()
        [0, 0, 1, 2, 0, 0, 3, 4]
    """
    runs = _runs(stored, layout)
    runs[...] = weight.reshape(runs.shape)


def _runs(stored: Array, layout: Layout) -> Array:
    """A view of a weight's runs of rows: [groups, rows, in], or [rows, in] of one group."""
    one = stored[layout.expert] if layout.stack else stored
    whole = one.T if layout.transposed else one
    one_group = layout.groups == 1
    runs = whole if one_group else whole.reshape(layout.groups, -1, *whole.shape[1:])
    if len(layout.rows) < 2:
        return runs
    start, stop = (
        sum(layout.rows[:i]) // layout.groups for i in (layout.index, layout.index + 1)
    )
    return runs[start:stop] if one_group else runs[:, start:stop]


class WeightFile:
    """An open file of weights, whose bytes are read when they are used.

    They are read, not mapped: a file that is cut, or a disk that fails, is an error like any other,
    and no signal that ends the process.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._lock, self._descriptor = path, Lock(), os.dup(file.fileno())
        self.size = os.fstat(self._descriptor).st_size
        finalize(self, os.close, self._descriptor)

    def read(self, start: int, size: int) -> Array:
        """Some of its bytes, uint8, read-only."""
        content = np.empty(size, np.uint8)
        left = content.data
        with reading(self.path, "a file that can be read to its end"):
            while left and (count := self._read_into(left, start)):
                left, start = left[count:], start + count
        if left:
            raise RefimplError(
                f"{self.path} was cut to {os.fstat(self._descriptor).st_size:,} bytes while it "
                "was used",
                "files that stay as they are during a run",
                "restore the file, and repeat the command",
            )
        content.flags.writeable = False
        return content

    def rows(self, start: int, width: int, count: int, rows: slice | Array) -> Array:
        """Some of the `count` rows of `width` bytes from `start` on, uint8 [rows, width]."""
        if isinstance(rows, slice):
            first, stop, _ = rows.indices(count)
            number = max(0, stop - first)
            return self.read(start + first * width, number * width).reshape(
                number, width
            )
        if (
            8 * len(rows) >= count
        ):  # one large read takes less time than many small ones
            return self.read(start, count * width).reshape(count, width)[rows]
        each = [self.read(start + int(row) * width, width) for row in rows]
        return np.stack(each) if each else np.empty((0, width), np.uint8)

    def _read_into(self, buffer: memoryview, start: int) -> int:
        """Read at most as many bytes as the buffer has; several threads may."""
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [buffer], start)
        with self._lock:  # on Windows
            os.lseek(self._descriptor, start, os.SEEK_SET)
            content = os.read(self._descriptor, len(buffer))
        buffer[: len(content)] = content
        return len(content)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: name, dtype (such as "BF16") and shape there, and its first byte."""

    file: WeightFile
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype of its values, which must be one of `STORED_DTYPES`."""
        return STORED_DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def array(self) -> Array:
        """All of the tensor, read-only; a single number, without axes, has the shape [1] here."""
        return self.rows(slice(None))

    @property
    def table(self) -> Array:
        """The tensor for looking up rows with `np.take`."""
        return self.array if len(self.shape) < 2 else self.columns(slice(None))

    def columns(self, columns: slice) -> Array:
        """Some columns of the table, for looking up rows with `np.take`."""
        return TableOnDisk(self, columns)  # type: ignore[return-value]

    def rows(self, rows: slice | Array) -> Array:
        """Some of its rows: a run of them, or those with these numbers."""
        count, *inner = self.shape or (1,)
        width = prod(inner) * self.numpy_dtype.itemsize
        content = self.file.rows(self.offset, width, count, rows)
        return content.reshape(-1).view(self.numpy_dtype).reshape(len(content), *inner)

    def pieces(self) -> Iterator[Array]:
        """All of its rows, some at a time."""
        count, *inner = self.shape or (1,)
        step = max(1, CHUNK // max(1, prod(inner)))
        for start in range(0, count, step):
            yield self.rows(slice(start, min(start + step, count)))


class TableOnDisk:
    """A table whose rows are read when `np.take` looks them up; as an array it is the whole."""

    def __init__(self, tensor: StoredTensor, columns: slice) -> None:
        self._tensor, self._columns, self.dtype = tensor, columns, tensor.numpy_dtype
        self.shape = tensor.shape[0], len(range(*columns.indices(tensor.shape[1])))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self._tensor.array[:, self._columns], dtype, copy=copy)

    def __array_function__(
        self, function: Any, types: Any, args: Any, options: Any
    ) -> Any:
        if (
            function is not np.take
            or options != {"axis": 0}
            or not isinstance(args[1], np.ndarray)
        ):
            return NotImplemented
        ids, place = np.unique(args[1], return_inverse=True)
        return self._tensor.rows(ids)[:, self._columns][place.reshape(args[1].shape)]


@dataclass(frozen=True)
class Weight:
    """One of our tensors."""

    stored: StoredTensor  # The file's tensor that holds it
    layout: Layout = OWN_TENSOR  # Which part of that tensor it is
    offset: float = 0.0  # Number added to every value after reading

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, [out, in] or [out]."""
        return self.layout.weight_shape(self.stored.shape)

    def read(
        self, dtype: npt.DTypeLike, rows: slice = slice(None), checked: bool = True
    ) -> Array:
        """Some rows, [out, in] or [out]: ``cast(rows of the stored tensor) + offset``, all finite.

        Example:
            >>> from refimpl import read_model
            >>> read_model("fixtures/llama").weights["lm_head.weight"].read("f8", slice(2)).shape
            (2, 32)
        """
        weight = self._cast(dtype, rows)
        if checked and count_bad(weight):
            self.check(dtype)
        return weight + np.array(self.offset, dtype) if self.offset else weight

    @property
    def as_stored(self) -> Array:
        """The weight in the dtype of the file, before the offset."""
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
        tensor, name = (
            f"{self.stored.file.path}: {self.stored.name}",
            np.dtype(dtype).name,
        )
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
                "use `dtype=float64`",
            )

    def _cast(self, dtype: npt.DTypeLike, rows: slice) -> Array:
        """Rows in the dtype of the computation, before the offset."""
        stored = self._rows(rows)
        if stored.dtype == np.float16 and dtype == np.float32:
            return widened(stored)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # the caller counts Inf and NaN
            return np.require(stored, dtype, ["A"])

    def _rows(self, rows: slice) -> Array:
        """Rows as stored; other parts of the tensor are not kept in memory with them."""
        layout = self.layout
        if layout.alone:
            return self.stored.rows(rows)
        if layout.stack:
            one = self.stored.rows(slice(layout.expert, layout.expert + 1))
            return extract(one, replace(layout, expert=0))[rows]
        if layout.transposed or layout.groups > 1:
            return extract(self.stored.array, layout)[rows].copy("K")
        first = sum(layout.rows[: layout.index])
        start, stop, _ = rows.indices(layout.rows[layout.index])
        return self.stored.rows(slice(first + start, first + max(start, stop)))


def widened(half: Array) -> Array:
    """Turn float16 into float32, five times as fast as `astype`: exponents are 15, then 127 more.

    Example:
        >>> widened(np.array([-1.5, 2.0**-24], np.float16)).tolist() == [-1.5, 2.0**-24]
        True
    """
    bits, small = half.view(np.uint16), np.array(2.0**-136, np.float32)
    if (
        not half.size or np.max(bits << 1) >= 0xF800 or small + small == 0
    ):  # Inf, NaN, subnormals
        return half.astype(np.float32)
    wide = bits.view(np.int16).astype(np.int32)
    wide <<= 13
    wide &= -0x70002000  # of the bits 28 to 31, all of which are the sign, the last one
    number = wide.view(np.float32)
    return np.multiply(number, np.float32(2.0**112), out=number)


def count_bad(values: Array) -> int:
    """Count the NaN and Inf among floating-point values of any shape."""
    return values.size - int(np.count_nonzero(np.isfinite(values)))
