"""The uncertainty of a mean over a few samples."""

from math import cos, pi, sin, sqrt

import numpy as np
import numpy.typing as npt

from refimpl.model.ops import Array

CONFIDENCE = 0.95


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
    low, high = 0.0, pi / 2  # of atan(t / sqrt(freedom)), where the distribution is a finite sum
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
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
