"""Uniform: every block loses the same fraction."""

import numpy as np

from refimpl.arguments import AtLeastOne, Floats, Fraction, checked
from refimpl.bases.base import Base


@checked
def uniform(num_units: AtLeastOne, sparsity: Fraction) -> Floats:
    """Return the same sparsity for every unit.

    s_u = S

    Args:
        num_units: Number of units U.
        sparsity: Target S, in [0, 1].

    Returns:
        Fraction pruned per unit, [U].

    Raises:
        RefimplError: The sparsity is not in [0, 1].

    Example:
        >>> uniform(2, 0.5)
        array([0.5, 0.5])
    """
    return np.full(num_units, float(sparsity))


UNIFORM = Base(
    "uniform",
    "uniform",
    "the usual baseline",
    lambda asked: uniform(len(asked.linears), asked.sparsity),
    formulas=(uniform,),
)
