"""The budget: the nearest allocation that prunes exactly the fraction asked for."""

from bisect import bisect_left
from math import lcm
from operator import mul

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.pruners.checks import decimal, finite_vector, number_in, unit_sizes


def project(
    x: npt.ArrayLike,
    sizes: npt.ArrayLike,
    sparsity: float,
    lo: float = 0.0,
    hi: float = 1.0,
    slopes: npt.ArrayLike | None = None,
) -> npt.NDArray[np.float64]:
    """Return the allocation nearest to `x` that meets the budget.

    argmin sum N_u (s_u - x_u)^2 / g_u with lo <= s_u <= hi and sum N_u s_u = S N, which is
    s_u = clip(x_u + g_u t, lo, hi) with the one t that meets the budget.

    Args:
        x: Desired fraction pruned per unit, [U]; may leave [0, 1].
        sizes: Weights per unit N_u, [U].
        sparsity: Target S over all weights, in [0, 1]: the decimal that was asked.
        lo: Least fraction pruned of any unit.
        hi: Greatest fraction pruned of any unit.
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
        v.as_integer_ratio() for v in finite_vector(x, "the allocation", len(weights)).tolist()
    ]
    number_in(sparsity, "sparsity", 0, 1)
    number_in(lo, "lo", 0, hi)
    number_in(hi, "hi", lo, 1)
    if not lo <= sparsity <= hi:
        raise RefimplError(
            f"sparsity {sparsity} is infeasible with lo {lo} and hi {hi}",
            f"a sparsity in [{lo}, {hi}]",
            "change --sparsity, --lo or --hi",
        )
    rates = [1.0] * len(desired)
    if slopes is not None:
        rates = finite_vector(slopes, "slopes", len(desired)).tolist()
    if min(rates) <= 0:
        raise RefimplError(f"a slope of {min(rates)}", "slopes above 0", "correct or omit slopes")
    if sparsity in (lo, hi):
        return np.full(len(desired), float(sparsity))

    # Floats are fractions. In units of 1 / scale all is whole, t too, so sums are exact and quick;
    # one rounding, the last, is left, however unequal the units.
    least, most, asked = decimal(lo), decimal(hi), decimal(sparsity)
    ratios = [rate.as_integer_ratio() for rate in rates]
    common = lcm(*(d for _, d in ratios))
    slope = [n * (common // d) for n, d in ratios]
    decimals = (x.denominator for x in (least, most, asked))
    scale = lcm(*slope) * lcm(*decimals, *(d for _, d in desired))
    low, high, budget = int(least * scale), int(most * scale), int(asked * scale) * sum(weights)
    wanted = [n * (scale // d) for n, d in desired]

    def allocation(t: int, parts: int = 1) -> list[int]:
        ends = low * parts, high * parts
        return [
            min(max(v * parts + g * t, ends[0]), ends[1])
            for v, g in zip(wanted, slope, strict=True)
        ]

    def spent(t: int) -> int:
        return sum(map(mul, weights, allocation(t)))

    bends = sorted(
        {(end - v) // g for v, g in zip(wanted, slope, strict=True) for end in (low, high)}
    )
    k = bisect_left(bends, budget, key=spent)
    left, right = bends[k - 1], bends[k]  # the budget is met between these two
    below, above = spent(left), spent(right)
    parts = above - below
    t = left * parts + (right - left) * (budget - below)
    return np.array([s / (scale * parts) for s in allocation(t, parts)])
