"""DLP: blocks with higher scores are pruned more."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Compat, Floats, Fraction, checked
from refimpl.bases.base import Base, BlockInputs, Option, Value, by_share, floored
from refimpl.bases.owl import BlockScores, mean_score


@checked
def dlp_score(
    scores: Iterable[Floats], statistic: Literal["mean", "median"] = "mean"
) -> float:
    """Return the typical score of a block, as DLP ranks blocks.

    u = mean(M) or median(M), over all linears of the block together

    Args:
        scores: Wanda scores M of the block's linears, each [out, in], at least 0.
        statistic: `mean` as in DLP's code, or `median` as in its paper.

    Returns:
        u, in units of the scores.

    Raises:
        RefimplError: There are no scores, or their sum is not finite.

    Differs: the median of an even number of scores is the mean of the middle two.

    Example:
        >>> dlp_score([np.array([[1.0, 2.0]]), np.array([[6.0]])])
        3.0
        >>> dlp_score([np.array([[1.0, 2.0]]), np.array([[6.0]])], "median")
        2.0
    """
    mean = mean_score(scores)
    if statistic == "mean":
        return mean
    size = sum(score.size for score in scores)
    return (_ranked(scores, (size - 1) // 2) + _ranked(scores, size // 2)) / 2


def _ranked(scores: Iterable[Floats], rank: int) -> float:
    """The score of a rank, a piece of them in memory at a time: 16 of its bits after the others."""
    low = 0
    for shift in (48, 32, 16, 0):
        counts = np.zeros(1 << 16, int)
        for score in scores:
            digits = np.asarray(score, float).view(np.uint64) - low >> shift
            np.add.at(counts, digits[digits < counts.size], 1)
        ends = np.append(0, counts).cumsum()
        digit = int(np.searchsorted(ends, rank, "right")) - 1
        rank -= ends[digit]
        low += digit << shift
    return float(np.uint64(low).view(float))


@checked
def dlp(
    score: npt.ArrayLike,
    sparsity: Fraction,
    a: Fraction = 0.15,
    compat: Compat = "exact",
) -> Floats:
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
    return floored(by_share(score, "DLP score", sparsity, a, compat), compat)


def _signal(block: BlockInputs, options: Mapping[str, Value]) -> Mapping[str, float]:
    statistic: Any = options["statistic"]
    return {"score": dlp_score(BlockScores(block), statistic)}


DLP = Base(
    "dlp",
    "DLP",
    "arXiv:2505.23807; its code",
    lambda asked: dlp(
        asked.signal, asked.sparsity, float(asked.options["a"]), asked.compat
    ),
    options={
        "a": Option(0.15, "Half the spread of the allocation.", Fraction),
        "statistic": Option(
            "mean",
            "Typical score of a block: the mean (DLP's code) or the median (its paper).",
            Literal["mean", "median"],
            of_signal=True,
        ),
    },
    needs="squares",
    signal=_signal,
    symbol="u",
    unit="per block, {statistic}",
    column="dlp {statistic}",
    formulas=(dlp_score, dlp),
    deviations="the code replaces a sparsity of 0 or less by 0.01, restores no budget, and yields "
    "NaN where all shares are equal",
)
