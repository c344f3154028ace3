"""Wanda's scores of a whole block, a piece at a time, for OWL and DLP."""

from collections.abc import Iterable, Iterator
from math import fsum

import numpy as np

from refimpl.arguments import require
from refimpl.bases.base import BlockInputs
from refimpl.errors import RefimplError
from refimpl.pruners.checks import Floats
from refimpl.pruners.wanda import wanda_score

PIECE = 1 << 16  # scores computed at a time: they stay in a core's cache


class BlockScores(Iterable[Floats]):
    """Wanda scores of a block's linears, a few rows at a time, computed anew each time."""

    def __init__(self, block: BlockInputs) -> None:
        self.block = block

    def __iter__(self) -> Iterator[Floats]:
        for name, (out, width) in self.block.shapes.items():
            weight, rows = self.block.weight(name), max(1, PIECE // width)
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
            f"{size} scores with the sum {total}", "finite scores", "check the activations"
        )
    return total / size
