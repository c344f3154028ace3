"""Base allocations: how much each unit is pruned, by six published methods (peers).

With compat `exact`, an allocation is still to be projected onto the budget, and a signal that is
the same for every unit gives the uniform one. Compat `peer` gives the numbers of the shipped code:
OWL's and DLP's code replaces a sparsity of 0 or less by 0.01; AlphaPruning's and LSA's code does
not clamp, so its values may exceed 1, and LSA's may be negative, which is an error here; a signal
that is the same for every unit gives NaN there, and an error here.

Source: OWL, AlphaPruning, DLP, LSA and ATP (peers); docs/explanation/method.md, "Base allocations".
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from refimpl.arguments import checked
from refimpl.errors import RefimplError
from refimpl.pruners.checks import Floats, finite_vector, number_in, unit_sizes

Compat = Literal["exact", "peer"]

_PEER_FLOOR = 0.01


@checked
def uniform(num_units: int, sparsity: float) -> Floats:
    """Return the same sparsity for every unit: s_u = S.

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
    return np.full(num_units, number_in(sparsity, "sparsity", 0, 1))


@checked
def owl(
    outlier_percent: npt.ArrayLike, sparsity: float, lam: float = 0.08, compat: Compat = "exact"
) -> Floats:
    """Return OWL's allocation: blocks with more outliers are pruned less.

    d_l = 2 lam (D_l - min D) / (max D - min D);  s_l = S - d_l + mean(d)

    Args:
        outlier_percent: D, outliers per block in percent, [L].
        sparsity: Target S, in [0, 1].
        lam: Half the spread of the allocation, in [0, 1].
        compat: `exact` or `peer`.

    Returns:
        Fraction pruned per block, [L].

    Raises:
        RefimplError: A number is out of range; with `peer`, all numbers are equal.

    Example:
        >>> owl([2.0, 3.0, 4.0], 0.7, lam=0.1).round(4)
        array([0.8, 0.7, 0.6])
    """
    outliers = finite_vector(outlier_percent, "outlier percent")
    flat = uniform(outliers.size, sparsity)
    number_in(lam, "lam", 0, 1)
    if _is_flat(outliers, "outlier percent", compat):
        return flat
    allocation = _spread(outliers, sparsity, lam)
    return _floored(allocation) if compat == "peer" else allocation


@checked
def alphapruning(
    alpha: npt.ArrayLike,
    sizes: npt.ArrayLike,
    sparsity: float,
    epsilon: float = 0.3,
    compat: Compat = "exact",
) -> Floats:
    """Return AlphaPruning's allocation: units with a heavier tail (lower alpha) are pruned less.

    phi = (q - min) / (max - min) * 2 eps + (1 - eps);  s_u = phi_u S N / sum(N_u phi_u)

    Args:
        alpha: q, per block the plain mean of its linears' alphas, or one per linear, [U].
        sizes: Weights per unit N_u, [U].
        sparsity: Target S, in [0, 1].
        epsilon: Half the spread of phi, in [0, 1].
        compat: `exact` or `peer`.

    Returns:
        Fraction pruned per unit, [U].

    Raises:
        RefimplError: A number is out of range; with `peer`, all numbers are equal.

    Example:
        >>> alphapruning([2.0, 3.0, 4.0], [1, 1, 1], 0.5, epsilon=0.2).round(4)
        array([0.4, 0.5, 0.6])
    """
    weights = unit_sizes(sizes)
    q = finite_vector(alpha, "alpha", weights.size)
    flat = uniform(q.size, sparsity)
    number_in(epsilon, "epsilon", 0, 1)
    if _is_flat(q, "alpha", compat):
        return flat
    phi = _relative(q) * 2 * epsilon + (1 - epsilon)
    return phi * (sparsity * float(weights.sum()) / float((weights * phi).sum()))


