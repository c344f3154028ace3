"""One weight of a model: the stored tensor that holds it, and how it is read."""

import mmap
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
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

    def release(self) -> None:
        """Free the memory of the pages read so far; views stay valid and are read again."""
        if hasattr(self.content, "madvise"):  # not on Windows
            self.content.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: name, dtype (such as "BF16") and shape there, and its first byte."""

    file: MappedFile
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def array(self) -> Array:
        """The tensor, a read-only view of the mapped file; its dtype must be one of `DTYPES`.

        A tensor without axes, a single number, has the shape [1] here.
        """
        dtype, count = DTYPES[self.dtype], int(np.prod(self.shape, dtype=np.int64))
        stored = np.frombuffer(self.file.content, dtype, count, self.offset)
        return stored.reshape(self.shape or 1)


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

    def check(self, dtype: npt.DTypeLike) -> None:
        """Refuse the weight if any value is NaN or Inf, as stored or in `dtype`, and count them."""
        values = cut(self.stored.array, self.layout)
        step = max(1, CHUNK // max(1, values[:1].size))
        bad_stored = bad_cast = 0
        for start in range(0, len(values), step):
            rows = slice(start, start + step)
            if bad := count_bad(self._cast(dtype, rows)):
                bad_cast += bad
                bad_stored += count_bad(values[rows])
            self.stored.file.release()
        tensor, name = f"{self.stored.file.path}: {self.stored.name}", np.dtype(dtype).name
        if bad_stored:
            raise RefimplError(
                f"{tensor} holds {bad_stored} NaN or Inf among {values.size} weights",
                "finite weights",
                "repair or replace the checkpoint",
            )
        if bad_cast:
            raise RefimplError(
                f"{tensor} holds {bad_cast} weights of {values.size} that {name} cannot hold",
                f"weights within the range of {name}",
                "use --dtype float64",
            )

    def _cast(self, dtype: npt.DTypeLike, rows: slice) -> Array:
        """Rows in the dtype of the computation, before the offset."""
        with np.errstate(over="ignore", invalid="ignore"):  # the caller counts Inf and NaN
            return np.require(cut(self.stored.array, self.layout)[rows], dtype, ["A"])


def count_bad(values: Array) -> int:
    """Count the NaN and Inf among floating-point values of any shape."""
    return values.size - int(np.count_nonzero(np.isfinite(values)))
