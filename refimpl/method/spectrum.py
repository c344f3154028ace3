"""Spectra of weights and their tails: where a tail may start, and the power law that fits it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from refimpl.arguments import checked
from refimpl.errors import RefimplError
from refimpl.model.ops import Array

BINS = 100


@dataclass(frozen=True)
class PowerLaw:
    """A power law fitted to the upper end of a spectrum: p(lambda) ~ lambda^-alpha."""

    alpha: float  # exponent, greater than 1
    start: int  # first eigenvalue of the tail, among the positive ones, ascending
    ks: float  # Kolmogorov-Smirnov distance of the tail from the fit
    zeros_dropped: int  # zero eigenvalues left out


@checked
def esd(weight: npt.ArrayLike) -> Array:
    """Return the empirical spectral density of a linear: its squared singular values.

    lambda = svdvals(W)^2, ascending, unnormalised; 0 where the singular value is at most
    max(out, in) * eps * largest, which rounding cannot tell from 0

    Args:
        weight: [out, in], any float dtype.

    Returns:
        lambda, [min(out, in)], float64, ascending.

    Raises:
        RefimplError: The weight is not a matrix, or holds NaN or Inf.

    Differs: the peer works in float32, and its small singular values include rounding noise.

    Example:
        >>> esd([[3.0, 0.0], [0.0, 2.0]])
        array([4., 9.])
    """
    matrix = np.asarray(weight, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0 or not np.isfinite(matrix).all():
        raise RefimplError(
            f"a weight of shape {matrix.shape}, or one with NaN or Inf",
            "a matrix [out, in] of finite numbers",
            "check the checkpoint",
        )
    singular = np.linalg.svd(matrix, compute_uv=False)[::-1]
    noise = max(matrix.shape) * np.finfo(np.float64).eps * singular[-1]
    return np.where(singular > noise, singular, 0.0) ** 2


@checked
def alphapruning_alpha(
    eigenvalues: npt.ArrayLike,
    fit: Literal["peak", "mid"] = "peak",
    xmin: Literal["shipped", "intended"] = "shipped",
) -> PowerLaw:
    """Return the exponent of a spectrum's tail, as AlphaPruning fits it.

    n = n_all - i;  alpha_i = 1 + n / (sum_{j>=i} ln lambda_j - n ln lambda_i)
    KS_i = max_{j>=i} |1 - (lambda_j / lambda_i)^(1 - alpha_i) - (j - i) / n|
    mid: i = n_all // 2;  peak: the i of least KS among lo <= lambda_i <= 1.5 x2, i <= n_all - 2,
    x2 = 10^(left edge of the first highest of 100 bins of log10 lambda)

    Args:
        eigenvalues: lambda, [n], at least 0, ascending; zeros are dropped and counted.
        fit: Where the tail starts: at the `peak` of the histogram, or in the middle.
        xmin: lo of `peak`: log10(0.95 x2) as shipped, or 0.95 x2 as intended.

    Returns:
        The fit.

    Raises:
        RefimplError: Not an ascending spectrum, or no tail in it that a power law fits.

    Differs: zero eigenvalues crash the peer; a tail of equal eigenvalues, where its alpha is
    infinite, is no candidate here; the peer works in float32.

    Example:
        >>> law = alphapruning_alpha(np.arange(1.0, 50.0) ** 2, fit="mid")
        >>> round(law.alpha, 4), law.start, law.zeros_dropped
        (2.3428, 24, 0)
    """
    spectrum = np.asarray(eigenvalues, dtype=np.float64)
    steps = np.diff(
        spectrum, axis=-1, prepend=0.0
    )  # from 0: the first step is the smallest value
    if spectrum.ndim != 1 or not np.isfinite(spectrum).all() or (steps < 0).any():
        raise RefimplError(
            f"a spectrum of shape {spectrum.shape} that is not a finite ascending vector",
            "finite eigenvalues of at least 0, ascending",
            "compute it with esd(weight)",
        )
    positive = spectrum[spectrum > 0]
    zeros = spectrum.size - positive.size
    starts = range(positive.size // 2, positive.size // 2 + 1)
    if fit == "peak" and positive.size:
        starts = _tail_starts(positive, xmin)
    # One candidate at a time: quadratic in time, but linear in memory.
    logs = np.log(positive)
    fits = [
        law for start in starts if (law := _power_law(logs, start, zeros)) is not None
    ]
    if not fits:
        raise RefimplError(
            f"no power law fits {positive.size} positive eigenvalues ({zeros} are zero)",
            "a spectrum with a tail of different eigenvalues",
            "use another base allocation, or the other fit",
        )
    return min(fits, key=lambda law: law.ks)  # the first of equals


def peak(log10_spectrum: Array) -> float:
    """Left edge of the first highest of 100 bins, as an eigenvalue; the last has both its edges."""
    low, high = float(log10_spectrum[0]), float(log10_spectrum[-1])
    places = (log10_spectrum - low) / (
        (high - low) / BINS or 1.0
    )  # no width: all in the first bin
    bins = np.bincount(np.clip(places.astype(np.int64), 0, BINS - 1), minlength=BINS)
    return float(10 ** (low + (high - low) / BINS * int(np.argmax(bins))))


def _tail_starts(positive: Array, xmin: str) -> range:
    """Indices i <= n_all - 2 with lo <= lambda_i <= 1.5 x2."""
    x2 = peak(np.log10(positive))
    lo = np.log10(0.95 * x2) if xmin == "shipped" else 0.95 * x2
    last = np.searchsorted(positive[:-1], 1.5 * x2, side="right")
    return range(int(np.searchsorted(positive[:-1], lo)), int(last))


def _power_law(logs: Array, start: int, zeros: int) -> PowerLaw | None:
    """The law of the tail from an index on, from ascending logarithms; None if all are equal."""
    log_ratio = logs[start:] - logs[start : start + 1]
    total, n = float(log_ratio.sum()), log_ratio.size
    if total == 0.0:
        return None
    alpha = 1 + n / total  # greater than 1, as every ratio is at least 1
    distance = np.abs(1 - np.exp((1 - alpha) * log_ratio) - np.arange(n) / n)
    return PowerLaw(alpha, start, float(distance.max()), zeros)
