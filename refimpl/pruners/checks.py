"""Array types, and arguments that several functions take: checked in one place."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError

Compat = Literal["exact", "peer"]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def unit_sizes(sizes: npt.ArrayLike) -> Ints:
    """The number of weights of each unit, [U] int64; refuses all but whole numbers from 1 on."""
    array = np.asarray(sizes)
    whole = array.ndim == 1 and array.size > 0 and np.issubdtype(array.dtype, np.integer)
    if not whole or array.min() < 1:
        raise RefimplError(
            f"unit sizes are {np.array2string(array, threshold=8)}",
            "a vector of whole numbers, each at least 1",
            "pass the number of weights of every unit",
        )
    return array.astype(np.int64)


def finite_vector(values: npt.ArrayLike, name: str, size: int | None = None) -> Floats:
    """One finite number per unit, [U] float64; `name` says in the error what they are."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or array.size != (size or array.size):
        raise RefimplError(
            f"{name} has the shape {array.shape}",
            f"a vector of {size or 'at least one'} numbers",
            "pass one number per unit",
        )
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array)).tolist()
        raise RefimplError(
            f"{name} is NaN or infinite at {bad}",
            "finite numbers",
            f"check the numbers that {name} was computed from",
        )
    return array


def read_only(array: npt.ArrayLike) -> npt.NDArray[Any]:
    """A view that records from outside this package cannot write through."""
    view: npt.NDArray[Any] = np.asarray(array).view()
    view.flags.writeable = False
    return view


def returned(
    base: str, what: str, value: Any, shapes: Sequence[tuple[int, ...]], finite: bool = True
) -> Floats:
    """What a base returned, whose package may be another one: numbers of one of some shapes."""
    try:
        x = np.asarray(value)
    except ValueError:  # rows of several lengths
        x = np.array(None)
    if x.dtype.kind not in "iuf" or x.shape not in shapes or (finite and not np.isfinite(x).all()):
        raise RefimplError(
            f"base {base}: its {what} returned {value!r:.60}",
            f"finite numbers of shape {' or '.join(str([*shape]) for shape in shapes)}",
            f"correct the {what} of {base}",
        )
    return x.astype(np.float64)


def decimal(value: float) -> Fraction:
    """The decimal that was requested, exactly: 7/10 for 0.7, not the nearest double."""
    return Fraction(repr(float(value)))


def score_matrix(score: npt.ArrayLike) -> Floats:
    """Scores [R, C] as they are; refuses what is not a matrix, or holds NaN."""
    matrix = np.asarray(score)
    if matrix.ndim != 2 or matrix.size == 0 or np.isnan(matrix).any():
        raise RefimplError(
            f"scores of shape {matrix.shape}, or NaN among them",
            "a matrix [out, in] of numbers",
            "check weights and activations for NaN",
        )
    return matrix
