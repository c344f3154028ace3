"""What several bases share: how a signal is spread over units, and what the peers' code does then.

With compat `exact`, an allocation is still to be projected onto the budget, and a signal that is
the same for every unit gives the uniform one. Compat `peer` gives the numbers of the shipped code;
a signal that is the same for every unit gives NaN there, and an error here.
"""

import numpy.typing as npt

from refimpl.bases.uniform import uniform
from refimpl.errors import RefimplError
from refimpl.pruners.checks import Compat, Floats, finite_vector

PEER_FLOOR = 0.01  # what the code of some peers has in place of a sparsity of 0 or less


def is_flat(signal: Floats, name: str, compat: Compat) -> bool:
    """Whether a signal is the same for every unit, which the code of a peer does not survive."""
    flat = bool(signal.max() == signal.min())
    if flat and compat == "peer":
        raise RefimplError(
            f"{name} is the same for every unit, which gives NaN in the peer's code",
            "at least two different values",
            "use --compat exact, which falls back to uniform",
        )
    return flat


def relative(signal: Floats) -> Floats:
    """A signal from 0, at its smallest value, to 1."""
    low, high = float(signal.min()), float(signal.max())
    return (signal - low) / (high - low)


def spread(signal: Floats, sparsity: float, half: float) -> Floats:
    """``s_l = S - d_l + mean(d)``, d from 0 to 2 half in proportion to a signal."""
    d = 2 * half * relative(signal)
    return sparsity - d + d.mean()


def by_share(
    signal: npt.ArrayLike, name: str, sparsity: float, half: float, compat: Compat
) -> Floats:
    """Blocks are pruned the more, the larger their share of a signal."""
    u = finite_vector(signal, name)
    flat = uniform(u.size, sparsity)
    if u.min() < 0:
        raise RefimplError(
            f"the {name} of a block is negative ({u.min():g})",
            "numbers of at least 0",
            "check the activations",
        )
    imp = 1 - u / u.sum() if u.any() else u
    return flat if is_flat(imp, name, compat) else spread(imp, sparsity, half)
