"""The decisions of the peers' shipped code, bit for bit, with its miscounts."""

from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.pruners.compensation import Pruned, compensated
from refimpl.pruners.pattern import Pattern
from refimpl.pruners.scores import Bools, Floats, wanda_keep
from refimpl.pruners.sparsegpt import DAMPING, WIDTH, decide_groups


def wanda_keep_peer(score: npt.ArrayLike, sparsity: float) -> Bools:
    """Decide as Wanda's code does: the same whole number of every row.

    int(C s) lowest scores of each row, ties to the lowest column; all C where s >= 1.

    Args:
        score: [R, C], without NaN.
        sparsity: s, at least 0; may exceed 1.

    Returns:
        keep, [R, C], True = stays.

    Raises:
        RefimplError: The score is not a matrix or holds NaN, or the sparsity is negative or NaN.

    Source: docs/explanation/method.md, "exact and peer" (peer: Wanda).

    Differs: `wanda_keep` meets a count; here up to R weights are missing, 64 columns at 0.6 losing
    38, and a block asked for more than everything silently gives everything only.

    Example:
        >>> wanda_keep_peer([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]], 0.6).astype(int)
        array([[1, 0, 1],
               [0, 1, 1]])
    """
    matrix = _checked(score)
    rows, columns = matrix.shape
    return wanda_keep(matrix, rows * min(int(columns * _not_negative(sparsity)), columns))


def magnitude_keep_peer(score: npt.ArrayLike, sparsity: float) -> Bools:
    """Decide as the magnitude pruning of Wanda's code does.

    keep = score > sorted(score)[int(R C s)]

    Args:
        score: [R, C], without NaN.
        sparsity: s, in [0, 1).

    Returns:
        keep, [R, C], True = stays.

    Raises:
        RefimplError: The score is not a matrix or holds NaN, or the sparsity is negative, NaN, or
            so near 1 that the peer reads past the end of its list.

    Source: docs/explanation/method.md, "exact and peer" (peer: magnitude pruning in Wanda's code).

    Differs: `magnitude_keep` meets a count; here one more goes than asked, and all ties.

    Example:
        >>> magnitude_keep_peer([[3.0, 1.0], [1.0, 2.0]], 0.25).astype(int)
        array([[1, 0],
               [0, 1]])
    """
    return _above_threshold(sparsity, _checked(score), 0)


def sparsegpt_peer(
    weight: npt.ArrayLike,
    hessian: npt.ArrayLike,
    target: float | Pattern,
    damping: float = DAMPING,
    width: int = WIDTH,
) -> Pruned:
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

    Returns:
        The decision, dead inputs not kept, and the new weights.

    Raises:
        RefimplError: As `sparsegpt`; or a sparsity that is negative, NaN, or so near 1 that the
            peer reads past the end of its list.

    Source: docs/explanation/method.md, "exact and peer" (peer: SparseGPT).

    Differs: `sparsegpt` meets a count. The peer computes in float32: where a score lies within its
    rounding of the threshold a bit may differ, and then what that column hands on.

    Example:
        >>> done = sparsegpt_peer([[1.0, 2.0]], [[2.0, 1.0], [1.0, 2.0]], 0.4, damping=0)
        >>> done.keep, done.weight
        (array([[False,  True]]), array([[0. , 2.5]]))
    """
    start, h = np.asarray(weight, dtype=np.float64), np.asarray(hessian, dtype=np.float64)
    dead = np.diag(h) == 0 if h.ndim == 2 else np.zeros(0, bool)
    if start.ndim == 2 and dead.shape == start.shape[1:]:  # what does not fit `compensated` refuses
        start = np.where(dead, 0.0, start)
    if isinstance(target, Pattern):
        decide, step = decide_groups(start.shape, target, width), target.group
    else:
        decide, step = partial(_above_threshold, _not_negative(target)), width
    found = compensated(start, h, decide, step, damping, width)
    return Pruned(found.keep & ~dead, found.weight)


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


def _checked(score: npt.ArrayLike) -> Floats:
    matrix = np.asarray(score, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0 or np.isnan(matrix).any():
        raise RefimplError(
            f"scores of shape {matrix.shape}, or NaN among them",
            "a matrix [out, in] of numbers",
            "check weights and activations for NaN",
        )
    return matrix
