"""The tolerance of a step: a stated factor of refimpl's own error in the candidate's dtype."""

from collections.abc import Mapping

import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.oracle.judging.measures import UNCHANGED, lost
from refimpl.oracle.judging.records import record_of

ERROR_FACTOR = 8.0  # of refimpl's own error
FLOOR = 64.0  # units in the last place, where that error happens to be small
FLOOR_16 = 4.0  # the same in 16 bits, where 64 units are half of a number
COSINE = 3.0  # six halves: a product, two norms, their product, the quotient, and as it is written
SPARSEGPT_FACTOR = 4.0  # right inverses of a Hessian differ by more than rounding
EPS = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "tf32": 2.0**-10,
}


def tolerance_of(step: str, truth: Array, own: float, dtype: str, stepwise: bool = False) -> float:
    """The largest error that a step may have (its truth in float64), if refimpl's own is this.

    ``8 own + 64 eps``, in 16 bits ``8 own + 4 eps``; for SparseGPT four times that; 0 for counts
    and bits. An alpha errs by ``alpha - 1`` times as much as the eigenvalues that it is made of. An
    alignment A is computed in float32 or more; its units are those of A, its error of ``1 - A``.
    """
    measure = record_of(step).measure
    if measure in ("counts", "bits"):
        return 0.0
    if measure == "lost":
        units = FLOOR if dtype == "float64" else COSINE
        return ERROR_FACTOR * own + units * min(EPS[dtype], EPS["float32"]) / _least_lost(truth)
    eps = EPS[arithmetic_of(step, dtype, stepwise)]
    factor = SPARSEGPT_FACTOR if step.startswith("sparsegpt") else 1.0
    if step.startswith("alphapruning") and step.endswith(".signal"):
        factor = max(1.0, float(truth.max()) - 1)
    return factor * (ERROR_FACTOR * own + (FLOOR_16 if eps > EPS["float32"] else FLOOR) * eps)


def arithmetic_of(step: str, dtype: str, stepwise: bool) -> str:
    """The dtype of a step: step by step float32 at least, if no state of the model is behind it."""
    return (
        "float32" if stepwise and record_of(step).exact and EPS[dtype] > EPS["float32"] else dtype
    )


def writing_error(step: str, truth: Array, array: Array, dtype: str, stepwise: bool) -> float:
    """What a step is off by where it is written in fewer bits than it is computed in."""
    unit = EPS.get(array.dtype.name, 0.0) / 2
    if record_of(step).measure == "lost":
        return unit / _least_lost(truth) if unit > EPS["float32"] else 0.0
    return unit if arithmetic_of(step, dtype, stepwise) != dtype else 0.0


def _least_lost(alignment: Array) -> float:
    """The smallest ``1 - A`` of alignments A, except where nothing was lost."""
    left = lost(alignment)
    return float(np.min(left[left > UNCHANGED], initial=1.0))


def dtype_of(actual: Mapping[str, Array]) -> str:
    """The dtype that a candidate computed in: the coarsest of its float arrays."""
    names = {value.dtype.name for value in actual.values()} & EPS.keys()
    if not names:
        raise RefimplError(
            "the candidate has no float array",
            f"arrays of {', '.join(EPS)}",
            "add --dtype, or write the results in the dtype of their computation",
        )
    return max(names, key=lambda name: EPS[name])
