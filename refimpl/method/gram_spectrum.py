"""AlphaPruning's power law of a weight, from its Gram matrix where that changes no choice."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from refimpl.method.spectrum import (
    BINS,
    PowerLaw,
    alphapruning_alpha,
    candidates,
    esd,
    finite_matrix,
    heights,
    least_ks,
    peak,
    positions,
    tails,
)
from refimpl.model.ops import Array

TOLERANCE = 1e-6
"""Largest relative error of an alpha."""


def power_law(
    weight: npt.ArrayLike,
    fit: Literal["peak", "mid"] = "peak",
    xmin: Literal["shipped", "intended"] = "shipped",
) -> PowerLaw:
    """Return `alphapruning_alpha(esd(weight), fit, xmin)`, in less than half the time.

    lambda = eigvalsh(W W^T) of the smaller side, with errors of up to
    d = 4 max(out, in) eps lambda_max; esd(W) where such errors might change a choice

    Args:
        weight: [out, in], any float dtype.
        fit: Where the tail starts: at the `peak` of the histogram, or in the middle.
        xmin: lo of `peak`, as for `alphapruning_alpha`.

    Returns:
        The fit: the same tail, and alpha within a relative 1e-6.

    Raises:
        RefimplError: The weight is no finite matrix, or no power law fits its spectrum.

    Example:
        >>> power_law(np.diag(np.arange(1.0, 50.0)), "mid").start
        24
    """
    matrix = finite_matrix(weight)
    smaller = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    if 1e-100 < np.abs(matrix).max() < 1e100:  # no square vanishes or overflows
        eigenvalues = np.linalg.eigvalsh(smaller @ smaller.T)
        error = 4 * max(matrix.shape) * float(np.finfo(np.float64).eps * eigenvalues[-1])
        law = certain_law(eigenvalues, error, fit, xmin)
        if law is not None:
            return law
    return alphapruning_alpha(esd(matrix), fit, xmin)


def certain_law(eigenvalues: Array, error: float, fit: str, xmin: str) -> PowerLaw | None:
    """The power law of a spectrum, or None if its errors might change a choice.

    e_i = d / lambda_i is above the error of log10 lambda_i where lambda_i > 2 d.
    8 (alpha_i - 1) e_i is above that of KS_i, and above the relative one of alpha_i.

    Args:
        eigenvalues: lambda, ascending.
        error: d, the largest error of any of them.
        fit: "peak" or "mid".
        xmin: "shipped" or "intended".

    Returns:
        None if an eigenvalue might be zero, another bin be the highest, an eigenvalue join or
        leave the candidates, another KS be the least, or alpha move by a relative 1e-6.
    """
    if not eigenvalues[0] > 2 * error:
        return None
    doubt = error / eigenvalues
    starts = range(eigenvalues.size // 2, eigenvalues.size // 2 + 1)
    bin_margin = None
    if fit == "peak":
        logs = np.log10(eigenvalues)
        if not _same_peak(logs, doubt):
            return None
        x2, bin_margin = peak(logs)
        starts, *others = (
            candidates(eigenvalues + k * error, x2 * (1 - 2 * k * float(doubt[0])), xmin)
            for k in (0, -1, 1)
        )
        if others != [starts, starts]:
            return None
    fits = tails(eigenvalues, starts)
    if not fits or len(fits) < len(starts):
        return None
    best, ks_margin = least_ks(fits)
    off = {tail.start: 8 * (tail.alpha - 1) * float(doubt[tail.start]) for tail in fits}
    rivals = (tail.ks - off[tail.start] for tail in fits if tail is not best)
    if off[best.start] > TOLERANCE or best.ks + off[best.start] >= min(rivals, default=np.inf):
        return None
    return PowerLaw(best.alpha, best.start, best.ks, bin_margin, ks_margin, zeros_dropped=0)


def _same_peak(logs: Array, doubt: Array) -> bool:
    """Whether the same bin is the first highest, wherever within its doubt each logarithm is."""
    width = max(float(logs[-1] - logs[0]), float(doubt[0])) / BINS
    place = positions(logs)
    off = (doubt + (1 - place / BINS) * doubt[0]) / width
    left, right = (np.clip(place + k * off, 0, BINS - 1).astype(np.int64) for k in (-1, 1))
    sure = left == right
    least = heights(place[sure])
    most = least + heights(left[~sure]) + heights(right[~sure])
    highest = int(np.argmax(heights(place)))
    before, after = most[:highest], most[highest + 1 :]
    ahead = (before < least[highest]).all() and (after <= least[highest]).all()
    return bool(off.max() < 0.5 and ahead)  # so that two bins are all it may be in
