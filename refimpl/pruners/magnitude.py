"""Magnitude pruning: the smallest weights of a linear are removed."""

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Bools, Floats, NotNegative, checked, number_array
from refimpl.errors import RefimplError
from refimpl.pruners.pruner import LinearInputs, Pruner
from refimpl.pruners.wanda import wanda_keep


@checked
def magnitude_keep(score: npt.ArrayLike, count: int | NotNegative) -> Bools:
    """Decide which weights of a linear stay if its n lowest scores are removed.

    Ties go to the lower row-major index. Of a fraction s, as Wanda's code takes it: keep = score >
    sorted(score)[int(R C s)].

    Args:
        score: [R, C], without NaN.
        count: Weights to prune n, 0 <= n <= R C; or, as a float, the fraction s, in [0, 1).

    Returns:
        keep, [R, C], True = stays.

    Raises:
        RefimplError: The score holds NaN, or the count does not fit it, or a fraction is so near 1
            that the peer reads past the end of its list.

    Source: magnitude pruning in Wanda's code (peer).

    Example:
        >>> magnitude_keep([[3.0, 1.0], [1.0, 1.0]], 2).astype(int)
        array([[1, 0],
               [0, 1]])
        >>> magnitude_keep([[3.0, 1.0], [1.0, 2.0]], 0.25).astype(int)
        array([[1, 0],
               [0, 1]])
    """
    matrix = number_array("scores", score, 2, finite=False)
    if not isinstance(count, float):  # one row: no row rule
        return wanda_keep(matrix.reshape(1, -1), count).reshape(matrix.shape)
    index = int(matrix.size * count)
    if index >= matrix.size:
        raise RefimplError(
            f"sparsity {count}: the peer's threshold is number {index} of {matrix.size} scores",
            f"a sparsity s below 1, so that int({matrix.size} s) is below {matrix.size}",
            "use compat exact, or the peer's Wanda",
        )
    keep: Bools = matrix > np.partition(matrix, index, axis=None)[index]
    return keep


def _score(linear: LinearInputs) -> Floats:
    """M = |W|."""
    magnitude: Floats = np.array(linear.weight, dtype=np.float64)
    return np.abs(magnitude, out=magnitude)


MAGNITUDE = Pruner(
    "magnitude",
    "magnitude",
    "magnitude pruning in Wanda's code",
    score=_score,
    peer=True,
    deviations="the code prunes one weight more than requested, and all ties",
)
