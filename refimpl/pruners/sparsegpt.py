"""SparseGPT: the weights after each pruned one compensate, column by column."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Bools, Compat, Floats, NotNegative, checked
from refimpl.errors import RefimplError
from refimpl.pruners.counts import Pattern, pattern_count, pattern_keep, split_count
from refimpl.pruners.magnitude import above_threshold, magnitude_keep
from refimpl.pruners.pruner import (
    DAMPING,
    FLOAT64,
    Hessian,
    LinearInputs,
    PrunedWeight,
    Pruner,
    SharedFactor,
    inverse_of_upper,
    require_finite,
)

WIDTH = 128  # columns that are decided on together
Decide = Callable[[Floats, int], Bools]


@checked
def hessian(outer: npt.ArrayLike, sequences: int) -> Floats:
    """Return the Hessian of a linear's squared output error, with SparseGPT's scale.

    H = (2/n) sum over the calibration tokens of x x^T

    Args:
        outer: sum of x x^T, [in, in], in squared units of the linear's input.
        sequences: n, the number of sequences (not of tokens).

    Returns:
        H, [in, in], float64.

    Raises:
        RefimplError: No sequence.

    Source: SparseGPT (peer).

    Example:
        >>> hessian([[4.0, 2.0], [2.0, 1.0]], sequences=4)
        array([[2. , 1. ],
               [1. , 0.5]])
    """
    if sequences < 1:
        raise RefimplError(
            f"a Hessian from {sequences} sequences", "one or more", "pass calibration tokens"
        )
    return np.asarray(outer, dtype=np.float64) * (2 / sequences)


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
    require_finite(w)
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


@checked
def sparsegpt(
    weight: npt.ArrayLike,
    hessian: Hessian,
    target: int | Pattern,
    damping: float = DAMPING,
    width: int = WIDTH,
    new_dtype: np.dtype[Any] = FLOAT64,
) -> PrunedWeight:
    """Prune a linear with SparseGPT, to the exact count.

    Every `width` columns lose the lowest W^2 / diag(U)^2, W as compensated so far and dead inputs
    (H_dd = 0) scoring 0; the columns after each one compensate: `compensated`. `split_count` splits
    a count over the column blocks, ties go to the lower row-major index of the column block. For a
    pattern n:m, each group loses its n lowest scores at its first column, ties to the lowest
    column.

    Args:
        weight: W, [R, C], any float dtype.
        hessian: As of `compensated`.
        target: Weights to prune of the whole linear, or n of every m in each row.
        damping: Share of the mean of diag(H) added to it, at least 0.
        width: Columns decided on together.
        new_dtype: Of the new weights.

    Returns:
        The decision and the new weights; exactly the requested number are pruned.

    Raises:
        RefimplError: Shapes that do not fit, NaN or Inf, a Hessian that is not positive definite,
            a count that does not fit, an m that does not divide C and `width`.

    Source: SparseGPT (peer); docs/explanation/method.md, "Pruners".

    Differs: the peer prunes every score `<= sorted[int(n s)]` (one too many, and all ties), and
    zeroes dead inputs on top of the count.

    Example:
        >>> pruned = sparsegpt([[1.0, 2.0]], [[2.0, 1.0], [1.0, 2.0]], 1, damping=0)
        >>> pruned.keep, pruned.weight
        (array([[False,  True]]), array([[0. , 2.5]]))
    """
    shape = np.shape(weight)
    if len(shape) != 2:
        raise RefimplError(
            f"a weight of shape {shape}", "[out, in]", "pass the weight of one linear"
        )
    if isinstance(target, Pattern):
        decide, step = decide_groups(shape, target, width), target.group
    else:
        starts = range(0, shape[1], width)
        sizes = [shape[0] * min(width, shape[1] - start) for start in starts]
        lost = split_count(target, sizes).tolist()
        decide, step = (lambda score, start: magnitude_keep(score, lost[start // width])), width
    return compensated(weight, hessian, decide, step, damping, width, new_dtype)


def decide_groups(shape: tuple[int, ...], pattern: Pattern, width: int) -> Decide:
    """Return the decision of a pattern for groups of a weight [R, C], within `width` columns."""
    pattern_count(shape, pattern)
    if width % pattern.group != 0:
        raise RefimplError(
            f"the pattern {pattern} with SparseGPT, which takes {width} columns at a time",
            f"an m that divides {width}",
            "choose m among 1, 2, 4, 8, 16, 32, 64, 128",
        )
    return lambda score, start: pattern_keep(score, pattern)


@checked
def sparsegpt_peer(
    weight: npt.ArrayLike,
    hessian: Hessian,
    target: NotNegative | Pattern,
    damping: float = DAMPING,
    width: int = WIDTH,
    new_dtype: np.dtype[Any] = FLOAT64,
) -> PrunedWeight:
    """Prune a linear as SparseGPT's code does.

    The weights of dead inputs (H_dd = 0) are zero from the start. Per `width` columns
    keep = score > sorted(score)[int(size s)], or the n lowest of each group of m; scores and
    compensation as in `compensated`.

    Args:
        weight: W, [R, C], any float dtype.
        hessian: As of `compensated`.
        target: Sparsity s in [0, 1), or a pattern.
        damping: Share of the mean of diag(H) added to it, at least 0.
        width: Columns decided on together.
        new_dtype: Of the new weights.

    Returns:
        The decision, dead inputs not kept, and the new weights.

    Raises:
        RefimplError: As `sparsegpt`; or a sparsity that is negative, NaN, or so near 1 that the
            peer reads past the end of its list.

    Source: SparseGPT (peer); docs/explanation/method.md, "exact and peer".

    Differs: the peer computes in float32: if a score lies within its rounding of the threshold, a
    decision may differ, and with it the columns after.

    Example:
        >>> pruned = sparsegpt_peer([[1.0, 2.0]], [[2.0, 1.0], [1.0, 2.0]], 0.4, damping=0)
        >>> pruned.keep, pruned.weight
        (array([[False,  True]]), array([[0. , 2.5]]))
    """
    start, shared = np.asarray(weight, dtype=np.float64), SharedFactor.of(hessian)
    dead = np.zeros(0, bool)
    if start.ndim == 2 and shared.outer.shape == start.shape[1:] * 2:  # or it is refused below
        dead = shared.factored(damping)[1]
        start = np.where(dead, 0.0, start)
    if isinstance(target, Pattern):
        decide, step = decide_groups(start.shape, target, width), target.group
    else:
        decide, step = (lambda score, start: above_threshold(target, score)), width
    pruned = compensated(start, shared, decide, step, damping, width, new_dtype)
    return PrunedWeight(pruned.keep & ~dead, pruned.weight)


def _pruned(linear: LinearInputs, compat: Compat) -> PrunedWeight:
    prune: Callable[..., PrunedWeight] = sparsegpt if compat == "exact" else sparsegpt_peer
    total, how = linear.total, (linear.goal, linear.damping)
    shared = isinstance(total, SharedFactor)
    h = total if shared else SharedFactor(hessian(linear.sums, linear.sequences))
    return prune(linear.weight, h, *how, new_dtype=linear.new_dtype)


SPARSEGPT = Pruner(
    "sparsegpt",
    "SparseGPT",
    "arXiv:2301.00774; its code, `sparsegpt.py`",
    needs="products",
    compensate=_pruned,
    options=("damping",),
    deviations="the code prunes one weight more than requested, and all ties; it zeroes the "
    "weights of dead inputs on top of the count, and works in float32",
)
