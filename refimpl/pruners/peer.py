"""The decisions of the peers' shipped code, bit for bit, with its miscounts."""

from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.pruners.checks import Bools, Floats, score_matrix
from refimpl.pruners.compensation import Factor, PrunedWeight, compensated, upper_factor
from refimpl.pruners.pattern import Pattern
from refimpl.pruners.scores import wanda_keep
from refimpl.pruners.sparsegpt import DAMPING, WIDTH, decide_groups


def wanda_keep_peer(score: npt.ArrayLike, sparsity: float) -> Bools:
    """Decide as Wanda's code does: the int(C s) lowest scores of each row go, all C if s >= 1.

    Ties go to the lowest column.

    Args:
        score: [R, C], without NaN.
        sparsity: s, at least 0; may exceed 1.

    Returns:
        keep, [R, C], True = stays.

    Raises:
        RefimplError: The score is not a matrix or holds NaN, or the sparsity is negative or NaN.

    Source: Wanda (peer); docs/explanation/method.md, "exact and peer".

    Differs: `wanda_keep` meets a count. This prunes up to R weights too few (38 of 64 columns at
    0.6), and of a block that should lose more than all weights it prunes all, without a word.

    Example:
        >>> wanda_keep_peer([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]], 0.6).astype(int)
        array([[1, 0, 1],
               [0, 1, 1]])
    """
    matrix = np.asarray(score_matrix(score), np.float64)
    rows, columns = matrix.shape
    return wanda_keep(matrix, rows * min(int(columns * _not_negative(sparsity)), columns))


def magnitude_keep_peer(score: npt.ArrayLike, sparsity: float) -> Bools:
    """Decide as the magnitude pruning of Wanda's code: keep = score > sorted(score)[int(R C s)].

    Args:
        score: [R, C], without NaN.
        sparsity: s, in [0, 1).

    Returns:
        keep, [R, C], True = stays.

    Raises:
        RefimplError: The score is not a matrix or holds NaN, or the sparsity is negative, NaN, or
            so near 1 that the peer reads past the end of its list.

    Source: magnitude pruning in Wanda's code (peer).

    Differs: `magnitude_keep` meets a count. This prunes one weight more, and all ties.

    Example:
        >>> magnitude_keep_peer([[3.0, 1.0], [1.0, 2.0]], 0.25).astype(int)
        array([[1, 0],
               [0, 1]])
    """
    return _above_threshold(sparsity, np.asarray(score_matrix(score), np.float64), 0)


def sparsegpt_peer(
    weight: npt.ArrayLike,
    hessian: npt.ArrayLike,
    target: float | Pattern,
    damping: float = DAMPING,
    width: int = WIDTH,
    factor: Factor = upper_factor,
) -> PrunedWeight:
    """Prune a linear as SparseGPT's code does.

    The weights of dead inputs (H_dd = 0) are zero from the start. Per `width` columns
    keep = score > sorted(score)[int(size s)], or the n lowest of each group of m; scores and
    compensation as in `compensated`.

    Args:
        weight: W, [R, C], any float dtype.
        hessian: H, [C, C], in squared units of the linear's input.
        target: Sparsity s in [0, 1), or a pattern.
        damping: Share of the mean of diag(H) added to it, at least 0.
        width: Columns decided on together.
        factor: As of `compensated`.

    Returns:
        The decision, dead inputs not kept, and the new weights.

    Raises:
        RefimplError: As `sparsegpt`; or a sparsity that is negative, NaN, or so near 1 that the
            peer reads past the end of its list.

    Source: SparseGPT (peer).

    Differs: `sparsegpt` meets a count. The peer computes in float32: if a score lies within its
    rounding of the threshold, a decision may differ, and with it the columns after.

    Example:
        >>> pruned = sparsegpt_peer([[1.0, 2.0]], [[2.0, 1.0], [1.0, 2.0]], 0.4, damping=0)
        >>> pruned.keep, pruned.weight
        (array([[False,  True]]), array([[0. , 2.5]]))
    """
    start, h = np.asarray(weight, dtype=np.float64), np.asarray(hessian, dtype=np.float64)
    dead = np.diag(h) == 0 if h.ndim == 2 else np.zeros(0, bool)
    if start.ndim == 2 and dead.shape == start.shape[1:]:  # `compensated` refuses other shapes
        start = np.where(dead, 0.0, start)
    if isinstance(target, Pattern):
        decide, step = decide_groups(start.shape, target, width), target.group
    else:
        decide, step = partial(_above_threshold, _not_negative(target)), width
    pruned = compensated(start, h, decide, step, damping, width, factor)
    return PrunedWeight(pruned.keep & ~dead, pruned.weight)


def _above_threshold(sparsity: float, score: Floats, start: int) -> Bools:
    index = int(score.size * _not_negative(sparsity))
    if index >= score.size:
        raise RefimplError(
            f"sparsity {sparsity}: the peer's threshold is number {index} of {score.size} scores",
            f"a sparsity below 1, so that {score.size} times it rounds down to less than that",
            "use compat exact, or the peer's Wanda",
        )
    keep: Bools = score > np.partition(score, index, axis=None)[index]
    return keep


def _not_negative(sparsity: float) -> float:
    if not 0 <= sparsity < np.inf:
        raise RefimplError(
            f"sparsity {sparsity}",
            "a number of at least 0",
            "check the allocation: the peer would count from the wrong end",
        )
    return float(sparsity)
