"""The absorption coefficient: the share of a drift that reaches the end."""

import numpy as np

from refimpl.method.perturbation import ratio
from refimpl.model.ops import Array


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
    return ratio(np.sum(np.where(numbers, x, 0.0), axis=axis), np.sum(numbers, axis=axis))


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
