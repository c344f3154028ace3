"""Wanda: each row loses the weights whose size times the size of their input is least."""

import numpy as np
import numpy.typing as npt

from refimpl.arguments import (
    Bools,
    Floats,
    Fraction,
    checked,
    integer,
    number_array,
    require,
)
from refimpl.errors import RefimplError
from refimpl.pruners.pruner import LinearInputs, Pruner


@checked
def wanda_score(weight: npt.ArrayLike, second_moment: npt.ArrayLike) -> Floats:
    """Return Wanda's score of every weight: its magnitude times the norm of its input.

    M = |W| * sqrt(c), c_j = (1/n) * sum over the calibration tokens of x_j^2, n sequences

    Args:
        weight: [out, in], any float dtype.
        second_moment: c, [in], at least 0, in squared units of the linear's input.

    Returns:
        Scores, [out, in], float64.

    Raises:
        RefimplError: The statistic does not fit the weight, is negative or not finite.

    Source: Wanda (peer).

    Example:
        >>> wanda_score([[-2.0, 0.5]], [9.0, 16.0])
        array([[6., 2.]])
    """
    moment = np.asarray(second_moment, dtype=np.float64)
    magnitude = np.array(weight, dtype=np.float64)
    if magnitude.ndim != 2 or moment.shape != magnitude.shape[1:]:
        raise RefimplError(
            f"a statistic of shape {moment.shape} for a weight of shape {magnitude.shape}",
            "[in] for [out, in]",
            "collect the statistic from the inputs of this linear",
        )
    if not (np.isfinite(moment) & (moment >= 0)).all():
        raise RefimplError(
            "a mean square that is negative or not finite",
            "finite numbers of at least 0",
            "check the activations for NaN and Inf",
        )
    np.abs(magnitude, out=magnitude)  # in place: a large linear's scores are 360 MB
    magnitude *= np.sqrt(moment)
    return magnitude


@checked
def wanda_keep(score: npt.ArrayLike, count: int | Fraction) -> Bools:
    """Decide which weights stay if every row loses its lowest scores, `count` in all.

    n div R of every row; the n mod R others from the rows whose next candidate scores lowest,
    ties to the lower row; within a row ties to the lowest column. Of a fraction s, as Wanda's code
    takes it: int(C s) of every row.

    Args:
        score: [R, C], without NaN.
        count: Weights to prune n, 0 <= n <= R C; or, as a float, the fraction s.

    Returns:
        keep, [R, C], True = stays; exactly n are False.

    Raises:
        RefimplError: The score is not a matrix or holds NaN, or the count does not fit it.

    Source: Wanda (peer); docs/explanation/method.md, "The budget, exactly".

    Example:
        >>> wanda_keep([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]], 3).astype(int)
        array([[1, 0, 1],
               [0, 0, 1]])
        >>> wanda_keep([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]], 0.6).astype(int)
        array([[1, 0, 1],
               [0, 1, 1]])
    """
    matrix = number_array("scores", score, 2, finite=False)
    rows, columns = matrix.shape
    if isinstance(count, float):
        count = rows * int(columns * count)
    require(count, integer(0, rows * columns), "count")
    base, extra = divmod(int(count), rows)
    rank = base if extra else max(base - 1, 0)
    ordered = np.partition(matrix, rank, axis=1)
    wanted = np.full(rows, base)
    threshold = ordered[:, :base].max(axis=1) if base else np.zeros(rows, matrix.dtype)
    if extra:
        candidate = ordered[:, base]
        favoured = np.argsort(candidate, kind="stable")[:extra]
        wanted[favoured] += 1
        threshold[favoured] = candidate[favoured]
    del ordered
    tied = (matrix == threshold[:, None]) & (wanted > 0)[:, None]
    below = (matrix < threshold[:, None]) & (wanted > 0)[:, None]
    open_ties = wanted - below.sum(axis=1)
    crowded = np.flatnonzero(
        tied.sum(axis=1) > open_ties
    )  # only here does the column decide
    tied[crowded] &= np.cumsum(tied[crowded], axis=1) <= open_ties[crowded, None]
    return ~(below | tied)


def _score(linear: LinearInputs) -> Floats:
    return wanda_score(linear.weight, linear.mean)


def _keep(score: Floats, count: int | float) -> Bools:
    """The code prunes all of a row that should lose more."""
    return wanda_keep(score, min(count, 1.0) if isinstance(count, float) else count)


WANDA = Pruner(
    "wanda",
    "Wanda",
    "arXiv:2306.11695; its code, `lib/prune.py`",
    needs="squares",
    score=_score,
    keep=_keep,
    peer=True,
    deviations="the code prunes `int(C s)` of every row, and all of a row that should lose more "
    "than all; here the counts are exact",
)
