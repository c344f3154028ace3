"""Spectra and their tails: the histogram, where a tail may start, and the law that fits each."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.ops import Array

BINS = 100


class Tail(NamedTuple):
    """The tail of a spectrum from index `start` on: its distance from its law, and exponent."""

    ks: float
    alpha: float
    start: int


def finite_matrix(weight: npt.ArrayLike) -> Array:
    """A weight in float64, [out, in]; refused unless it is a matrix of finite numbers."""
    matrix = np.asarray(weight, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0 or not np.isfinite(matrix).all():
        raise RefimplError(
            f"a weight of shape {matrix.shape}, or one with NaN or Inf",
            "a matrix [out, in] of finite numbers",
            "check the checkpoint",
        )
    return matrix


def positions(log10_spectrum: Array) -> Array:
    """Positions of the eigenvalues in the histogram, in bins from its left edge, [n]."""
    low, high = float(log10_spectrum[0]), float(log10_spectrum[-1])
    return (log10_spectrum - low) / ((high - low) / BINS or 1.0)  # no width: all in the first bin


def heights(places: Array) -> Array:
    """Numbers of eigenvalues in the bins, [BINS], from positions; the last has both its edges."""
    return np.bincount(np.clip(places.astype(np.int64), 0, BINS - 1), minlength=BINS)


def peak(log10_spectrum: Array) -> tuple[float, int]:
    """Left edge of the first highest bin, as an eigenvalue, and its lead over the next bin."""
    low, high = float(log10_spectrum[0]), float(log10_spectrum[-1])
    bins = heights(positions(log10_spectrum))
    highest = int(np.argmax(bins))
    lead = int(bins[highest]) - int(np.delete(bins, highest).max())
    return float(10 ** (low + (high - low) / BINS * highest)), lead


def candidates(positive: Array, x2: float, xmin: str) -> range:
    """Indices i <= n_all - 2 with lo <= lambda_i <= 1.5 x2."""
    lo = np.log10(0.95 * x2) if xmin == "shipped" else 0.95 * x2
    last = np.searchsorted(positive[:-1], 1.5 * x2, side="right")
    return range(int(np.searchsorted(positive[:-1], lo)), int(last))


def tails(positive: Array, starts: range) -> list[Tail]:
    """Every tail whose eigenvalues are not all equal.

    One candidate at a time: quadratic in time, but linear in memory.
    """
    logs = np.log(positive)
    return [Tail(*law, i) for i in starts if (law := _power_law(logs[i:])) is not None]


def least_ks(fits: list[Tail]) -> tuple[Tail, float | None]:
    """The tail closest to its law, the first of equals; its lead, None without a competitor."""
    best = min(fits, key=lambda tail: tail.ks)
    others = [tail.ks for tail in fits if tail.start != best.start]
    return best, min(others) - best.ks if others else None


def _power_law(log_tail: Array) -> tuple[float, float] | None:
    """KS distance and alpha of a tail, from its ascending logarithms; None if all are equal."""
    log_ratio = log_tail - log_tail[:1]
    total, n = float(log_ratio.sum()), log_tail.size
    if total == 0.0:
        return None
    alpha = 1 + n / total  # greater than 1, as every ratio is at least 1
    distance = np.abs(1 - np.exp((1 - alpha) * log_ratio) - np.arange(n) / n)
    return float(distance.max()), alpha
