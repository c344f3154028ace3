"""Whether two computations agree: trace point by trace point, in the order of execution.

The measure is the relative error of the worst token. A mean would hide that token, and an angle or
a correlation does not depend on scale.
"""

from dataclasses import dataclass
from math import inf

import numpy as np

from refimpl.model.ops import Array

COMPARED_AT_ONCE = 1 << 20  # numbers


@dataclass(frozen=True)
class Agreement:
    """How far one array is from the expected one.

    Args:
        point: Its name, such as "blocks.3.q_rope".
        error: Relative error of the worst token; infinite if it cannot be computed.
        token: Place of that token, an index for every axis but the last; empty without an error.
        fault: Another fault, such as "3 NaN among 640 numbers"; empty if none.
    """

    point: str
    error: float
    token: tuple[int, ...] = ()
    fault: str = ""


def worst_token(actual: Array, expected: Array) -> tuple[float, tuple[int, ...]]:
    """Error and place of the worst token: ``max_t ||actual_t - expected_t|| / ||expected_t||``.

    Both arrays are [..., D] and finite; the error is infinite if a token should be 0 and is not.
    """
    rows, expected_rows = (x.reshape(-1, x.shape[-1]) for x in (actual, expected))
    step, worst, at = max(1, COMPARED_AT_ONCE // rows.shape[-1]), -1.0, 0
    for start in range(0, len(rows), step):
        a, b = (x[start : start + step].astype(np.float64) for x in (rows, expected_rows))
        error, size = (np.linalg.norm(x, axis=-1) for x in (a - b, b))
        zero = size == 0
        error = np.where(zero & (error > 0), inf, error / np.where(zero, 1, size))
        if error.max() > worst:
            worst, at = float(error.max()), start + int(error.argmax())
    token = np.unravel_index(at, expected.shape[:-1]) if expected.ndim > 1 else ()
    return worst, tuple(int(i) for i in token)


def agreement(point: str, actual: Array, expected: Array) -> Agreement:
    """Compare an array with the expected one, [..., D] and finite, of the same shape and dtype."""
    for name, bad in (("NaN", np.isnan(actual)), ("Inf", np.isinf(actual))):
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0][:-1])
            fault = f"{bad.sum():,} {name} among {actual.size:,} numbers"
            return Agreement(point, inf, first, fault)
    error, token = worst_token(actual, expected)
    unwritten = not actual.any() and expected.any()
    return Agreement(point, error, token, f"all {actual.size:,} numbers are 0" if unwritten else "")
