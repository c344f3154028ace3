"""How many weights to prune: from sparsities to whole numbers that add up exactly."""

import math

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Fraction, checked, integer, require
from refimpl.errors import RefimplError
from refimpl.pruners.checks import Ints, decimal, finite_vector, unit_sizes


@checked
def total_count(sparsity: Fraction, total: int) -> int:
    """Return how many of `total` weights a sparsity prunes.

    Z = round_half_even(S N), in exact fractions; S is the requested decimal, 7/10 for 0.7.

    Args:
        sparsity: Fraction to prune, in [0, 1].
        total: Number of weights N.

    Returns:
        The count Z, 0 <= Z <= N.

    Raises:
        RefimplError: The sparsity is not in [0, 1].

    Differs: peers truncate, `int(0.29 * 100)` being 28.

    Example:
        >>> total_count(0.29, 100), total_count(0.5, 5), total_count(0.7, 165)
        (29, 2, 116)
    """
    return round(decimal(sparsity) * total)


@checked
def apportion(quotas: npt.ArrayLike, sizes: npt.ArrayLike, total: int) -> Ints:
    """Round quotas to whole numbers that sum to `total`, by largest remainder.

    n_u = floor(q_u), and one more for the units with the largest q_u - floor(q_u),
    ties to the lower index, until sum n_u = total.

    Args:
        quotas: Weights to prune per unit before rounding, [U]; clipped to [0, size].
        sizes: Weights per unit, [U].
        total: Sum of the counts; less than 1 away from the sum of the quotas.

    Returns:
        Counts, [U], int64, with 0 <= count <= size.

    Raises:
        RefimplError: The quotas are not finite, or sum to another number than `total`.

    Example:
        >>> apportion([1.5, 2.5, 3.0], [4, 4, 4], 7)
        array([2, 2, 3])
    """
    room = unit_sizes(sizes)
    asked = np.clip(finite_vector(quotas, "quotas", room.size), 0, room)
    # A sum less than 1 off leaves 0 to (number of fractions) weights: one round is then enough.
    spent = math.fsum(asked)
    if not abs(spent - total) < 1:
        raise RefimplError(
            f"quotas sum to {spent:.3f}, the count is {total}",
            "quotas that sum to the count, within 1",
            "project the sparsities onto the budget first",
        )
    counts = np.floor(asked).astype(np.int64)
    order = np.argsort(counts - asked, kind="stable")  # largest remainder first, then lower index
    counts[order[: total - counts.sum()]] += 1
    return counts


@checked
def split_count(count: int, sizes: npt.ArrayLike) -> Ints:
    """Split a unit's count over its parts in proportion to their sizes, in exact integers.

    Quotas n N_j / sum(N), then largest remainder, ties to the lower index.

    Args:
        count: Weights to prune in the unit, n.
        sizes: Weights per part, [J]: the linears of a block, or a linear's column blocks.

    Returns:
        Counts, [J], int64, with sum n and 0 <= count <= size.

    Raises:
        RefimplError: The count is negative or exceeds sum(N).

    Example:
        >>> split_count(5, [4, 4, 4])
        array([2, 2, 1])
    """
    parts: list[int] = unit_sizes(sizes).tolist()
    whole = sum(parts)
    require(count, integer(0, whole), "count")
    floors, remainders = zip(*(divmod(int(count) * part, whole) for part in parts), strict=True)
    order = sorted(range(len(parts)), key=lambda j: -remainders[j])  # sorted() is stable
    favoured = set(order[: count - sum(floors)])
    return np.array([n + (j in favoured) for j, n in enumerate(floors)], dtype=np.int64)


@checked
def counts(sparsity_per_unit: npt.ArrayLike, sizes: npt.ArrayLike, sparsity: Fraction) -> Ints:
    """Return how many weights each unit loses; their sum is exactly the budget.

    Z = round_half_even(S N); quotas s_u N_u; largest remainder, so sum n_u = Z.

    Args:
        sparsity_per_unit: Fraction pruned per unit (block or linear), [U], meeting the budget.
        sizes: Weights per unit N_u, [U].
        sparsity: Target S over all N weights, in [0, 1].

    Returns:
        Counts, [U], int64, with sum Z and 0 <= n_u <= N_u.

    Raises:
        RefimplError: A sparsity outside [0, 1], or sparsities that do not meet the budget.

    Example:
        >>> counts([0.5, 0.75], [10, 10], 0.625)
        array([5, 7])
    """
    units = unit_sizes(sizes)
    fractions = finite_vector(sparsity_per_unit, "sparsity per unit", units.size)
    for fraction in (fractions.min(), fractions.max()):
        require(fraction, Fraction, "sparsity of a unit")
    return apportion(fractions * units, units, total_count(sparsity, int(units.sum())))
