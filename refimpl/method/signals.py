"""What the base allocations are made of: outliers, mean scores, errors, and tails of the spectra.

Source: OWL, DLP, LSA and AlphaPruning (peers); docs/explanation/method.md, "Base allocations".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Literal

import numpy as np
import numpy.typing as npt

from refimpl.arguments import checked
from refimpl.errors import RefimplError
from refimpl.method.tails import candidates, finite_matrix, least_ks, peak, tails
from refimpl.model.ops import Array


@checked
def owl_outlier_percent(scores: Sequence[Array], m: float = 5.0) -> float:
    """Return the share of a block's scores that stand out, as OWL counts them.

    D = 100 * #{M > m * mean(M)} / #M, over all linears of the block together

    Args:
        scores: Wanda scores M of the block's linears, each [out, in].
        m: Multiple of the mean above which (strictly) a score is an outlier.

    Returns:
        Percent, in [0, 100].

    Raises:
        RefimplError: There are no scores, or their sum is not finite.

    Example:
        >>> owl_outlier_percent([np.ones((2, 4)), np.array([[20.0, 1.0]])], m=5)
        10.0
    """
    threshold = m * _mean(scores)
    outliers, size = 0, 0
    for score in scores:
        outliers += int(np.count_nonzero(score > threshold))
        size += score.size
    return 100.0 * outliers / size


@checked
def dlp_score(scores: Sequence[Array], statistic: Literal["mean", "median"] = "mean") -> float:
    """Return the typical score of a block, as DLP ranks blocks.

    u = mean(M) or median(M), over all linears of the block together

    Args:
        scores: Wanda scores M of the block's linears, each [out, in].
        statistic: `mean` as in DLP's code, or `median` as in its paper.

    Returns:
        u, in units of the scores.

    Raises:
        RefimplError: There are no scores, or their sum is not finite.

    Differs: the median of an even number of scores is the mean of the middle two.

    Example:
        >>> dlp_score([np.array([[1.0, 2.0]]), np.array([[6.0]])])
        3.0
        >>> dlp_score([np.array([[1.0, 2.0]]), np.array([[6.0]])], "median")
        2.0
    """
    mean = _mean(scores)
    if statistic == "mean":
        return mean
    flat = np.concatenate([np.asarray(score, dtype=np.float64).ravel() for score in scores])
    return float(np.median(flat, overwrite_input=True))


@checked
def lsa_error(weight: npt.ArrayLike, outer: npt.ArrayLike, group: int = 128) -> float:
    """Return the output error of a linear without half of its weights, as LSA chooses them.

    Of each row and each `group` columns, one after another, half go, one at a time: the one of
    least eps_j = W_j^2 H_jj + 2 W_j sum_i W_i H_ij, over what the row has lost so far, which ends
    with E = sum of the eps that were taken = sum over rows of ||X w||^2, w the lost weights

    Args:
        weight: W, [out, in], any float dtype; errors of separate rows add up.
        outer: H = sum over the calibration tokens of x x^T, [in, in]; E is proportional to it.
        group: Columns of a group, 0 for the whole row; the last group may be narrower.

    Returns:
        E, in squared units of the linear's output, at least 0.

    Raises:
        RefimplError: Shapes that do not fit, a negative group, an error that is not finite.

    Source: LSA (peer), `blk_s`.

    Differs: of a last group of fewer columns, half go here; the peer takes as many as of the
    others, from less than half a group on all of them and then infinity. It works in float32.

    Example:
        >>> lsa_error([[1.0, 2.0, 3.0, 1.0]], np.eye(4), group=2)  # 1 of each pair
        2.0
        >>> lsa_error([[1.0, 2.0, 3.0, 1.0]], np.eye(4) + 1, group=2)  # the second costs 2 more
        6.0
    """
    w, h = np.asarray(weight, dtype=np.float64), np.asarray(outer, dtype=np.float64)
    if w.ndim != 2 or h.shape != (w.shape[1],) * 2 or group < 0:
        raise RefimplError(
            f"a weight of shape {w.shape}, outer products of shape {h.shape}, group {group}",
            "[out, in], [in, in], and 0 or more columns",
            "pass one linear and the sum over its own inputs",
        )
    lost, rows, error = np.zeros_like(w), np.arange(len(w)), 0.0
    for start in range(0, w.shape[1], group or w.shape[1]):
        columns = slice(start, start + (group or w.shape[1]))
        own, among = w[:, columns], np.ascontiguousarray(h[columns, columns])
        twice, change = 2 * own, np.empty_like(own)
        eps = own * (own * among.diagonal() + 2 * (lost[:, :start] @ h[:start, columns]))
        for _ in range(own.shape[1] // 2):
            j = eps.argmin(axis=1)
            error += float(eps[rows, j].sum())
            lost[rows, start + j] = taken = own[rows, j]
            np.take(among, j, axis=0, out=change, mode="clip")  # other modes copy it once more
            change *= twice
            change *= taken[:, None]
            eps += change
            eps[rows, j] = np.inf
    if not np.isfinite(error):
        raise RefimplError(
            f"a reconstruction error of {error}", "finite inputs", "check the activations"
        )
    return max(error, 0.0)


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
    matrix = finite_matrix(weight)
    singular = np.linalg.svd(matrix, compute_uv=False)[::-1]
    noise = max(matrix.shape) * np.finfo(np.float64).eps * singular[-1]
    return np.where(singular > noise, singular, 0.0) ** 2


@dataclass(frozen=True)
class PowerLaw:
    """A power law fitted to the upper end of a spectrum, and how close its choices were.

    p(lambda) ~ lambda^-alpha from the eigenvalue at `start` on

    Args:
        alpha: Exponent, greater than 1.
        start: Index of the first eigenvalue of the tail, among the positive ones, ascending.
        ks: Kolmogorov-Smirnov distance of the tail from the fit.
        bin_margin: Eigenvalues by which the highest bin leads the next; None for fit `mid`.
        ks_margin: Lead of the smallest distance over the next; None without a competitor.
        zeros_dropped: Zero eigenvalues left out.
    """

    alpha: float
    start: int
    ks: float
    bin_margin: int | None
    ks_margin: float | None
    zeros_dropped: int


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
    steps = np.diff(spectrum, axis=-1, prepend=0.0)  # from 0: the first step is the smallest value
    if spectrum.ndim != 1 or not np.isfinite(spectrum).all() or (steps < 0).any():
        raise RefimplError(
            f"a spectrum of shape {spectrum.shape} that is not a finite ascending vector",
            "finite eigenvalues of at least 0, ascending",
            "compute it with esd(weight)",
        )
    positive = spectrum[spectrum > 0]
    zeros = spectrum.size - positive.size
    bin_margin = None
    starts = range(positive.size // 2, positive.size // 2 + 1)
    if fit == "peak" and positive.size:
        x2, bin_margin = peak(np.log10(positive))
        starts = candidates(positive, x2, xmin)
    fits = tails(positive, starts)
    if not fits:
        raise RefimplError(
            f"no power law fits {positive.size} positive eigenvalues ({zeros} are zero)",
            "a spectrum with a tail of different eigenvalues",
            "use another base allocation, or the other fit",
        )
    best, ks_margin = least_ks(fits)
    return PowerLaw(best.alpha, best.start, best.ks, bin_margin, ks_margin, zeros)


def _mean(scores: Sequence[Array]) -> float:
    sums = [(score.size, float(score.sum(dtype=np.float64))) for score in scores]
    size, total = sum(n for n, _ in sums), fsum(x for _, x in sums)
    if size == 0 or not np.isfinite(total):
        raise RefimplError(
            f"{size} scores with the sum {total}", "finite scores", "check the activations"
        )
    return total / size
