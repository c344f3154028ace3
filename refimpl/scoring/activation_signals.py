"""OWL's and DLP's signals of the dense model, in units of blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.method.signals import dlp_score, owl_outlier_percent
from refimpl.model.config import Config
from refimpl.model.forward import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.pruners.scores import wanda_score
from refimpl.running.settings import Resources
from refimpl.running.threads import Workers
from refimpl.running.work_units import Tick, results
from refimpl.scoring.dense_statistics import Moments

PIECE = 1 << 16  # scores computed at a time: they stay in a core's cache


class BlockScores(Sequence[Array]):
    """Wanda scores of a block's linears, a few rows at a time, each computed when asked for."""

    def __init__(self, weights: Weights, moments: Mapping[str, Array]) -> None:
        self._weights, self._moments = weights, moments
        self._last = "", np.empty(0)
        self._pieces = [
            (name, slice(start, start + rows))
            for name, moment in moments.items()
            for rows in (max(1, PIECE // len(moment)),)
            for start in range(0, len(weights[f"{name}.weight"]), rows)
        ]

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> Array:  # type: ignore[override]
        name, rows = self._pieces[index]
        last, weight = self._last
        if last != name:  # an expert's is read anew
            weight = self._weights[f"{name}.weight"]
            self._last = name, weight
        return wanda_score(weight[rows], self._moments[name])


@dataclass(frozen=True)
class BlockSignals:
    """The signals of one block: a work unit. `moments` is Wanda's statistic per linear, [in]."""

    block: int
    moments: Mapping[str, Array]
    owl_m: float
    dlp_statistic: str
    dtype: npt.DTypeLike = np.float32

    def cost(self, config: Config) -> float:
        """Nothing: beside the passes, the signals take no time worth reporting."""
        return 0

    def run(self, model: Model, workers: Workers, tick: Tick) -> tuple[float, float]:
        """OWL's D and DLP's u."""
        weights = model.block(self.block, self.dtype, workers.map)
        scores = [BlockScores(weights, self.moments) for _ in range(2)]  # one for each thread
        owl = partial(owl_outlier_percent, scores[0], self.owl_m)
        dlp = partial(dlp_score, scores[1], "median" if self.dlp_statistic == "median" else "mean")
        outliers, score = workers.run([owl, dlp])
        return outliers, score


def activation_signals(
    model: Model, moments: Moments, owl_m: float, dlp_statistic: str, resources: Resources
) -> tuple[Array, Array]:
    """Compute OWL's and DLP's signals of every block.

    Args:
        model: The dense model.
        moments: Wanda's statistic per block and linear, [in].
        owl_m: Multiple of the mean above which a score is an outlier.
        dlp_statistic: "mean" or "median".
        resources: What it runs on; only the dtype changes the numbers.

    Returns:
        OWL's D and DLP's u, both [L].

    Source: OWL, DLP and Wanda (peers).
    """
    units = (
        BlockSignals(i, of_block, owl_m, dlp_statistic, resources.dtype)
        for i, of_block in enumerate(moments)
    )
    owl, dlp = np.zeros((2, model.config.num_blocks))
    for unit, signals in results(units, model, resources.pool, resources.workers, resources.tick):
        owl[unit.block], dlp[unit.block] = signals
    return owl, dlp
