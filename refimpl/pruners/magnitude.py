"""Magnitude pruning: the smallest weights of a linear are removed."""

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Bools, Floats, NotNegative, checked, score_matrix
from refimpl.errors import RefimplError
from refimpl.pruners.pruner import LinearInputs, Pruner
from refimpl.pruners.wanda import wanda_keep


@checked
def magnitude_score(weight: npt.ArrayLike) -> Floats:
    """Return the magnitude of every weight, M = |W|.

    Args:
        weight: [out, in], any float dtype.

    Returns:
        Scores, [out, in], float64.

    Source: magnitude pruning in Wanda's code (peer).

    Example:
        >>> magnitude_score([[-2.0, 0.5]])
        array([[2. , 0.5]])
    """
    magnitude: Floats = np.array(weight, dtype=np.float64)
    return np.abs(magnitude, out=magnitude)


@checked
def magnitude_keep(score: npt.ArrayLike, count: int) -> Bools:
    """Decide which weights of a linear stay if its n lowest scores are removed.

    Ties go to the lower row-major index.

    Args:
        score: [R, C], without NaN.
        count: Weights to prune n, 0 <= n <= R C.

    Returns:
        keep, [R, C], True = stays; exactly n are False.

    Raises:
        RefimplError: The score holds NaN, or the count does not fit it.

    Source: magnitude pruning in Wanda's code (peer).

    Differs: the peer prunes every score `<= sorted[int(R C s)]`: one too many, and all ties.

    Example:
        >>> magnitude_keep([[3.0, 1.0], [1.0, 1.0]], 2).astype(int)
        array([[1, 0],
               [0, 1]])
    """
    matrix = np.asarray(score)
    return wanda_keep(matrix.reshape(1, -1), count).reshape(matrix.shape)  # one row: no row rule


@checked
def magnitude_keep_peer(score: npt.ArrayLike, sparsity: NotNegative) -> Bools:
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

    Example:
        >>> magnitude_keep_peer([[3.0, 1.0], [1.0, 2.0]], 0.25).astype(int)
        array([[1, 0],
               [0, 1]])
    """
    return above_threshold(sparsity, np.asarray(score_matrix(score), np.float64))


def above_threshold(sparsity: float, score: Floats) -> Bools:
    """The decision of the peers' code: keep = score > sorted(score)[int(size s)]."""
    index = int(score.size * sparsity)
    if index >= score.size:
        raise RefimplError(
            f"sparsity {sparsity}: the peer's threshold is number {index} of {score.size} scores",
            f"a sparsity s below 1, so that int({score.size} s) is below {score.size}",
            "use compat exact, or the peer's Wanda",
        )
    keep: Bools = score > np.partition(score, index, axis=None)[index]
    return keep


def _score(linear: LinearInputs) -> Floats:
    return magnitude_score(linear.weight)


MAGNITUDE = Pruner(
    "magnitude",
    "magnitude",
    "magnitude pruning in Wanda's code",
    score=_score,
    keep_peer=magnitude_keep_peer,
    deviations="the code prunes one weight more than requested, and all ties",
)