@checked
def dlp(score: npt.ArrayLike, sparsity: float, a: float = 0.15, compat: Compat = "exact") -> Floats:
    """Return DLP's allocation: blocks with higher scores are pruned more.

    imp = 1 - u / sum(u);  d = 2 a (imp - min) / (max - min);  s_l = S - d_l + mean(d)

    Args:
        score: u, mean or median Wanda score per block, [L], at least 0.
        sparsity: Target S, in [0, 1].
        a: Half the spread of the allocation, in [0, 1].
        compat: `exact` or `peer`.

    Returns:
        Fraction pruned per block, [L].

    Raises:
        RefimplError: A number is out of range; with `peer`, all numbers are equal.

    Example:
        >>> dlp([2.0, 3.0, 4.0], 0.7, a=0.1).round(4)
        array([0.6, 0.7, 0.8])
    """
    allocation = _by_share(score, "DLP score", sparsity, number_in(a, "a", 0, 1), compat)
    return _floored(allocation) if compat == "peer" else allocation


@checked
def lsa(
    error: npt.ArrayLike, sparsity: float, beta: float = 0.15, compat: Compat = "exact"
) -> Floats:
    """Return LSA's allocation: blocks that lose more without half of their weights are pruned more.

    imp = 1 - E / sum(E);  d = 2 beta (imp - min) / (max - min);  s_l = S - d_l + mean(d)

    Args:
        error: E, mean reconstruction error of the block's linears, [L], at least 0.
        sparsity: Target S, in [0, 1].
        beta: Half the spread of the allocation, in [0, 1]. The peer takes 0.10 for S = 0.6, 0.15
            for 0.7 and 0.12 for 0.8.
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
    half = number_in(beta, "beta", 0, 1)
    allocation = _by_share(error, "LSA error", sparsity, half, compat)
    if compat == "peer" and allocation.min() < 0:
        raise RefimplError(
            f"a sparsity of {allocation.min():.4f}, from which the peer's code counts backwards",
            "a beta that leaves every block at 0 or more",
            "use a smaller --base-option beta, or --compat exact, which projects",
        )
    return allocation


@checked
def atp(num_blocks: int, sparsity: float, beta: float) -> Floats:
    """Return ATP's allocation: a straight line over depth.

    s_i = S - beta (L - 1) / 2 + i beta,  i = 0..L-1

    Args:
        num_blocks: Number of blocks L.
        sparsity: Target S, in [0, 1].
        beta: Step per block, in fractions of the block; negative to prune early blocks more.

    Returns:
        Fraction pruned per block, [L].

    Raises:
        RefimplError: A number is out of range, or a sparsity outside [0, 1].

    Differs: ATP's script chooses beta on the test text; here the caller does.

    Example:
        >>> atp(3, 0.5, beta=0.1).round(4)
        array([0.4, 0.5, 0.6])
    """
    flat = uniform(num_blocks, sparsity)
    steep = number_in(beta, "beta", -1, 1)
    line = flat - steep * (num_blocks - 1) / 2 + np.arange(num_blocks) * steep
    if line.min() < 0 or line.max() > 1:
        reach = 2 * min(sparsity, 1 - sparsity) / (num_blocks - 1)
        raise RefimplError(
            f"beta {beta} gives sparsities from {line.min():.4f} to {line.max():.4f}",
            f"every block in [0, 1]: a beta from {-reach:.6g} to {reach:.6g}",
            f"use --base-option beta={np.copysign(reach, steep):.6g}, or one nearer to 0",
        )
    return line


def _is_flat(signal: Floats, name: str, compat: Compat) -> bool:
    flat = bool(signal.max() == signal.min())
    if flat and compat == "peer":
        raise RefimplError(
            f"{name} is the same for every unit, which gives NaN in the peer's code",
            "at least two different values",
            "use --compat exact, which falls back to uniform",
        )
    return flat


def _relative(signal: Floats) -> Floats:
    low, high = float(signal.min()), float(signal.max())
    return (signal - low) / (high - low)


def _spread(signal: Floats, sparsity: float, half: float) -> Floats:
    d = 2 * half * _relative(signal)
    return sparsity - d + d.mean()


def _floored(allocation: Floats) -> Floats:
    return np.where(allocation <= 0, _PEER_FLOOR, allocation)


def _by_share(
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
    return flat if _is_flat(imp, name, compat) else _spread(imp, sparsity, half)
