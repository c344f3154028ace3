"""Floating-point errors that stop the computation instead of printing a warning."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError


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
