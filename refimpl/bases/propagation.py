"""Propagation after PALS: blocks whose pruning disturbs later blocks more are pruned less."""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Fraction, checked
from refimpl.bases.base import Base, BaseInputs, Option, Value
from refimpl.pruners.checks import Floats, finite_vector


@checked
def reach(drift: npt.ArrayLike) -> Floats:
    """Return how much the pruning of each block alone disturbs the blocks after it.

    g_l = mean of ln R_lk over k = l..L

    Args:
        drift: R, mean relative drift after block k of the state that block l, pruned alone,
            perturbed, [L (l), L (k)]; NaN for k < l.

    Returns:
        g, [L]; the least value if a block's pruning changes nothing, or nothing at the end.

    Example:
        >>> reach([[0.5, 0.125], [np.nan, 0.25]]).round(4)
        array([-1.3863, -1.3863])
    """
    logs = np.log(np.maximum(np.asarray(drift, np.float64), np.finfo(np.float64).tiny))
    return np.array([row[i:].mean() for i, row in enumerate(logs)])


@checked
def propagation(
    signal: npt.ArrayLike, sparsity: Fraction, width: Fraction = 0.15, steepness: float = 8.0
) -> Floats:
    """Return an allocation by the rank of blocks, spread along a logistic curve.

    p_l = (rank of g_l - 1/2) / L, mean of ties;  f(p) = 1 / (1 + exp(-steepness (p - 1/2))) - 1/2
    d_l = width f(p_l) / max |f|;  s_l = S - d_l + mean(d)

    Args:
        signal: g, [L].
        sparsity: Target S, in [0, 1].
        width: Half the spread of the allocation, in [0, 1].
        steepness: Steepness of the curve, above 0.

    Returns:
        Fraction pruned per block, [L].

    Raises:
        RefimplError: A number is out of range.

    Source: PALS (peer), after its README; aggregation, width and curve are ours.

    Example:
        >>> propagation([3.0, 1.0, 2.0], 0.5, width=0.1).round(4)
        array([0.4, 0.6, 0.5])
    """
    g = finite_vector(signal, "reach")
    below, upto = (g[:, None] > g).sum(axis=1), (g[:, None] >= g).sum(axis=1)
    p = (below + upto) / (2 * g.size)
    f = 1 / (1 + np.exp(-steepness * (p - 0.5))) - 0.5
    d = width * f / (np.abs(f).max() or 1.0)
    return sparsity - d + d.mean()


def _signal(drift: Floats, options: Mapping[str, Value]) -> Mapping[str, Floats]:
    return {"reach": reach(drift)}


def _allocation(asked: BaseInputs) -> Floats:
    width, steepness = (float(asked.options[name]) for name in ("width", "steepness"))
    return propagation(asked.signal, asked.sparsity, width, steepness)


PROPAGATION = Base(
    "propagation",
    "propagation",
    "after PALS, of which we know only the README",
    _allocation,
    options={
        "width": Option(0.15, "Half the spread of the allocation.", Fraction),
        "steepness": Option(8.0, "Steepness of the logistic curve.", Annotated[float, 1e-6, 100]),
    },
    needs="drifts",
    signal=_signal,
    symbol="g",
    unit="per block",
    column="reach",
    formulas=(reach, propagation),
    deviations="PALS' code is not public, so its aggregation and its spread are unknown",
)
