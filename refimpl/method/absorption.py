"""The absorption coefficient: the share of a drift that reaches the end; how sure a mean is."""

from math import cos, pi, sin, sqrt

import numpy as np
import numpy.typing as npt

from refimpl.method.perturbation import ratio
from refimpl.model.ops import Array

CONFIDENCE = 0.95


def nan_mean(x: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """Mean over the entries that are not NaN; NaN where there are none.

    Args:
        x: Values, any shape.
        axis: Axes to average over; all if None.

    Returns:
        Means, the shape of `x` without `axis`.

    Example:
        >>> float(nan_mean(np.array([1.0, np.nan, 3.0])))
        2.0
    """
    numbers = ~np.isnan(x)
    return ratio(
        np.sum(np.where(numbers, x, 0.0), axis=axis), np.sum(numbers, axis=axis)
    )


def surviving_drift(last: Array, first: Array) -> Array:
    """Share of each token's drift that reaches the end: ``R_L / R_l``.

    Args:
        last: Drift after the last block, R_L, [tokens].
        first: Drift after the perturbed block, R_l, [tokens].

    Returns:
        The ratio, [tokens]; NaN where R_l is zero or a drift is NaN.

    Source: arXiv:2606.15161.

    Example:
        >>> surviving_drift(np.array([0.2, 0.1]), np.array([0.1, 0.0])).tolist()
        [2.0, nan]
    """
    return ratio(last, first)


def passed_on(first: Array, last: Array) -> Array:
    """Share of a drift that is left if later blocks pass the error on: ``||h_l|| / ||h_L||``.

    With this share p and the growth of the error itself, g = ||e_L|| / ||e_l||, each token has
    R_L / R_l = g p: the share of a drift falls where the stream grows more than the error.

    Args:
        first: Length of the clean state after the perturbed block, ||h_l||, [tokens].
        last: Its length after the last block, ||h_L||, [tokens].

    Returns:
        p, [tokens]; NaN where h_L is zero.

    Example:
        >>> passed_on(np.array([1.0, 3.0]), np.array([4.0, 3.0])).tolist()
        [0.25, 1.0]
    """
    return ratio(first, last)


def absorption_coefficient(ratios: Array) -> tuple[Array, Array]:
    """``r_l = E[R_L / R_l]``: mean over draws, then over sequences, with its standard error.

    Args:
        ratios: Mean ratio over tokens per sequence and draw, [sequences, draws, ...].

    Returns:
        The coefficient [...], NaN without a value; and its standard error over the sequence means
        [...], NaN with fewer than two of them.

    Source: arXiv:2606.15161; docs/explanation/method.md, section 3, for the order of the means.

    Example:
        >>> r, stderr = absorption_coefficient(np.array([[0.4, 0.6], [0.7, 0.7]]))
        >>> float(r.round(6)), float(stderr.round(6))
        (0.6, 0.1)
    """
    per_sequence = nan_mean(ratios, axis=1)
    mean = nan_mean(per_sequence, axis=0)
    numbers = ~np.isnan(per_sequence)
    n = numbers.sum(axis=0)
    square = np.square(np.where(numbers, per_sequence - mean, 0.0)).sum(axis=0)
    return mean, np.sqrt(ratio(square, np.maximum(n - 1, 0) * n))


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Standard errors within which Student's t lies with a probability, on both sides of 0.

    Args:
        freedom: Degrees of freedom, one fewer than the samples; at least 1.
        confidence: The probability, in (0, 1).

    Returns:
        The quantile, to about 1e-12 of itself.

    Example:
        >>> [round(t_quantile(n), 3) for n in (1, 2, 3, 7)]
        [12.706, 4.303, 3.182, 2.365]
    """
    low, high = (
        0.0,
        pi / 2,
    )  # of atan(t / sqrt(freedom)), where the distribution is a finite sum
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _within(middle, freedom) < confidence else (low, middle)
        )
    return sqrt(freedom) * sin(low) / cos(low)


def _within(angle: float, freedom: int) -> float:
    """Probability that |t| is at most sqrt(freedom) tan(angle)."""
    odd = freedom % 2
    term = cos(angle) if odd else 1.0
    total = 0.0
    for i in range(1 + odd, freedom, 2):
        total += term
        term *= cos(angle) ** 2 * i / (i + 1)
    total *= sin(angle)
    return 2 / pi * (angle + total) if odd else total


def jackknife(left_out: npt.ArrayLike) -> Array:
    """Standard error of a number from samples, by leaving out one sample at a time.

    stderr^2 = (n - 1) / n sum_i (x_i - mean x)^2

    Args:
        left_out: x_i, the number from all n samples but the i-th, [n, ...].

    Returns:
        Standard errors, [...]; NaN with fewer than two samples, or where a number is.

    Example:
        >>> samples = np.array([1.0, 2.0, 4.0])
        >>> round(float(jackknife((samples.sum() - samples) / 2)), 6)  # that of their mean
        0.881917
    """
    x = np.asarray(left_out, np.float64)
    if len(x) < 2:
        return np.full(x.shape[1:], np.nan)
    return np.sqrt((len(x) - 1) / len(x) * np.square(x - x.mean(axis=0)).sum(axis=0))
