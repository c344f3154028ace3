"""Wanda's scores of a whole block, a piece at a time: what OWL and DLP are made of."""

from collections.abc import Sequence
from math import fsum

import numpy as np

from refimpl.bases.base import BlockInputs
from refimpl.errors import RefimplError
from refimpl.pruners.checks import Floats
from refimpl.pruners.wanda import wanda_score

PIECE = 1 << 16  # scores computed at a time: they stay in a core's cache


class BlockScores(Sequence[Floats]):
    """Wanda scores of a block's linears, a few rows at a time, each computed when asked for."""

    def __init__(self, block: BlockInputs) -> None:
        self._block, self._means = block, block.means
        self._last = "", np.empty(0)
        self._pieces = [
            (name, slice(start, start + rows))
            for name, (out, width) in block.shapes.items()
            for rows in (max(1, PIECE // width),)
            for start in range(0, out, rows)
        ]

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> Floats:  # type: ignore[override]
        name, rows = self._pieces[index]
        last, weight = self._last
        if last != name:  # an expert's is read anew
            weight = self._block.weight(name)
            self._last = name, weight
        return wanda_score(weight[rows], self._means[name])


def mean_score(scores: Sequence[Floats]) -> float:
    """The mean over all pieces; refuses none, and a sum that is not finite."""
    sums = [(score.size, float(score.sum(dtype=np.float64))) for score in scores]
    size, total = sum(n for n, _ in sums), fsum(x for _, x in sums)
    if size == 0 or not np.isfinite(total):
        raise RefimplError(
            f"{size} scores with the sum {total}", "finite scores", "check the activations"
        )
    return total / size
