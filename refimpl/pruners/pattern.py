"""Patterns n:m: exactly n zeros in every m consecutive inputs of a row."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Checked, checked
from refimpl.errors import RefimplError
from refimpl.pruners.checks import Bools, score_matrix
from refimpl.pruners.wanda import wanda_keep

GROUPS = (2, 4, 8, 16)  # the group sizes that `pattern_of` tries
COMPARED = 8  # up to this size of a group, its scores are compared in pairs
EXPLAINED = 0.9  # share of the zeros that a pattern must account for


@dataclass(frozen=True)
class Pattern(Checked):
    """A pattern n:m, where n counts the zeros: 2:4 prunes 2 of every 4.

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
    matrix = score_matrix(score)
    count, groups = pattern_count(matrix.shape, pattern), matrix.reshape(-1, pattern.group)
    if pattern.group > COMPARED:  # every group a row of its own: Wanda's row rule
        return wanda_keep(groups, count).reshape(matrix.shape)
    rank = np.zeros(groups.shape, np.int8)
    for right in range(pattern.group):
        for left in range(right):
            first = groups[:, left] <= groups[:, right]
            rank[:, right] += first
            rank[:, left] += ~first
    keep: Bools = rank >= pattern.pruned
    return keep.reshape(matrix.shape)


@checked
def pattern_of(zero: npt.ArrayLike) -> Pattern | None:
    """Find the pattern n:m that the zeros of a weight follow, if they follow one.

    n = the fewest zeros in any group of m; the first of m = 2, 4, 8, 16 with 0 < n < m where n per
    group are at least 0.9 of all zeros. Every 2:4 is also a 4:8 and an 8:16, so the smallest m says
    most. Most long groups of a very sparse weight hold zeros without a pattern: hence the share.

    Args:
        zero: [out, in], True where the stored weight is zero.

    Returns:
        The pattern, or None; None also for a weight without zeros, or with nothing but zeros.

    Raises:
        RefimplError: Not a matrix.

    Example:
        >>> print(pattern_of([[1, 1, 0, 0, 0, 1, 0, 1]]), pattern_of([[1, 1, 1, 0], [0, 0, 0, 1]]))
        2:4 None
    """
    matrix = np.asarray(zero, dtype=bool)
    if matrix.ndim != 2 or matrix.size == 0:
        raise RefimplError(
            f"zeros of shape {matrix.shape}", "a matrix [out, in]", "look at one linear at a time"
        )
    zeros = int(matrix.sum())
    for group in (m for m in GROUPS if matrix.shape[1] % m == 0):
        fewest = int(matrix.reshape(-1, group).sum(axis=1).min())
        if 0 < fewest < group and fewest * (matrix.size // group) >= EXPLAINED * zeros:
            return Pattern(fewest, group)
    return None
