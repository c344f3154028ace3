"""Refitting: the best values of the weights that stay, after any decision."""

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Floats, checked
from refimpl.errors import RefimplError
from refimpl.pruners.pruner import DAMPING, Hessian, SharedFactor


@checked
def refitted(
    weight: npt.ArrayLike,
    keep: npt.ArrayLike,
    hessian: Hessian,
    damping: float = DAMPING,
) -> Floats:
    """Return the weights that minimise the output error of a linear, if the others are removed.

    For each row, with K the weights that stay and H damped as SparseGPT's:
    w'_K = (H_KK)^-1 (H w)_K, which minimises (w' - w) H (w' - w)^T.

    Args:
        weight: W, the dense weight, [R, C], any float dtype.
        keep: Which weights stay, [R, C], bool.
        hessian: H, [C, C], in squared units of the linear's input; linears that read the same
            input may pass the same `SharedFactor` of it.
        damping: Share of the mean of diag(H) added to it, at least 0.

    Returns:
        New weights, [R, C], float64, +0.0 where none stays.

    Raises:
        RefimplError: Shapes that do not fit, NaN or Inf, a Hessian that is not positive definite.

    Source: the normal equations of least squares; the damping is SparseGPT's.

    Example:
        >>> refitted([[1.0, 2.0]], [[False, True]], [[2.0, 1.0], [1.0, 2.0]], damping=0)
        array([[0. , 2.5]])
    """
    shared, stay = SharedFactor.of(hessian), np.asarray(keep, bool)
    w = shared.checked(weight)
    if stay.shape != w.shape:
        raise RefimplError(
            f"a decision of shape {stay.shape} for a weight of shape {w.shape}",
            "one for each weight",
            "pass the decision on this linear",
        )
    upper, _ = shared.factored(damping)
    h = upper @ upper.T
    new = np.zeros(w.shape)
    for row, kept in enumerate(stay):
        aim = h[kept] @ np.asarray(w[row], np.float64)
        new[row, kept] = np.linalg.solve(h[np.ix_(kept, kept)], aim)
    return new
