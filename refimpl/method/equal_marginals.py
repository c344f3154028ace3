"""The allocation with the least sum of errors, from the growth of each unit's error."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Bools, finite_vector, unit_sizes
from refimpl.errors import RefimplError
from refimpl.method.correction import RESOLVED
from refimpl.method.projection import project
from refimpl.model.ops import Array

RESIDUAL_BOUND = 0.5  # of the middle probe, in ln D: more is a bad fit
BELOW, AT, ABOVE = range(3)  # the probes of a unit, by sparsity


@dataclass(frozen=True)
class Growth:
    """How the error of each unit grows: ``D_u(s) ~ a_u exp(kappa_u (s - b_u))``."""

    level: Array  # a, the error at the base sparsity b, [U]; NaN if unknown, or rounding: 1e-12 max
    # kappa, [U]; NaN where a probe has no error, or two sparsities are equal
    rate: Array
    residual: Array  # ln D at b minus the line through the outer probes, [U]; NaN as for `rate`
    reach: Array  # sparsity up to which the fit is trusted, twice as far as the upper probe, [U]
    fits: Bools  # kappa > 0, and |residual| <= 0.5, [U]
    common_rate: (
        float | None
    )  # kappa of all units: the median over those that fit, if one does
    rate_spread: (
        float | None
    )  # standard deviation of kappa over those that fit, if two do


def growth(error: npt.ArrayLike, sparsity: npt.ArrayLike) -> Growth:
    """Fit how the error of each unit grows, from probes at three sparsities.

    kappa_u = (ln D_u(s_above) - ln D_u(s_below)) / (s_above - s_below);  a_u = D_u(s_at);
    reach_u = s_at + 2 (s_above - s_at)

    Args:
        error: D, the error when the unit alone is pruned, below, at and above its base sparsity,
            [3, U], at least 0; NaN where not probed.
        sparsity: The fractions pruned, [3, U].

    Raises:
        RefimplError: Shapes that do not fit, or a negative or infinite error.

    Example:
        >>> g = growth([[0.1], [0.2], [0.3]], [[0.5], [0.6], [0.7]])
        >>> g.rate.round(3), g.residual.round(3), g.fits
        (array([5.493]), array([0.144]), array([ True]))
    """
    d, s = np.asarray(error, np.float64), np.asarray(sparsity, np.float64)
    if (
        d.ndim != 2
        or d.shape[0] != 3
        or s.shape != d.shape
        or np.isinf(d).any()
        or (d < 0).any()
    ):
        raise RefimplError(
            f"errors of shape {d.shape} at sparsities of shape {s.shape}",
            "three rows of finite errors of at least 0, and of their sparsities",
            "pass the probes below, at and above the base sparsity",
        )
    error_or_0 = np.where(np.isnan(d), 0.0, d)
    positive = error_or_0 > RESOLVED * error_or_0.max(initial=0.0)
    log_d = np.where(positive, np.log(np.where(positive, d, 1.0)), np.nan)
    apart = s[ABOVE] > s[BELOW]
    width = np.where(apart, s[ABOVE] - s[BELOW], 1.0)
    rate = np.where(apart, (log_d[ABOVE] - log_d[BELOW]) / width, np.nan)
    residual = log_d[AT] - (log_d[BELOW] + rate * (s[AT] - s[BELOW]))
    reach = s[AT] + 2 * (s[ABOVE] - s[AT])
    fits = np.nan_to_num(rate) > 0
    fits &= np.abs(np.where(np.isnan(residual), np.inf, residual)) <= RESIDUAL_BOUND
    common = float(np.median(rate[fits])) if fits.any() else None
    spread = float(np.std(rate[fits], ddof=1)) if fits.sum() > 1 else None
    level = np.where(positive[AT], d[AT], np.nan)
    return Growth(level, rate, residual, reach, fits, common, spread)


def own_rate_error(grows: Growth, base: Array, sparsity: Array) -> Array:
    """Error of each unit's sparsity because its rate is not the common one.

    sd(s_u) = sd(kappa) |s_u - b_u + 1 / kappa| / kappa, from s_u of `equal_marginals` at a fixed t

    Args:
        grows: The fit.
        base: b, where the errors were measured, [U].
        sparsity: s, the allocation, [U].

    Returns:
        The error to first order, [U]; zeros if the spread of kappa is unknown.
    """
    kappa, spread = grows.common_rate or np.inf, grows.rate_spread or 0.0
    return np.asarray(spread * np.abs(sparsity - base + 1 / kappa) / kappa)


def equal_marginals(
    level: npt.ArrayLike,
    rate: npt.ArrayLike,
    base: npt.ArrayLike,
    sizes: npt.ArrayLike,
    sparsity: float,
    lo: float = 0.0,
    hi: npt.ArrayLike = 1.0,
) -> Array:
    """Return the allocation with the least sum of errors on the budget.

    argmin sum a_u exp(kappa_u (s_u - b_u)) with lo <= s_u <= hi_u and sum N_u s_u = S N, which is
    s_u = clip(b_u + (t - ln(kappa_u a_u / N_u)) / kappa_u, lo, hi_u): the error that one more
    weight costs, exp(t), is the same in every unit. With one kappa and units of one size this is
    the correction `Delta` of the centred logarithms of a, with strength 1 / kappa and unclipped.

    Args:
        level: a, the error of every unit at its base sparsity, [U]; NaN where unknown: such a unit
            gets the mean of ln(a / N) of the others.
        rate: kappa, above 0, [U].
        base: b, where the errors were measured, [U].
        sizes: Weights per unit N_u, [U].
        sparsity: Target S over all weights, in [0, 1].
        lo: Least fraction pruned of any unit.
        hi: Greatest fraction pruned of any unit, or of each, [U].

    Returns:
        Fraction pruned per unit, [U].

    Raises:
        RefimplError: A rate or a level that is not above 0, or an infeasible budget.

    Example:
        >>> equal_marginals([0.1, 0.2], [7.0, 7.0], [0.6, 0.6], [10, 10], 0.6).round(4)
        array([0.6495, 0.5505])
    """
    weights = unit_sizes(sizes).astype(np.float64)
    kappa = finite_vector(rate, "rate", weights.size)
    a, b = np.asarray(level, np.float64), finite_vector(base, "base", weights.size)
    known = ~np.isnan(a)
    if not ((kappa > 0).all() and (a[known] > 0).all()):
        raise RefimplError(
            "a rate or a level that is not above 0",
            "errors above 0 that grow with the sparsity; NaN for an unknown level",
            "fit them with growth",
        )
    log_density = np.where(known, np.log(np.where(known, a, 1.0) / weights), np.nan)
    mean = log_density[known].mean() if known.any() else 0.0
    log_density = np.where(known, log_density, mean)
    desired = b - (np.log(kappa) + log_density) / kappa
    return project(desired, sizes, sparsity, lo, hi, slopes=1 / kappa)
