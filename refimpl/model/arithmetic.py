"""Arithmetic that does not warn and go on."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError


@contextmanager
def loud(dtype: npt.DTypeLike) -> Iterator[None]:
    """Turn overflow, division by zero and invalid operations into an error.

    Args:
        dtype: Of the computation, for the message.

    Raises:
        RefimplError: A number left the range of the dtype.

    Example:
        >>> with loud(np.float32):
        ...     np.float32(1e38) * np.float32(10)
        Traceback (most recent call last):
        ...
        refimpl.errors.RefimplError: a number beyond the range of float32 (overflow ...
        expected: weights and states within the range of float32
        next: use --dtype float64, or (score) a smaller --eta; else the weights are damaged
    """
    name = np.dtype(dtype).name
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            yield
    except FloatingPointError as error:
        raise RefimplError(
            f"a number beyond the range of {name} ({error})",
            f"weights and states within the range of {name}",
            "use --dtype float64, or (score) a smaller --eta; else the weights are damaged",
        ) from error
