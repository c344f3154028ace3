"""AlphaPruning: blocks whose spectrum has a heavier tail are pruned less."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refimpl.arguments import (
    Compat,
    Floats,
    Fraction,
    checked,
    finite_vector,
    unit_sizes,
)
from refimpl.bases.base import Base, BaseInputs, BlockInputs, Option, Value, relative
from refimpl.bases.uniform import uniform
from refimpl.method.spectrum import alphapruning_alpha, esd


@checked
def alphapruning(
    alpha: npt.ArrayLike,
    sizes: npt.ArrayLike,
    sparsity: Fraction,
    epsilon: Fraction = 0.3,
    compat: Compat = "exact",
) -> Floats:
    """Return AlphaPruning's allocation: blocks with a heavier tail (lower alpha) are pruned less.

    phi = (q - min) / (max - min) * 2 eps + (1 - eps);  s_l = phi_l S N / sum(N_l phi_l)

    Args:
        alpha: q, per block the plain mean of its linears' alphas, [L].
        sizes: Weights per block N_l, [L].
        sparsity: Target S, in [0, 1].
        epsilon: Half the spread of phi, in [0, 1].
        compat: `exact` or `peer`.

    Returns:
        Fraction pruned per block, [L].

    Raises:
        RefimplError: A number is out of range; with `peer`, all numbers are equal.

    Example:
        >>> alphapruning([2.0, 3.0, 4.0], [1, 1, 1], 0.5, epsilon=0.2).round(4)
        array([0.4, 0.5, 0.6])
    """
    weights = unit_sizes(sizes)
    q = finite_vector(alpha, "alpha", weights.size)
    if (part := relative(q, "alpha", compat)) is None:
        return uniform(q.size, sparsity)
    phi = part * 2 * epsilon + (1 - epsilon)
    return phi * (sparsity * float(weights.sum()) / float((weights * phi).sum()))


def _signal(
    block: BlockInputs, options: Mapping[str, Value]
) -> Mapping[str, Sequence[float]]:
    how: Any = options["fit"], options["xmin"]

    def alpha(name: str) -> float:
        return alphapruning_alpha(esd(block.weight(name)), *how).alpha

    return {"alpha": block.run([partial(alpha, name) for name in block.shapes])}


def _allocation(asked: BaseInputs) -> Floats:
    q, epsilon = np.nanmean(asked.signal, axis=1), float(asked.options["epsilon"])
    return alphapruning(
        q, asked.sizes.sum(axis=1), asked.sparsity, epsilon, asked.compat
    )


ALPHAPRUNING = Base(
    "alphapruning",
    "AlphaPruning",
    "arXiv:2410.10912; its code",
    _allocation,
    options={
        "epsilon": Option(0.3, "Half the spread of phi.", Fraction),
        "fit": Option(
            "peak",
            "Where the tail starts: at the peak of the histogram, or in the middle.",
            Literal["peak", "mid"],
            of_signal=True,
        ),
        "xmin": Option(
            "shipped",
            "Lowest start of the tail at the peak: as in the peer's code, or as intended.",
            Literal["shipped", "intended"],
            of_signal=True,
        ),
    },
    needs="weights",
    signal=_signal,
    symbol="alpha",
    unit="[blocks, linears]",
    column="alpha",
    formulas=(esd, alphapruning_alpha, alphapruning),
    deviations="the code restores no budget and does not clamp, so a sparsity may exceed 1; zero "
    "singular values crash it",
)
