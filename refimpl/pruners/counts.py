"""How many weights to prune: whole numbers that add up exactly, and patterns n:m."""

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refimpl.arguments import (
    Bools,
    Checked,
    Fraction,
    Ints,
    checked,
    decimal,
    finite_vector,
    integer,
    number_array,
    require,
    unit_sizes,
)
from refimpl.errors import RefimplError
from refimpl.pruners.wanda import wanda_keep

_COMPARED = 8  # up to this size of a group, its scores are compared in pairs


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
    order = np.argsort(
        counts - asked, kind="stable"
    )  # largest remainder first, then lower index
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
    floors, remainders = zip(
        *(divmod(int(count) * part, whole) for part in parts), strict=True
    )
    order = sorted(
        range(len(parts)), key=lambda j: -remainders[j]
    )  # sorted() is stable
    favoured = set(order[: count - sum(floors)])
    return np.array([n + (j in favoured) for j, n in enumerate(floors)], dtype=np.int64)


@checked
def counts(
    sparsity_per_unit: npt.ArrayLike, sizes: npt.ArrayLike, sparsity: Fraction
) -> Ints:
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


@dataclass(frozen=True)
class Pattern(Checked):
    """A pattern n:m, n zeros in every m consecutive inputs of a row: 2:4 prunes 2 of every 4.

    Args:
        pruned: Zeros per group, n, 0 <= n <= m.
        group: Consecutive inputs of a row that form a group, m, at least 1.

    Raises:
        RefimplError: n or m out of range.

    Source: `prune_n` of Wanda's and SparseGPT's code (peers).

    Example:
        >>> print(Pattern(pruned=2, group=4))
        2:4
    """

    pruned: int
    group: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pruned <= self.group or self.group < 1:
            raise RefimplError(
                f"the pattern {self}: n counts the zeros in every m consecutive inputs",
                "n:m with 0 <= n <= m and m of at least 1",
                "use a pattern such as 2:4",
            )

    def __str__(self) -> str:
        return f"{self.pruned}:{self.group}"


@checked
def parse_pattern(text: str) -> Pattern:
    """Read a pattern n:m, where n counts the zeros.

    Args:
        text: For example "2:4", two zeros in every four.

    Returns:
        The pattern.

    Raises:
        RefimplError: Not two whole numbers with a colon between them, or n > m, or m < 1.

    Example:
        >>> parse_pattern("2:4")
        Pattern(pruned=2, group=4)
    """
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    if match is None:
        raise RefimplError(
            f"the pattern {text!r}",
            "n:m, two whole numbers, n zeros in every m consecutive inputs",
            "use a pattern such as 2:4",
        )
    return Pattern(int(match[1]), int(match[2]))


@checked
def pattern_count(shape: tuple[int, ...], pattern: Pattern) -> int:
    """Return how many weights of a linear a pattern prunes: n R C / m.

    Args:
        shape: [R, C] of the linear.
        pattern: n:m.

    Returns:
        The count.

    Raises:
        RefimplError: m does not divide C.

    Differs: the peers also prune a last, shorter group.

    Example:
        >>> pattern_count((3, 8), Pattern(2, 4))
        12
    """
    if len(shape) != 2 or shape[1] % pattern.group != 0:
        raise RefimplError(
            f"{pattern} on a weight of shape {tuple(shape)}",
            f"[out, in] with a number of inputs that {pattern.group} divides",
            "choose an m that divides the inputs of every linear, or prune to a sparsity",
        )
    return shape[0] * shape[1] // pattern.group * pattern.pruned


@checked
def pattern_keep(score: npt.ArrayLike, pattern: Pattern) -> Bools:
    """Decide which weights stay if the n lowest scores of every m consecutive inputs are removed.

    The n smallest of score[r, m g : m (g + 1)] for every row r and group g, ties to the lowest
    column.

    Args:
        score: [R, C], without NaN.
        pattern: n:m, n zeros in every m.

    Returns:
        keep, [R, C], True = stays; exactly n of every group are False.

    Raises:
        RefimplError: The score is not a matrix or holds NaN, or m does not divide C.

    Source: Wanda, SparseGPT (peers).

    Differs: the peers leave ties to `torch.topk`, which promises no order.

    Example:
        >>> pattern_keep([[3.0, 1.0, 1.0, 1.0], [9.0, 7.0, 8.0, 6.0]], Pattern(2, 4)).astype(int)
        array([[1, 0, 0, 1],
               [1, 0, 1, 0]])
    """
    matrix = number_array("scores", score, 2, finite=False)
    count, groups = (
        pattern_count(matrix.shape, pattern),
        matrix.reshape(-1, pattern.group),
    )
    if pattern.group > _COMPARED:  # every group a row of its own: Wanda's row rule
        return wanda_keep(groups, count).reshape(matrix.shape)
    rank = np.zeros(groups.shape, np.int8)
    for right in range(pattern.group):
        for left in range(right):
            first = groups[:, left] <= groups[:, right]
            rank[:, right] += first
            rank[:, left] += ~first
    keep: Bools = rank >= pattern.pruned
    return keep.reshape(matrix.shape)
