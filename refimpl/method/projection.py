"""The budget: the nearest allocation that prunes exactly the requested fraction."""

from bisect import bisect_left
from math import lcm
from operator import mul
from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from refimpl.arguments import (
    Fraction,
    checked,
    decimal,
    finite_vector,
    require,
    unit_sizes,
)
from refimpl.errors import RefimplError


@checked
def project(
    x: npt.ArrayLike,
    sizes: npt.ArrayLike,
    sparsity: Fraction,
    lo: float = 0.0,
    hi: npt.ArrayLike = 1.0,
    slopes: npt.ArrayLike | None = None,
) -> npt.NDArray[np.float64]:
    """Return the allocation nearest to `x` that meets the budget.

    argmin sum N_u (s_u - x_u)^2 / g_u with lo <= s_u <= hi_u and sum N_u s_u = S N, which is
    s_u = clip(x_u + g_u t, lo, hi_u) with the one t that meets the budget.

    Args:
        x: Desired fraction pruned per unit, [U]; may leave [0, 1].
        sizes: Weights per unit N_u, [U].
        sparsity: Target S over all weights, in [0, 1]: the requested decimal.
        lo: Least fraction pruned of any unit.
        hi: Greatest fraction pruned of any unit, or of each, [U].
        slopes: How easily each unit moves, g_u above 0, [U]; 1 for all if None.

    Returns:
        Fraction pruned per unit, [U]: the exact solution, rounded once.

    Raises:
        RefimplError: A number is NaN or out of range, or no allocation meets the budget.

    Differs: peers clamp and do not restore the budget.

    Example:
        >>> project([0.5, 0.9], [1, 3], 0.75).round(4)
        array([0.45, 0.85])
        >>> project([0.5, 1.4], [1, 1], 0.8).round(4)
        array([0.6, 1. ])
    """
    weights: list[int] = unit_sizes(sizes).tolist()
    desired = [
        v.as_integer_ratio()
        for v in finite_vector(x, "the allocation", len(weights)).tolist()
    ]
    each = np.full(len(weights), hi) if np.ndim(hi) == 0 else hi
    tops: list[float] = finite_vector(each, "hi", len(weights)).tolist()
    for top in {*tops}:
        require(lo, Annotated[float, Meta(ge=0, le=top)], "lo")
        require(top, Annotated[float, Meta(ge=lo, le=1)], "hi")
    # Floats are fractions. In units of 1 / scale all is whole, t too, so sums are exact and quick;
    # one rounding, the last, is left, however unequal the units.
    least, asked, most = decimal(lo), decimal(sparsity), [decimal(top) for top in tops]
    whole, room = sum(weights), sum(map(mul, weights, most))
    if not least <= asked <= room / whole:
        limit = float(room / whole)
        raise RefimplError(
            f"sparsity {sparsity} is infeasible with lo {lo:g} and hi {limit:g}",
            f"a sparsity in [{lo:g}, {limit:g}]",
            "change `sparsity`, `lo` or `hi`",
        )
    rates = [1.0] * len(desired)
    if slopes is not None:
        rates = finite_vector(slopes, "slopes", len(desired)).tolist()
    if min(rates) <= 0:
        raise RefimplError(
            f"a slope of {min(rates)}", "slopes above 0", "correct or omit slopes"
        )
    if asked in (least, room / whole):
        return np.full(len(desired), float(lo)) if asked == least else np.array(tops)

    ratios = [rate.as_integer_ratio() for rate in rates]
    common = lcm(*(d for _, d in ratios))
    slope = [n * (common // d) for n, d in ratios]
    decimals = (x.denominator for x in (least, asked, *most))
    scale = lcm(*slope) * lcm(*decimals, *(d for _, d in desired))
    low, high = int(least * scale), [int(top * scale) for top in most]
    budget = int(asked * scale) * whole
    wanted = [n * (scale // d) for n, d in desired]

    def allocation(t: int, parts: int = 1) -> list[int]:
        return [
            min(max(v * parts + g * t, low * parts), top * parts)
            for v, g, top in zip(wanted, slope, high, strict=True)
        ]

    def spent(t: int) -> int:
        return sum(map(mul, weights, allocation(t)))

    bends = sorted(
        {
            (end - v) // g
            for v, g, top in zip(wanted, slope, high, strict=True)
            for end in (low, top)
        }
    )
    k = bisect_left(bends, budget, key=spent)
    left, right = bends[k - 1], bends[k]  # the budget is met between these two
    below, above = spent(left), spent(right)
    parts = above - below
    t = left * parts + (right - left) * (budget - below)
    return np.array([s / (scale * parts) for s in allocation(t, parts)])
