"""LSA: blocks whose outputs change more without half of their weights are pruned more."""

from collections.abc import Mapping
from functools import partial
from math import fsum

import numpy as np
import numpy.typing as npt

from refimpl.arguments import AtLeastZero, Compat, Floats, Fraction, checked
from refimpl.bases.base import Base, BlockInputs, Option, Value, by_share
from refimpl.errors import RefimplError

_AT_ONCE = (
    1 << 14
)  # weights of a group of columns decided on together: they stay in a core's cache


@checked
def lsa_error(weight: npt.ArrayLike, outer: npt.ArrayLike, group: int = 128) -> float:
    """Return the output error of a linear without half of its weights, as LSA chooses them.

    In each `group` of columns, every row loses half of its weights, one at a time: the one with
    the least eps_j = W_j^2 H_jj + 2 W_j sum_i W_i H_ij, i the weights that the row has lost;
    E = sum of these eps = sum over rows of ||X w||^2, w the lost weights

    Args:
        weight: W, [out, in], any float dtype; errors of separate rows add up.
        outer: H = sum over the calibration tokens of x x^T, [in, in]; E is proportional to it.
        group: Columns of a group, 0 for the whole row; the last group may be narrower.

    Returns:
        E, in squared units of the linear's output, at least 0.

    Raises:
        RefimplError: Shapes that do not fit, a negative group, an error that is not finite.

    Source: LSA (peer), `blk_s`.

    Example:
        >>> lsa_error([[1.0, 2.0, 3.0, 1.0]], np.eye(4), group=2)  # 1 of each pair
        2.0
        >>> lsa_error([[1.0, 2.0, 3.0, 1.0]], np.eye(4) + 1, group=2)  # the second costs 2 more
        6.0
    """
    w, h = np.asarray(weight, dtype=np.float64), np.asarray(outer, dtype=np.float64)
    if w.ndim != 2 or h.shape != (w.shape[1],) * 2 or group < 0:
        raise RefimplError(
            f"a weight of shape {w.shape}, outer products of shape {h.shape}, group {group}",
            "[out, in], [in, in], and 0 or more columns",
            "pass one linear and the sum over its own inputs",
        )
    lost, rows, error = np.zeros_like(w), np.arange(len(w)), 0.0
    for start in range(0, w.shape[1], group or w.shape[1]):
        columns = slice(start, start + (group or w.shape[1]))
        own, among = w[:, columns], np.ascontiguousarray(h[columns, columns])
        twice, change = 2 * own, np.empty_like(own)
        eps = own * (
            own * among.diagonal() + 2 * (lost[:, :start] @ h[:start, columns])
        )
        for _ in range(own.shape[1] // 2):
            j = eps.argmin(axis=1)
            error += float(eps[rows, j].sum())
            lost[rows, start + j] = taken = own[rows, j]
            np.take(
                among, j, axis=0, out=change, mode="clip"
            )  # other modes copy it once more
            change *= twice
            change *= taken[:, None]
            eps += change
            eps[rows, j] = np.inf
    if not np.isfinite(error):
        raise RefimplError(
            f"a reconstruction error of {error}",
            "finite inputs",
            "check the activations",
        )
    return max(error, 0.0)


@checked
def lsa(
    error: npt.ArrayLike,
    sparsity: Fraction,
    beta: Fraction = 0.15,
    compat: Compat = "exact",
) -> Floats:
    """Return LSA's allocation: blocks with a larger error without half of their weights lose more.

    imp = 1 - E / sum(E);  d = 2 beta (imp - min) / (max - min);  s_l = S - d_l + mean(d)

    Args:
        error: E, mean reconstruction error of the block's linears, [L], at least 0.
        sparsity: Target S, in [0, 1].
        beta: Half the spread of the allocation, in [0, 1].
        compat: `exact` or `peer`.

    Returns:
        Fraction pruned per block, [L].

    Raises:
        RefimplError: A number is out of range; with `peer`, all numbers are equal, or a sparsity is
            negative.

    Example:
        >>> lsa([2.0, 3.0, 4.0], 0.7, beta=0.1).round(4)
        array([0.6, 0.7, 0.8])
    """
    allocation = by_share(error, "LSA error", sparsity, beta, compat)
    if compat == "peer" and allocation.min() < 0:
        raise RefimplError(
            f"a sparsity of {allocation.min():.4f}, from which the peer's code counts backwards",
            "a beta that leaves every block at 0 or more",
            "use a smaller beta, or `compat=exact`, which projects",
        )
    return allocation


def _signal(block: BlockInputs, options: Mapping[str, Value]) -> Mapping[str, float]:
    """E of a block, H = (2/n) sum x x^T: an expert that saw no token has no error."""
    group, errors = int(options["block"]), list[float]()
    for name, (out, width) in block.shapes.items():
        if name in block.idle:
            continue
        weight, rows = block.weight(name), max(1, _AT_ONCE // (group or width))
        pieces = [
            partial(lsa_error, weight[start : start + rows], block.sums[name], group)
            for start in range(0, out, rows)
        ]
        errors += block.run(pieces)
    return {"error": 2 / block.sequences * (fsum(errors) / len(block.shapes))}


LSA = Base(
    "lsa",
    "LSA",
    "ICLR 2026; its code, `layersp/blk.py`",
    lambda asked: lsa(
        asked.signal, asked.sparsity, float(asked.options["beta"]), asked.compat
    ),
    options={
        "beta": Option(
            0.15,
            "Half the spread of the allocation; the code has 0.04, 0.1, 0.15, 0.12 for 50 to 80 %.",
            Fraction,
        ),
        "block": Option(
            128, "Columns of a group, which loses half; 0: the row.", AtLeastZero, True
        ),
    },
    needs="products",
    signal=_signal,
    symbol="E",
    unit="per block, {block} columns at a time",
    column="lsa error",
    formulas=(lsa_error, lsa),
    deviations="here, a narrower last group also loses half; the code prunes as many of its "
    "columns as of a full group's. It works in float32, restores no budget, and does not clamp",
)
