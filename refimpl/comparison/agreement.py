"""Whether two computations agree: trace point by trace point, in the order of execution.

The measure is the relative error of the worst token. A mean would hide that token, and an angle or
a correlation does not depend on scale.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from refimpl.comparison.causes import usual_causes
from refimpl.model.ops import Array

COMPARED_AT_ONCE = 1 << 20  # numbers
GATES = {"float64": 1e-12, "float32": 1e-5}
WIDE, WIDE_FLOAT32 = 256, 1e-4  # longer sums round more


@dataclass(frozen=True)
class Agreement:
    """How far one array is from the expected one.

    Args:
        point: Its name, such as "blocks.3.q_rope".
        dtype: The expected dtype.
        error: Relative error of the worst token; infinite if it cannot be computed.
        token: Place of that token, an index for every axis but the last; empty without an error.
        fault: Another fault, such as "3 NaN among 640 numbers"; empty if none.
    """

    point: str
    dtype: str
    error: float
    token: tuple[int, ...] = ()
    fault: str = ""

    def within(self, tolerance: float) -> bool:
        """Whether there is no fault, and the error is at most `tolerance`."""
        return not self.fault and self.error <= tolerance

    @property
    def causes(self) -> tuple[str, ...]:
        """Usual causes if this point is the first to go wrong, the likeliest first."""
        return usual_causes(self.point, self.dtype, self.error, self.fault)


def gate_of(dtype: npt.DTypeLike, hidden_size: int) -> float:
    """Largest error of the worst token: 1e-12 in float64, 1e-5 in float32, 1e-4 if D >= 256."""
    name = np.dtype(dtype).name
    return WIDE_FLOAT32 if name == "float32" and hidden_size >= WIDE else GATES[name]


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


def agreement(point: str, actual: Array | None, expected: Array) -> Agreement:
    """Compare an array, None if it is missing, with the expected one, [..., D] and finite."""
    dtype = expected.dtype.name
    if actual is None:
        return Agreement(point, dtype, inf, fault="missing")
    if actual.shape != expected.shape:
        fault = f"shape {list(actual.shape)}, expected {list(expected.shape)}"
        return Agreement(point, dtype, inf, fault=fault)
    for name, bad in (("NaN", np.isnan(actual)), ("Inf", np.isinf(actual))):
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0][:-1])
            fault = f"{bad.sum():,} {name} among {actual.size:,} numbers"
            return Agreement(point, dtype, inf, first, fault)
    error, token = worst_token(actual, expected)
    fault = ""
    if actual.dtype != expected.dtype:
        fault = f"dtype {actual.dtype}, expected {dtype}"
    elif not actual.any() and expected.any():
        fault = f"all {actual.size:,} numbers are 0"
    return Agreement(point, dtype, error, token, fault)


def agreements(actual: Mapping[str, Array], expected: Mapping[str, Array]) -> tuple[Agreement, ...]:
    """Compare the expected arrays, in their order, with the actual ones of the same names."""
    return tuple(agreement(name, actual.get(name), value) for name, value in expected.items())


def first_over(points: Iterable[Agreement], tolerance: float) -> Agreement | None:
    """The first point over the tolerance in the order of execution, or None."""
    return next((point for point in points if not point.within(tolerance)), None)
