"""ADMM: which weights stay, and their new values, found together in rounds."""

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from refimpl.arguments import (
    Bools,
    Compat,
    Floats,
    NotNegative,
    checked,
    integer,
    require,
)
from refimpl.arguments import Fraction as Share
from refimpl.errors import RefimplError
from refimpl.pruners.counts import Pattern, pattern_count, pattern_keep
from refimpl.pruners.magnitude import magnitude_keep
from refimpl.pruners.pruner import Hessian, LinearInputs, Pruner, SharedFactor

_ROUNDS, _DECIDING = 20, 15  # the decision of the 15th round stays
_PENALTY = 0.1  # share of the mean of diag(G) added to it
_AT_ONCE = 1 << 18  # weights that are updated together


@checked
def admm(
    weight: npt.ArrayLike,
    outer: Hessian,
    target: int | NotNegative | Pattern,
    compat: Compat = "exact",
) -> tuple[Bools, Floats]:
    """Prune a linear by the alternating direction method of multipliers, to the exact count.

    D = sqrt(diag(X^T X)) + 1e-8;  G = D^-1 X^T X D^-1 + 0.1 mean(diag G) I;  A = (G + I)^-1.
    From B = B_0 = W D and U = 0, 20 rounds t = 0..19:  M = 0 for the k_t lowest |B + U|, else 1,
    k_t = round(k - k (1 - (t + 1) / 15)^3), and M stays from t = 14 on;  Z = (B + U) M;
    U <- B + U - Z;  B <- (B_0 G + Z - U) A. Of a pattern, the m - n largest of each group stay in
    every round. The new weights are (B + U) M D^-1.

    T = B + U is enough, since U = T (1 - M), Z - U = T (2 M - 1) and B_0 G A = B_0 - B_0 A:
    T <- T (1 - M) + B_0 + (T (2 M - 1) - B_0) A, a few rows at a time.

    Args:
        weight: W, [R, C], any float dtype.
        outer: X^T X, [C, C], the sum over the calibration tokens of x x^T, in squared units of the
            linear's input; linears that read the same input may pass the same `SharedFactor` of it.
        target: Weights to prune of the whole linear, k; with `peer` a sparsity s, a float; or n of
            every m in each row.
        compat: `exact` or `peer`.

    Returns:
        The decision and the new weights, float64; exactly the requested number are pruned.

    Raises:
        RefimplError: Shapes that do not fit, NaN or Inf, a count that does not fit, an m that does
            not divide C; with `peer`, a pattern other than 2:4 and 4:8.

    Source: arXiv:2401.02938, algorithms 1 and 2; its code, `lib/admm.py` (peer).

    Example:
        >>> keep, new = admm([[1.0, 2.0]], [[2.0, 1.0], [1.0, 2.0]], 1)
        >>> keep, new.round(3)
        (array([[False,  True]]), array([[0.   , 2.455]]))
    """
    shared, peer = SharedFactor.of(outer), compat == "peer"
    w = shared.checked(weight)
    pattern: Pattern | None = None
    if isinstance(target, Pattern):
        if peer and str(target) not in ("2:4", "4:8"):
            raise RefimplError(
                f"the pattern {target} with ADMM's code, which prunes 2:4 whatever is asked",
                "2:4, or 4:8",
                "use compat exact",
            )
        pattern = Pattern(2, 4) if peer else target
        count = pattern_count(w.shape, pattern)
    elif peer:
        require(target, Share, "sparsity")
        count = int(w.size * target)
    else:
        require(target, integer(0, w.size), "count")
        count = int(target)
    inverse, norms = shared.inverse(_inverse)
    t, keep = np.multiply(w, norms, dtype=np.float64), np.ones(w.shape, bool)
    step = max(1, _AT_ONCE // w.shape[1])
    pieces = [slice(start, start + step) for start in range(0, len(w), step)]
    for turn in range(_ROUNDS):
        if turn < _DECIDING:
            keep = _decided(t, count, turn, pattern, peer)
        for rows in pieces:
            first, stay = w[rows] * norms, keep[rows]
            change = (np.where(stay, t[rows], -t[rows]) - first) @ inverse
            t[rows] = np.where(stay, 0, t[rows]) + first + change
    return keep, np.where(keep, t / norms, 0.0)


def _inverse(outer: Floats) -> tuple[Floats, Floats]:
    """A, [C, C], and the diagonal of D, [C]."""
    norms = np.sqrt(np.diag(outer)) + 1e-8
    g = outer / norms / norms[:, None]
    diagonal = np.einsum("ii->i", g)  # a view
    diagonal += _PENALTY * diagonal.mean() + 1
    return np.asarray(np.linalg.inv(g), np.float64), norms


def _decided(
    t: Floats, count: int, turn: int, pattern: Pattern | None, peer: bool
) -> Bools:
    """M of a round."""
    size = np.abs(t)
    left = Fraction(_DECIDING - 1 - turn, _DECIDING) ** 3
    wanted = count - count * left
    if pattern is None:
        return magnitude_keep(size, count if peer else round(wanted))
    size[pattern_keep(size, pattern)] = np.inf
    return magnitude_keep(size, int(wanted) if peer else round(wanted))


def _pruned(linear: LinearInputs, compat: Compat) -> tuple[Bools, Floats]:
    return admm(linear.weight, linear.total, linear.goal, compat)


ADMM = Pruner(
    "admm",
    "ADMM",
    "arXiv:2401.02938; its code, `lib/admm.py`",
    needs="products",
    compensate=_pruned,
    peer=True,
    matrices=2,
    deviations="the code prunes to the final sparsity from the first round on, where the paper has "
    "a schedule, takes 4:8 for 2:4, and works in float32",
)
