"""Arguments that every count and allocation takes, checked in one place."""

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError


def unit_sizes(sizes: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the number of weights of each unit as integers, refusing anything else.

    Args:
        sizes: Weights per unit, [U].

    Returns:
        The same numbers, [U], int64.

    Raises:
        RefimplError: Not a non-empty vector of whole numbers of at least 1.

    Source: docs/explanation/method.md, "The budget, exactly" (ours).

    Example:
        >>> unit_sizes([3, 5])
        array([3, 5])
    """
    array = np.asarray(sizes)
    whole = array.ndim == 1 and array.size > 0 and np.issubdtype(array.dtype, np.integer)
    if not whole or array.min() < 1:
        raise RefimplError(
            f"unit sizes are {np.array2string(array, threshold=8)}",
            "a vector of whole numbers, each at least 1",
            "give the number of weights of every unit",
        )
    return array.astype(np.int64)


def finite_vector(
    values: npt.ArrayLike, name: str, size: int | None = None
) -> npt.NDArray[np.float64]:
    """Return one finite number per unit in float64, refusing anything else.

    Args:
        values: One number per unit, [U].
        name: What the numbers are, for the error.
        size: The number of units U, where it is known.

    Returns:
        The same numbers, [U], float64.

    Raises:
        RefimplError: Not a non-empty vector, of another length, or NaN or Inf among them.

    Source: docs/explanation/method.md, "The budget, exactly" (ours).

    Example:
        >>> finite_vector([1, 2], "alpha")
        array([1., 2.])
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or array.size != (size or array.size):
        raise RefimplError(
            f"{name} has the shape {array.shape}",
            f"a vector of {size or 'at least one'} numbers",
            "give one number per unit",
        )
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array)).tolist()
        raise RefimplError(
            f"{name} is NaN or infinite at {bad}", "finite numbers", "check what it came from"
        )
    return array


def number_in(value: float, name: str, low: float, high: float) -> float:
    """Return a number of a closed range, refusing anything else, NaN included.

    Args:
        value: The number.
        name: What it is, for the error.
        low: Least value allowed.
        high: Greatest value allowed.

    Returns:
        The same number as a float.

    Raises:
        RefimplError: The number is outside [low, high] or NaN.

    Source: docs/explanation/method.md, "The budget, exactly" (ours).

    Example:
        >>> number_in(0.7, "sparsity", 0, 1)
        0.7
    """
    if not low <= value <= high:
        raise RefimplError(
            f"{name} is {value}", f"a number in [{low:g}, {high:g}]", f"change {name}"
        )
    return float(value)
