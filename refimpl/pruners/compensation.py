"""The core of SparseGPT: decide on some columns, and let the columns after them compensate."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.arguments import NotNegative, require
from refimpl.errors import RefimplError
from refimpl.pruners.checks import Bools, Floats

DAMPING = 0.01  # share of the mean of diag(H) that is added to it
LEAF = 64  # up to this size LAPACK inverts a triangle
# Up to so many columns, LAPACK factors the whole Hessian, in two copies of it; of more, `PANEL` at
# a time, in place.
WHOLE, PANEL = 4096, 256

FLOAT64 = np.dtype(np.float64)
Decide = Callable[[Floats, int], Bools]


@dataclass(frozen=True)
class PrunedWeight:
    """A linear after pruning with compensation: what stays, and new weights, +0.0 elsewhere."""

    keep: Bools
    weight: Floats


class SharedFactor:
    """The factor V of a damped Hessian, H = V V^T, for all prunings by it; it overwrites `outer`.

    H_dd = 1 where it was 0, then H += damping mean(diag H) I; V is its Cholesky factor from the
    last column backwards, upper triangular with a positive diagonal.

    Args:
        outer: [C, C], symmetric and finite; H is `scale` times this.
        scale: 2 / n for outer products of n sequences.

    Source: SparseGPT (peer), which inverts H first.

    Example:
        >>> shared = SharedFactor(np.array([[1.0, 0.0], [0.0, 0.0]]), scale=0.25)
        >>> shared.factored(damping=0)
        (array([[0.5, 0. ],
               [0. , 1. ]]), array([False,  True]))
    """

    def __init__(self, outer: Floats, scale: float = 1.0) -> None:
        self.outer, self._scale, self._lock = outer, scale, Lock()
        self._dead: Bools | None = None
        self._refusal: RefimplError | None = None  # of all who ask

    @classmethod
    def of(cls, hessian: "Hessian") -> "SharedFactor":
        """That of a copy, if it is none yet."""
        return hessian if isinstance(hessian, cls) else cls(np.array(hessian, dtype=np.float64))

    def factored(self, damping: float) -> tuple[Floats, Bools]:
        """V, with the damping of the first call, a share of mean(diag H); and where H_dd was 0.

        NaN or Inf, a Hessian that is not positive definite, and a negative damping are refused.
        """
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            if self._dead is None:
                self._dead = self._factor(damping)
            return self.outer, self._dead

    def _factor(self, damping: float) -> Bools:
        require(damping, NotNegative, "damping")
        _require_finite(self.outer)
        self.outer *= self._scale
        diagonal = np.einsum("ii->i", self.outer)  # a view
        dead: Bools = diagonal == 0
        diagonal[dead] = 1
        diagonal += damping * diagonal.copy().mean()
        if not _factor_in_place(self.outer):
            self._refusal = RefimplError(
                f"the Hessian is not positive definite with damping {damping:g}",
                "a positive definite H + damping mean(diag H) I",
                f"use a larger damping (default {DAMPING:g}), or more calibration tokens",
            )
            raise self._refusal
        return dead


def _factor_in_place(h: Floats) -> bool:
    """Replace H by V, H = V V^T; whether it is positive definite.

    Until all of V is known, H stays below the diagonal. Columns K of H, up to their own rows, less
    V V^T of the columns L after them, are V V_KK^T: V_IK = (H_IK - V_IL V_KL^T) V_KK^-T.
    """
    size, step = len(h), PANEL if len(h) > WHOLE else len(h)
    panels = [slice(max(0, end - step), end) for end in range(size, 0, -step)]
    for at in panels:
        own, above, later = h[at, at], h[: at.start, at], h[at, at.stop :]
        left = own
        if at.stop < size:
            left = own - later @ later.T
            above -= h[: at.start, at.stop :] @ later.T
        try:
            upper = np.linalg.cholesky(left[::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            return False
        if not np.isfinite(upper).all():
            return False
        if step == size:
            own[...] = upper
            return True
        own[...] = np.tril(own, -1) + upper
        above[...] = above @ inverse_of_upper(np.ascontiguousarray(upper)).T
    for at in panels:
        h[at, : at.start] = 0
        h[at, at] = np.triu(h[at, at])
    return True


Hessian = npt.ArrayLike | SharedFactor


def compensated(
    weight: npt.ArrayLike,
    hessian: Hessian,
    decide: Decide,
    step: int,
    damping: float,
    width: int,
    new_dtype: np.dtype[Any] = FLOAT64,
) -> PrunedWeight:
    """Prune column by column; the columns after each one compensate what it lost.

    U = V^-1 of `SharedFactor`, so H^-1 = U^T U. At every `step`-th column, keep = decide(W^2 /
    diag(U)^2) for the next `step` columns of the same `width`, W as compensated so far, dead inputs
    (H_dd = 0) scoring 0. At every column i, q_i = w_i where kept, else 0; err_i = (w_i - q_i) /
    U_ii; W_j -= err_i U_ij for all j > i.

    The compensation of columns a by columns b after them follows from the change of a:
    sum_i err_i U_ib = (new_a - W_a) V_ab U_bb. So U is needed within each `width` only.

    Args:
        weight: W, [R, C], any float dtype.
        hessian: H, [C, C], in squared units of the linear's input; linears that read the same
            input may pass the same `SharedFactor` of it.
        decide: From scores [R, up to step] and their first column to keep, of the same shape.
        step: Columns per decision; divides `width`.
        damping: Share of the mean of diag(H) added to it, at least 0.
        width: Columns after which the rest of W is brought up to date.
        new_dtype: Of the new weights, which are computed in float64.

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
    w, shared = np.asarray(weight), SharedFactor.of(hessian)
    if w.ndim != 2 or w.size == 0 or shared.outer.shape != (w.shape[1], w.shape[1]):
        raise RefimplError(
            f"a Hessian of shape {shared.outer.shape} for a weight of shape {w.shape}",
            "[in, in] for [out, in]",
            "collect the Hessian from the inputs of this linear",
        )
    _require_finite(w)
    upper, dead = shared.factored(damping)
    rows, columns = w.shape
    keep, new = np.ones((rows, columns), bool), np.empty((rows, columns), new_dtype)
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
                ahead = now[group] - before[0][:, group].T @ before[1] if i else now[group]
                score = np.square(ahead) / scale[group]
                score[dead[block][group]] = 0
                kept[group] = decide(score.T, start + i).T
            column = now[i] - before[0][:, i] @ before[1]
            now[i] = np.where(kept[i], column, 0.0)
            errors[i] = (column - now[i]) / inverse[i, i]
        change[block] = now - dense
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # the caller looks
            keep[:, block], new[:, block] = kept.T, now.T
    return PrunedWeight(keep, new)


def _require_finite(numbers: npt.NDArray[Any]) -> None:
    if not np.isfinite(numbers).all():
        raise RefimplError(
            "NaN or Inf in the weight or its Hessian",
            "finite numbers",
            "check weights and activations for NaN",
        )


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
