"""How far a candidate may be off: a stated factor of what its dtype costs refimpl itself.

Three numbers are known for each step: the truth in float64, the same algorithm run in the
candidate's dtype, and the candidate. So a tolerance is not guessed, but derived from the second.
"""

from collections.abc import Mapping

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.oracle.judging.measures import error_of, measure_of

FACTOR = 8.0  # of refimpl's own error
FLOOR = 64.0  # units in the last place, where that error happens to be small
FLOOR_16 = 4.0  # the same in 16 bits, where 64 units are half of a number
SPARSEGPT = 4.0  # times both behind a Hessian: right inverses of it differ by more than rounding
UNITS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def own_errors(truth: Mapping[str, Array], own: Mapping[str, Array]) -> dict[str, float]:
    """How far refimpl itself is off in a dtype, step by step.

    Args:
        truth: Every step in float64.
        own: Every step in the other dtype.

    Returns:
        Errors by name, as `error_of` measures them; infinite where a number should be 0 and is not.
    """
    return {
        step: error_of(step, own[step], value, measure_of(step, value.dtype))[0]
        for step, value in truth.items()
    }


def tolerance_of(step: str, truth: Array, own: float, dtype: str) -> float:
    """How far a candidate may be off.

    ``FACTOR own + FLOOR eps``, with `FLOOR_16` in 16 bits; for SparseGPT `SPARSEGPT` times that. An
    alpha errs by ``alpha - 1`` times as much as the eigenvalues that it is made of.

    Args:
        step: Its name.
        truth: What it should be.
        own: refimpl's own error in the dtype.
        dtype: Of the candidate, one of `UNITS`.

    Returns:
        The largest error; 0 for counts and bits.

    Source:
        ours.

    Example:
        >>> import numpy as np
        >>> for dtype, own in (("float32", 1e-6), ("bfloat16", 1e-3)):
        ...     print(f"{tolerance_of('embed', np.zeros(1), own, dtype):.1e}")
        1.6e-05
        3.9e-02
    """
    if measure_of(step, truth.dtype) in ("counts", "bits"):
        return 0.0
    unit, wider = UNITS[dtype], SPARSEGPT if step.startswith("sparsegpt.") else 1.0
    if step == "alphapruning.signal":
        wider = max(1.0, float(truth.max()) - 1)
    return wider * (FACTOR * own + (FLOOR_16 if unit > UNITS["float32"] else FLOOR) * unit)


def dtype_of(actual: Mapping[str, Array]) -> str:
    """The dtype a candidate computed in: the coarsest of its float arrays.

    Args:
        actual: Its arrays by name.

    Returns:
        One of `UNITS`.

    Raises:
        RefimplError: No float array.

    Example:
        >>> import numpy as np
        >>> dtype_of({"a": np.ones(1), "b": np.ones(1, np.float32), "c": np.ones(1, np.int64)})
        'float32'
    """
    found = {value.dtype.name for value in actual.values()} & UNITS.keys()
    if not found:
        raise RefimplError(
            "a candidate with no float array",
            f"arrays of {', '.join(UNITS)}",
            "say --dtype, or write the results in the dtype they were computed in",
        )
    return max(found, key=lambda name: UNITS[name])
