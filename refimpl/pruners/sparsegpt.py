"""SparseGPT: the weights after each pruned one compensate, column by column."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Bools, Compat, Floats, NotNegative, checked
from refimpl.errors import RefimplError
from refimpl.pruners.counts import Pattern, pattern_count, pattern_keep, split_count
from refimpl.pruners.magnitude import magnitude_keep
from refimpl.pruners.pruner import (
    DAMPING,
    Hessian,
    LinearInputs,
    Pruner,
    SharedFactor,
    inverse_of_upper,
)

WIDTH = 128  # columns that are decided on together
Decide = Callable[[Floats, int], Bools]


def compensated(
    weight: npt.ArrayLike,
    hessian: Hessian,
    decide: Decide,
    step: int,
    damping: float,
    width: int,
) -> tuple[Bools, Floats]:
    """Prune column by column; the columns after each one compensate what it lost.

    The arguments, results and errors are those of `sparsegpt`; a decision takes scores [R, up to
    step] and their first column, `step` divides `width`, and the rest of W is brought up to date
    after each `width` columns.

    U = V^-1 of `SharedFactor`, so H^-1 = U^T U. At every `step`-th column, keep = decide(W^2 /
    diag(U)^2) for the next `step` columns of the same `width`, W as compensated so far, dead inputs
    (H_dd = 0) scoring 0. At every column i, q_i = w_i where kept, else 0; err_i = (w_i - q_i) /
    U_ii; W_j -= err_i U_ij for all j > i.

    The compensation of columns a by columns b after them follows from the change of a:
    sum_i err_i U_ib = (new_a - W_a) V_ab U_bb. So U is needed within each `width` only.

    Source: SparseGPT (peer).
    """
    shared = SharedFactor.of(hessian)
    w = shared.checked(weight)
    upper, dead = shared.factored(damping)
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
                ahead = (
                    now[group] - before[0][:, group].T @ before[1] if i else now[group]
                )
                score = np.square(ahead) / scale[group]
                score[dead[block][group]] = 0
                kept[group] = decide(score.T, start + i).T
            column = now[i] - before[0][:, i] @ before[1]
            now[i] = np.where(kept[i], column, 0.0)
            errors[i] = (column - now[i]) / inverse[i, i]
        change[block] = now - dense
        keep[:, block], new[:, block] = kept.T, now.T
    return keep, new


@checked
def sparsegpt(
    weight: npt.ArrayLike,
    hessian: Hessian,
    target: NotNegative | Pattern,
    damping: float = DAMPING,
    width: int = WIDTH,
    compat: Compat = "exact",
) -> tuple[Bools, Floats]:
    """Prune a linear with SparseGPT, to the exact count, or as its code does.

    Every `width` columns lose their lowest scores, and the columns after each one compensate:
    `compensated`. `split_count` splits a count over the column blocks, ties go to the lower
    row-major index of the column block. For a pattern n:m, each group loses its n lowest scores at
    its first column, ties to the lowest column. With `peer`, keep = score > sorted(score)[int(size
    s)] per `width` columns, and the weights of dead inputs are zero from the start.

    Args:
        weight: W, [R, C], any float dtype.
        hessian: H, [C, C], in squared units of the linear's input; linears that read the same
            input may pass the same `SharedFactor` of it.
        target: Weights to prune of the whole linear, with `peer` a sparsity s in [0, 1); or n of
            every m in each row.
        damping: Share of the mean of diag(H) added to it, at least 0.
        width: Columns decided on together.
        compat: `exact` or `peer`.

    Returns:
        The decision and the new weights, float64; exactly the requested number are pruned. With
        `peer`, dead inputs are not kept.

    Raises:
        RefimplError: Shapes that do not fit, NaN or Inf, a Hessian that is not positive definite,
            a count that does not fit, an m that does not divide C and `width`; with `peer`, a
            sparsity so near 1 that the code reads past the end of its list.

    Source: SparseGPT (peer); docs/explanation/method.md, "Pruners".

    Example:
        >>> sparsegpt([[1.0, 2.0]], [[2.0, 1.0], [1.0, 2.0]], 1, damping=0)
        (array([[False,  True]]), array([[0. , 2.5]]))
    """
    shared, peer = SharedFactor.of(hessian), compat == "peer"
    w = shared.checked(weight)
    dead = shared.factored(damping)[1] & peer
    starts, step = range(0, w.shape[1], width), width
    lost: Any = target
    if isinstance(target, Pattern):
        step = target.group
        pattern_count(w.shape, target)
        if width % step != 0:
            raise RefimplError(
                f"the pattern {target} with SparseGPT, which takes {width} columns at a time",
                f"an m that divides {width}",
                "choose m among 1, 2, 4, 8, 16, 32, 64, 128",
            )
    elif not peer:
        lost = split_count(
            lost, [w.shape[0] * min(width, w.shape[1] - x) for x in starts]
        )

    def decide(score: Floats, start: int) -> Bools:
        if isinstance(target, Pattern):
            return pattern_keep(score, target)
        return magnitude_keep(score, float(lost) if peer else int(lost[start // width]))

    start = np.where(dead, 0, w) if peer else w
    keep, new = compensated(start, shared, decide, step, damping, width)
    return keep & ~dead, new


def _pruned(linear: LinearInputs, compat: Compat) -> tuple[Bools, Floats]:
    how: Any = linear.total, linear.goal, linear.damping, WIDTH, compat
    return sparsegpt(linear.weight, *how)


SPARSEGPT = Pruner(
    "sparsegpt",
    "SparseGPT",
    "arXiv:2301.00774; its code, `sparsegpt.py`",
    needs="products",
    compensate=_pruned,
    options=("damping",),
    peer=True,
    deviations="the code prunes one weight more than requested, and all ties; it zeroes the "
    "weights of dead inputs on top of the count, and works in float32",
)
