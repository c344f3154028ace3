"""Functions of several bases: they spread a signal over units, as we or as the peers' code does.

With compat `exact`, an allocation is still to be projected onto the budget, and a signal that is
the same for every unit gives the uniform one. Compat `peer` gives the numbers of the shipped code;
a signal that is the same for every unit gives NaN there, and an error here.
"""

import numpy as np
import numpy.typing as npt

from refimpl.bases.uniform import uniform
from refimpl.errors import RefimplError
from refimpl.pruners.checks import Compat, Floats, finite_vector

PEER_FLOOR = 0.01  # what the code of some peers has in place of a sparsity of 0 or less


def is_flat(signal: Floats, name: str, compat: Compat) -> bool:
    """Whether a signal is the same for every unit, for which the peers' code fails."""
    flat = bool(signal.max() == signal.min())
    if flat and compat == "peer":
        raise RefimplError(
            f"{name} is the same for every unit, which gives NaN in the peer's code",
            "at least two different values",
            "use `compat=exact`, which falls back to uniform",
        )
    return flat


def relative(signal: Floats) -> Floats:
    """A signal from 0, at its smallest value, to 1."""
    low, high = float(signal.min()), float(signal.max())
    return (signal - low) / (high - low)


def spread(signal: Floats, name: str, sparsity: float, half: float, compat: Compat) -> Floats:
    """``s_l = S - d_l + mean(d)``, d from 0 to 2 half in proportion to a signal."""
    flat = uniform(signal.size, sparsity)
    if is_flat(signal, name, compat):
        return flat
    d = 2 * half * relative(signal)
    return sparsity - d + d.mean()


def floored(allocation: Floats, compat: Compat) -> Floats:
    """An allocation; that of a peer without sparsities of 0 or less."""
    return np.where(allocation <= 0, PEER_FLOOR, allocation) if compat == "peer" else allocation


def by_share(
    signal: npt.ArrayLike, name: str, sparsity: float, half: float, compat: Compat
) -> Floats:
    """Blocks are pruned the more, the larger their share of a signal."""
    u = finite_vector(signal, name)
    if u.min() < 0:
        raise RefimplError(
            f"the {name} of a block is negative ({u.min():g})",
            "numbers of at least 0",
            "check the activations",
        )
    return spread(1 - u / u.sum() if u.any() else u, name, sparsity, half, compat)
