"""How far a candidate may be off: a stated factor of what its dtype costs refimpl itself.

Three numbers are known for each step: the truth in float64, the same algorithm run in the
candidate's dtype, and the candidate. So a tolerance is not guessed, but derived from the second.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.oracle.compare import error_of, measure_of

FACTOR = 8.0  # of refimpl's own error
FLOOR = 64.0  # units in the last place, where that error happens to be small
DTYPES = ("float32", "float64")


def own_errors(truth: Mapping[str, Array], own: Mapping[str, Array]) -> dict[str, float]:
    """How far refimpl itself is off in a dtype, step by step.

    Args:
        truth: Every step in float64.
        own: Every step in float32.

    Returns:
        Errors by name, as `error_of` measures them.
    """
    return {
        step: error_of(step, own[step], value, measure_of(step, value.dtype))[0]
        for step, value in truth.items()
    }


def tolerance_of(step: str, truth: Array, own: float, dtype: npt.DTypeLike) -> float:
    """How far a candidate may be off: ``(FACTOR own + FLOOR eps_32) eps / eps_32``.

    Rounding costs in proportion to the unit of the dtype, so float64's is float32's in small.

    Args:
        step: Its name.
        truth: What it should be.
        own: refimpl's own error in float32.
        dtype: Of the candidate, float32 or float64.

    Returns:
        The largest error; 0 for counts and bits.

    Source:
        ours.

    Example:
        >>> f"{tolerance_of('embed', np.zeros(1), 1e-6, np.float32):.1e}"
        '1.6e-05'
    """
    if measure_of(step, truth.dtype) in ("counts", "bits"):
        return 0.0
    unit, single = np.finfo(np.dtype(dtype)).eps, np.finfo(np.float32).eps
    return float((FACTOR * own + FLOOR * single) * (unit / single))


def dtype_of(actual: Mapping[str, Array]) -> str:
    """The dtype a candidate computed in: the coarsest of its float arrays.

    Args:
        actual: Its arrays by name.

    Returns:
        "float32" or "float64".

    Raises:
        RefimplError: No float array, or another dtype.

    Example:
        >>> dtype_of({"a": np.ones(1), "b": np.ones(1, np.float32)})
        'float32'
    """
    floats = {x.dtype.name: x.dtype.itemsize for x in actual.values() if x.dtype.kind in "fV"}
    name = min(floats, key=lambda name: floats[name], default="")
    if name not in DTYPES:
        raise RefimplError(
            f"a candidate in {name or 'no float dtype'}",
            " or ".join(DTYPES),
            "say --dtype, or write the results in the dtype they were computed in",
        )
    return name
