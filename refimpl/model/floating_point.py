"""Floating-point numbers as bits, and their errors, which stop the computation."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.ops import Array


@contextmanager
def loud(dtype: npt.DTypeLike) -> Iterator[None]:
    """Turn overflow, division by zero and invalid operations into an error that names the dtype.

    Example:
        >>> with loud(np.float32):
        ...     np.float32(1e38) * np.float32(10)
        Traceback (most recent call last):
        ...
        refimpl.errors.RefimplError: a number is beyond the range of float32 (overflow ...
        expected: weights and states within the range of float32
        next: use `dtype=float64`; with score, try a smaller `eta`; otherwise check the weights
    """
    name = np.dtype(dtype).name
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            yield
    except FloatingPointError as error:
        raise RefimplError(
            f"a number is beyond the range of {name} ({error})",
            f"weights and states within the range of {name}",
            "use `dtype=float64`; with score, try a smaller `eta`; otherwise check the weights",
        ) from error


def bits_of(values: Array) -> Array:
    """The bits of floating-point values as whole numbers: a view, and a plain array."""
    return np.asarray(values).view(f"u{values.dtype.itemsize}")


def is_zero(values: Array) -> Array:
    """Whether values are zero, of either sign, read from their bits.

    Example:
        >>> is_zero(np.array([0.0, -0.0, 1e-45], np.float32)).tolist()
        [True, True, False]
    """
    return (bits_of(values) << 1) == 0  # without the sign
