"""OWL: blocks with more outliers are pruned less."""

from collections.abc import Iterable, Iterator, Mapping
from math import fsum

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Compat, Floats, Fraction, checked, finite_vector, require
from refimpl.bases.base import Base, BlockInputs, Option, Value, floored, spread
from refimpl.errors import RefimplError
from refimpl.pruners.wanda import wanda_score

_AT_ONCE = 1 << 16  # scores computed at a time: they stay in a core's cache


class BlockScores(Iterable[Floats]):
    """Wanda scores of a block's linears, a few rows at a time, computed anew each time."""

    def __init__(self, block: BlockInputs) -> None:
        self.block = block

    def __iter__(self) -> Iterator[Floats]:
        for name, (out, width) in self.block.shapes.items():
            weight, rows = self.block.weight(name), max(1, _AT_ONCE // width)
            mean = self.block.sums[name] / self.block.sequences
            for start in range(0, out, rows):
                yield wanda_score(weight[start : start + rows], mean)


def mean_score(scores: Iterable[Floats]) -> float:
    """The mean over all pieces; refuses none, and a sum that is not finite."""
    sums = list[tuple[int, float]]()
    for score in scores:
        require(score, Floats, "score")
        sums.append((score.size, float(score.sum(dtype=np.float64))))
    size, total = sum(n for n, _ in sums), fsum(x for _, x in sums)
    if size == 0 or not np.isfinite(total):
        raise RefimplError(
            f"{size} scores with the sum {total}",
            "finite scores",
            "check the activations",
        )
    return total / size


@checked
def owl_outlier_percent(scores: Iterable[Floats], m: float = 5.0) -> float:
    """Return the share of a block's scores that stand out, as OWL counts them.

    D = 100 * #{M > m * mean(M)} / #M, over all linears of the block together

    Args:
        scores: Wanda scores M of the block's linears, each [out, in]; they are read twice.
        m: Multiple of the mean above which (strictly) a score is an outlier.

    Returns:
        Percent, in [0, 100].

    Raises:
        RefimplError: There are no scores, or their sum is not finite.

    Example:
        >>> owl_outlier_percent([np.ones((2, 4)), np.array([[20.0, 1.0]])], m=5)
        10.0
    """
    threshold = m * mean_score(scores)
    outliers, size = 0, 0
    for score in scores:
        outliers += int(np.count_nonzero(score > threshold))
        size += score.size
    return 100.0 * outliers / size


@checked
def owl(
    outlier_percent: npt.ArrayLike,
    sparsity: Fraction,
    lam: Fraction = 0.08,
    compat: Compat = "exact",
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
    return floored(spread(outliers, "outlier percent", sparsity, lam, compat), compat)


def _signal(block: BlockInputs, options: Mapping[str, Value]) -> Mapping[str, float]:
    return {
        "outlier_percent": owl_outlier_percent(BlockScores(block), float(options["m"]))
    }


OWL = Base(
    "owl",
    "OWL",
    "arXiv:2310.05175; its code, `lib/prune_all.py`",
    lambda asked: owl(
        asked.signal, asked.sparsity, float(asked.options["lam"]), asked.compat
    ),
    options={
        "m": Option(
            5.0, "Multiple of the mean score that outliers exceed.", of_signal=True
        ),
        "lam": Option(0.08, "Half the spread of the allocation.", Fraction),
    },
    needs="squares",
    signal=_signal,
    symbol="D",
    unit="percent per block, m {m:g}",
    column="outliers %",
    formulas=(owl_outlier_percent, owl),
    deviations="the code replaces a sparsity of 0 or less by 0.01, restores no budget, and yields "
    "NaN where all D are equal",
)
