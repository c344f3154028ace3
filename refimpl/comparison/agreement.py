"""Whether two computations agree: trace point by trace point, in the order of execution.

The measure is the relative error of the worst token: a mean would hide it, and an angle or a
correlation is blind to scale.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from refimpl.comparison.causes import usual_causes
from refimpl.model.ops import Array

PIECE = 1 << 20  # numbers compared at once
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
WIDE, WIDE_FLOAT32 = 256, 1e-4  # longer sums round more


@dataclass(frozen=True)
class Agreement:
    """How far one array is from what it should be.

    Args:
        point: Its name, such as "blocks.3.q_rope".
        dtype: What it should be.
        error: Relative error of the worst token; infinite where there is none.
        token: Where that token is, an index for every axis but the last; empty without an error.
        fault: What no error says, such as "3 NaN among 640 numbers"; empty if nothing.
    """

    point: str
    dtype: str
    error: float
    token: tuple[int, ...] = ()
    fault: str = ""

    def within(self, tolerance: float) -> bool:
        """Whether it is as it should be.

        Args:
            tolerance: Largest error of the worst token.

        Returns:
            True without a fault and with an error of at most `tolerance`.
        """
        return not self.fault and self.error <= tolerance

    @property
    def causes(self) -> tuple[str, ...]:
        """What usually makes this point the first to go wrong, the likeliest first."""
        return usual_causes(self.point, self.dtype, self.error, self.fault)


def tolerance_of(dtype: npt.DTypeLike, hidden_size: int) -> float:
    """How far the worst token may be off.

    Args:
        dtype: Of the computation.
        hidden_size: D of the model.

    Returns:
        1e-12 in float64; in float32 1e-5, and 1e-4 from a hidden size of 256 on.

    Raises:
        KeyError: Another dtype.

    Source:
        ours; measured against transformers in float64 with its casts to float32 lifted.

    Example:
        >>> tolerance_of("float32", 32), tolerance_of("float32", 576), tolerance_of("float64", 576)
        (1e-05, 0.0001, 1e-12)
    """
    name = np.dtype(dtype).name
    return WIDE_FLOAT32 if name == "float32" and hidden_size >= WIDE else TOLERANCE[name]


def worst_token(actual: Array, expected: Array) -> tuple[float, tuple[int, ...]]:
    """Relative error of the worst token: ``max_t ||actual_t - expected_t|| / ||expected_t||``.

    Args:
        actual: What was computed, [..., D], finite; all axes but the last count tokens (of heads).
        expected: What it should be, of the same shape.

    Returns:
        The largest error, and where; infinite where a token should be 0 and is not.

    Source:
        ours.

    Example:
        >>> worst_token(np.array([[3.0, 4.0], [3.0, 4.5]]), np.array([[3.0, 4.0], [3.0, 4.0]]))
        (0.1, (1,))
    """
    rows, right = (x.reshape(-1, x.shape[-1]) for x in (actual, expected))
    step, worst, where = max(1, PIECE // rows.shape[-1]), -1.0, 0
    for start in range(0, len(rows), step):
        a, b = (x[start : start + step].astype(np.float64) for x in (rows, right))
        error, size = (np.linalg.norm(x, axis=-1) for x in (a - b, b))
        nothing = size == 0
        error = np.where(nothing & (error > 0), inf, error / np.where(nothing, 1, size))
        if error.max() > worst:
            worst, where = float(error.max()), start + int(error.argmax())
    token = np.unravel_index(where, expected.shape[:-1]) if expected.ndim > 1 else ()
    return worst, tuple(int(i) for i in token)


def agreement(point: str, actual: Array | None, expected: Array) -> Agreement:
    """Compare one array with what it should be.

    Args:
        point: Its name.
        actual: What was computed; None if nothing was.
        expected: What it should be, [..., D], finite.

    Returns:
        How far it is off, or what else is wrong with it.

    Source:
        ours.

    Example:
        >>> agreement("logits", np.zeros((1, 2)), np.ones((1, 2))).fault
        'all 2 numbers are 0'
    """
    dtype = expected.dtype.name
    if actual is None:
        return Agreement(point, dtype, inf, fault="missing")
    if actual.shape != expected.shape:
        fault = f"shape {list(actual.shape)}, expected {list(expected.shape)}"
        return Agreement(point, dtype, inf, fault=fault)
    for name, found in (("NaN", np.isnan(actual)), ("Inf", np.isinf(actual))):
        if found.any():
            first = tuple(int(i) for i in np.argwhere(found)[0][:-1])
            fault = f"{found.sum():,} {name} among {actual.size:,} numbers"
            return Agreement(point, dtype, inf, first, fault)
    error, token = worst_token(actual, expected)
    fault = ""
    if actual.dtype != expected.dtype:
        fault = f"dtype {actual.dtype}, expected {dtype}"
    elif not actual.any() and expected.any():
        fault = f"all {actual.size:,} numbers are 0"
    return Agreement(point, dtype, error, token, fault)


def agreements(actual: Mapping[str, Array], expected: Mapping[str, Array]) -> tuple[Agreement, ...]:
    """Compare what was computed with what it should be.

    Args:
        actual: Arrays by name; what is not expected is not looked at.
        expected: Arrays by name, in the order of execution.

    Returns:
        One per expected array, in their order.

    Source:
        ours.

    Example:
        >>> right = {"embed": np.ones((1, 2)), "logits": np.ones((1, 3))}
        >>> [found.fault for found in agreements({"embed": np.ones((1, 2))}, right)]
        ['', 'missing']
    """
    return tuple(agreement(name, actual.get(name), value) for name, value in expected.items())


def first_over(found: Iterable[Agreement], tolerance: float) -> Agreement | None:
    """The first point that is not as it should be: where to look, as later ones only follow it.

    Args:
        found: In the order of execution.
        tolerance: Largest error of the worst token.

    Returns:
        It, or None.

    Source:
        ours.

    Example:
        >>> found = [Agreement("embed", "float32", 0.0), Agreement("logits", "float32", 0.1)]
        >>> first_over(found, 1e-5).point
        'logits'
    """
    return next((one for one in found if not one.within(tolerance)), None)
