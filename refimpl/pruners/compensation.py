"""The core of SparseGPT: decide on some columns, and let the columns after them compensate."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt

from refimpl.arguments import NotNegative, require
from refimpl.errors import RefimplError
from refimpl.pruners.checks import Bools, Floats

DAMPING = 0.01  # share of the mean of diag(H) that is added to it
TRIALS = (0.01, 0.1, 1.0, 10.0)  # dampings that an error may suggest
LEAF = 64  # up to this size LAPACK inverts a triangle

Decide = Callable[[Floats, int], Bools]
Factor = Callable[[npt.ArrayLike, float], Floats]
"""`upper_factor`, or a `SharedFactor` in its place."""


@dataclass(frozen=True)
class PrunedWeight:
    """A linear after pruning with compensation: what stays, and new weights, +0.0 elsewhere."""

    keep: Bools
    weight: Floats


def upper_factor(hessian: npt.ArrayLike, damping: float) -> Floats:
    """Return the upper triangle V of the damped Hessian, H = V V^T.

    H_dd = 1 where it was 0, then H += damping mean(diag H) I; V is its Cholesky factor from the
    last column backwards.

    Args:
        hessian: H, [C, C], symmetric and finite.
        damping: Share of the mean of diag(H) added to it, at least 0.

    Returns:
        V, [C, C], upper triangular with a positive diagonal.

    Raises:
        RefimplError: The damped Hessian is not positive definite, or a negative damping.

    Source: SparseGPT (peer), which inverts H first.

    Example:
        >>> upper_factor([[0.25, 0.0], [0.0, 0.0]], damping=0)
        array([[0.5, 0. ],
               [0. , 1. ]])
    """
    require(damping, NotNegative, "damping")
    h = np.array(hessian, dtype=np.float64)
    diagonal = np.einsum("ii->i", h)  # a view
    diagonal[diagonal == 0] = 1
    undamped = diagonal.copy()

    def factor_with(share: float) -> Floats | None:
        diagonal[:] = undamped + share * undamped.mean()
        try:
            upper = np.ascontiguousarray(np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1])
        except np.linalg.LinAlgError:
            return None
        return upper if np.isfinite(upper).all() else None

    factor = factor_with(damping)
    if factor is None:
        larger = (share for share in TRIALS if share > damping)
        enough = next((share for share in larger if factor_with(share) is not None), None)
        raise RefimplError(
            f"the Hessian is not positive definite with damping {damping:g}",
            "a positive definite H + damping mean(diag H) I",
            "check the activations of the calibration tokens: more damping does not help"
            if enough is None
            else f"use damping {enough:g}, which is enough, or more calibration tokens",
        )
    return factor


class SharedFactor:
    """`upper_factor` of one Hessian for several prunings: the first computes it, others wait.

    Example:
        >>> factor = SharedFactor()
        >>> factor(np.eye(2), 0.0) is factor(np.eye(2), 0.0)
        True
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._upper: Floats | None = None

    def __call__(self, hessian: npt.ArrayLike, damping: float) -> Floats:
        """The factor of the Hessian that it was first called with."""
        with self._lock:
            if self._upper is None:
                self._upper = upper_factor(hessian, damping)
            return self._upper


def compensated(
    weight: npt.ArrayLike,
    hessian: npt.ArrayLike,
    decide: Decide,
    step: int,
    damping: float,
    width: int,
    factor: Factor = upper_factor,
) -> PrunedWeight:
    """Prune column by column; the columns after each one compensate what it lost.

    U = V^-1 of `upper_factor`, so H^-1 = U^T U. At every `step`-th column, keep = decide(W^2 /
    diag(U)^2) for the next `step` columns of the same `width`, W as compensated so far, dead inputs
    (H_dd = 0) scoring 0. At every column i, q_i = w_i where kept, else 0; err_i = (w_i - q_i) /
    U_ii; W_j -= err_i U_ij for all j > i.

    The compensation of columns a by columns b after them follows from the change of a:
    sum_i err_i U_ib = (new_a - W_a) V_ab U_bb. So U is needed within each `width` only.

    Args:
        weight: W, [R, C], any float dtype.
        hessian: H, [C, C], in squared units of the linear's input.
        decide: From scores [R, up to step] and their first column to keep, of the same shape.
        step: Columns per decision; divides `width`.
        damping: Share of the mean of diag(H) added to it, at least 0.
        width: Columns after which the rest of W is brought up to date.
        factor: Computes V; linears that read the same input may pass the same `SharedFactor`.

    Returns:
        The decision and the new weights.

    Raises:
        RefimplError: Shapes that do not fit, NaN or Inf, a Hessian that is not positive definite.

    Source: SparseGPT (peer); docs/explanation/method.md, "Pruners".

    Example:
        >>> def decide(score, start):
        ...     return score > 1
        >>> pruned = compensated([[1.0, 2.0]], np.eye(2), decide, step=2, damping=0, width=2)
        >>> pruned.keep, pruned.weight
        (array([[False,  True]]), array([[0., 2.]]))
    """
    w, h = np.asarray(weight), np.asarray(hessian, dtype=np.float64)
    if w.ndim != 2 or w.size == 0 or h.shape != (w.shape[1], w.shape[1]):
        raise RefimplError(
            f"a Hessian of shape {h.shape} for a weight of shape {w.shape}",
            "[in, in] for [out, in]",
            "collect the Hessian from the inputs of this linear",
        )
    if not (np.isfinite(w).all() and np.isfinite(h).all()):
        raise RefimplError(
            "NaN or Inf in the weight or its Hessian",
            "finite numbers",
            "check weights and activations for NaN",
        )
    upper = factor(h, damping)
    dead = np.diag(h) == 0
    rows, columns = w.shape
    keep, new = np.ones((rows, columns), bool), np.empty((rows, columns))
    change = np.zeros((columns, rows))  # a column of the weight lies together in memory
    for start in range(0, columns, width):
        block = slice(start, min(start + width, columns))
        dense = np.array(w[:, block].T, dtype=np.float64, order="C")
        inverse = inverse_of_upper(upper[block, block])
        now = dense - inverse.T @ (upper[:start, block].T @ change[:start])
        scale = np.square(np.diag(inverse))[:, None]
        errors = np.zeros_like(now)
        kept = np.ones(now.shape, bool)
        for i in range(len(now)):
            before = inverse[:i], errors[:i]
            if i % step == 0:
                group = slice(i, i + step)
                score = np.square(now[group] - before[0][:, group].T @ before[1]) / scale[group]
                score[dead[block][group]] = 0
                kept[group] = decide(score.T, start + i).T
            column = now[i] - before[0][:, i] @ before[1]
            now[i] = np.where(kept[i], column, 0.0)
            errors[i] = np.where(kept[i], 0.0, column) / inverse[i, i]
        change[block] = now - dense
        keep[:, block], new[:, block] = kept.T, now.T
    return PrunedWeight(keep, new)


def inverse_of_upper(upper: Floats) -> Floats:
    """Invert a triangle by halves: [[A, B], [0, D]]^-1 = [[A^-1, -A^-1 B D^-1], [0, D^-1]]."""
    size = len(upper)
    if size <= LEAF:
        return np.asarray(np.linalg.inv(upper), np.float64)  # LU of a triangle is itself
    half = size // 2
    inverse: Floats = np.zeros_like(upper, order="C")
    first, last = inverse_of_upper(upper[:half, :half]), inverse_of_upper(upper[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[:half, half:] = -first @ upper[:half, half:] @ last
    return inverse
