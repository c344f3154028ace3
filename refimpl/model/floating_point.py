"""Floating-point numbers as bits, and their errors, which stop the computation."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.ops import Array

HALF_PIECE = 1 << 16  # numbers cast at a time


@contextmanager
def loud(dtype: npt.DTypeLike) -> Iterator[None]:
    """Raise an error on overflow, division by zero and invalid operations.

    Args:
        dtype: Dtype of the computation, for the message.

    Raises:
        RefimplError: A number is beyond the range of the dtype.

    Example:
        >>> with loud(np.float32):
        ...     np.float32(1e38) * np.float32(10)
        Traceback (most recent call last):
        ...
        refimpl.errors.RefimplError: a number is beyond the range of float32 (overflow ...
        expected: weights and states within the range of float32
        next: use --dtype float64; with score, try a smaller --eta; otherwise check the weights
    """
    name = np.dtype(dtype).name
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            yield
    except FloatingPointError as error:
        raise RefimplError(
            f"a number is beyond the range of {name} ({error})",
            f"weights and states within the range of {name}",
            "use --dtype float64; with score, try a smaller --eta; otherwise check the weights",
        ) from error


def bits_of(values: Array) -> Array:
    """The bits of floating-point values as whole numbers: a view, and a plain array.

    Example:
        >>> bits_of(np.array([0.0, -2.0], np.float32)).tolist()
        [0, 3221225472]
    """
    return np.asarray(values).view(f"u{values.dtype.itemsize}")


def is_zero(values: Array) -> Array:
    """Whether values are zero, of either sign, read from their bits.

    Example:
        >>> is_zero(np.array([0.0, -0.0, 1e-45], np.float32)).tolist()
        [True, True, False]
    """
    return (bits_of(values) << 1) == 0  # without the sign


def float32_of_half(values: Array) -> Array:
    """Cast float16 to float32, in pieces that stay in a core's cache: faster than NumPy's cast.

    The exponent of a float16 moved to that of a float32 is 112 too low, whatever it is, as
    subnormal numbers and 0 become subnormal; so ``2^112 x`` of it is exact. Inf and NaN, whose
    exponent is the highest, become 2^16 or more: their piece is cast by NumPy.

    Example:
        >>> float32_of_half(np.array([1.5, -0.0, 6e-8, np.inf], np.float16)).tolist()
        [1.5, -0.0, 5.960464477539063e-08, inf]
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    cast = np.empty(flat.size, np.float32)
    for start in range(0, flat.size, HALF_PIECE):
        piece = slice(start, start + HALF_PIECE)
        bits, number = cast.view(np.int32)[piece], cast[piece]
        np.left_shift(flat.view(np.int16)[piece], 13, out=bits, dtype=np.int32)
        bits &= ~0x70000000  # copies of the sign bit; bits from 13 down are 0
        number *= np.float32(2.0**112)
        if max(number.max(), -number.min()) >= 2.0**16:
            number[:] = flat[piece]
    return cast.reshape(values.shape)
