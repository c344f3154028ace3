"""The dense model: inputs of every linear on the tokens, spectra, and the signals made of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import add_sums, second_moments, sum_of_squares
from refimpl.model.stream import Stream
from refimpl.running.executors import LOCAL, Pool
from refimpl.running.threads import Workers
from refimpl.running.work_units import InOrder, results
from refimpl.scoring.activation_signals import BlockSignals
from refimpl.scoring.measurements import Squares
from refimpl.scoring.memory import read_together
from refimpl.scoring.spectra import Spectra as Spectra
from refimpl.scoring.spectra import spectra as spectra
from refimpl.storage.partial_results import PartialResults

KEPT = 8  # sequences per thread read together where their sums are kept


@dataclass(frozen=True)
class Profile:
    """Signals of the dense model.

    Args:
        moments: Wanda's statistic per block and linear, [in].
        owl_m: Multiple of the mean above which a score is an outlier.
        owl_outlier_percent: OWL's D per block, [L].
        dlp_statistic: "mean" or "median".
        dlp_score: DLP's u per block, [L].
    """

    moments: tuple[Mapping[str, Array], ...]
    owl_m: float
    owl_outlier_percent: Array
    dlp_statistic: str
    dlp_score: Array


@dataclass(frozen=True)
class Reading:
    """Some sequences on their way through the dense model.

    Args:
        ids: Token ids of each, [S], by number of the sequence.
        dtype: Of the computation.
    """

    ids: Mapping[int, Array]
    dtype: npt.DTypeLike = np.float32

    def cost(self, config: Config) -> float:
        """Block passes."""
        return len(self.ids) * config.num_blocks

    def run(
        self, model: Model, workers: Workers, tick: Callable[[float], None]
    ) -> dict[int, Squares]:
        """Sums of squares of the linears' inputs, by number of the sequence."""
        stream = Stream(model, self.ids, self.dtype)
        squares: dict[int, Squares] = dict.fromkeys(self.ids, ())
        for i in range(model.config.num_blocks):
            weights = model.block(i, self.dtype, workers.map)
            passes = [
                partial(stream.through_with_sums, h, weights, sum_of_squares)
                for h in stream.states.values()
            ]
            passed = dict(zip(self.ids, workers.run(passes, partial(tick, 1)), strict=True))
            stream.advance({sequence: h for sequence, (h, _) in passed.items()})
            for sequence, (_, sums) in passed.items():
                squares[sequence] += (sums,)
        return squares


def dense_squares(
    model: Model,
    ids: Array,
    workers: Workers,
    memory: int,
    dtype: npt.DTypeLike = np.float32,
    tick: Callable[[float], None] = lambda units: None,
    *,
    engine: Pool = LOCAL,
    part: PartialResults[str, Any] | None = None,
) -> Squares:
    """Run the dense model once over all tokens and sum the squares of the linears' inputs.

    Args:
        model: The model.
        ids: Token ids, [N, S].
        workers: Threads.
        memory: Bytes for residual states.
        dtype: Of the computation; sums are float64.
        tick: Called with the block passes done.
        engine: Where sequences are read; the sums do not depend on it.
        part: Keeps the sums of each sequence, and holds those that an earlier run found.

    Returns:
        Per block and trace point that is some linear's input, the sums, [in].
    """
    known = {} if part is None else part.results
    left = [n for n in range(len(ids)) if f"dense {n}" not in known]
    most = 1 if engine.executor is not None else None if part is None else KEPT * workers.threads
    room = read_together(model.config, ids.shape[1], memory, dtype, most)
    units = [
        Reading({n: ids[n] for n in left[start : start + room]}, dtype)
        for start in range(0, len(left), room)
    ]
    total: Squares = tuple({} for _ in model.config.blocks)
    ordered = InOrder[Squares]()

    def take(sequence: int, squares: Squares) -> None:
        for blocks in ordered.add(sequence, squares):
            for total_of, more in zip(total, blocks, strict=True):
                add_sums(total_of, more)

    for n in sorted(set(range(len(ids))) - set(left)):
        take(n, tuple(known[f"dense {n}"]))
    for _, found in results(units, model, engine, workers, tick):
        if part is not None:
            part.add({f"dense {sequence}": squares for sequence, squares in found.items()})
        for sequence, squares in found.items():
            take(sequence, squares)
    return total


def profile(
    model: Model,
    squares: Sequence[Mapping[str, Array]],
    sequences: int,
    workers: Workers,
    dtype: npt.DTypeLike = np.float32,
    owl_m: float = 5.0,
    dlp_statistic: str = "mean",
    *,
    engine: Pool = LOCAL,
) -> Profile:
    """Compute the activation signals of the dense model.

    Args:
        model: The model.
        squares: Sums of squares of the linears' inputs, per block.
        sequences: Number of sequences they were summed over.
        workers: Threads.
        dtype: In which the weights are read; scores are float64.
        owl_m: OWL's m.
        dlp_statistic: "mean" or "median".
        engine: Where blocks are looked at; the signals do not depend on it.

    Returns:
        Statistics and signals.

    Source:
        OWL, DLP and Wanda (peers, confirmed by running them).
    """
    config = model.config
    moments = tuple(second_moments(sums, sequences, config) for sums in squares)
    units = (
        BlockSignals(i, of_block, owl_m, dlp_statistic, dtype) for i, of_block in enumerate(moments)
    )
    owl, dlp = np.zeros((2, config.num_blocks))
    for unit, (outliers, typical) in results(units, model, engine, workers, lambda blocks: None):
        owl[unit.block], dlp[unit.block] = outliers, typical
    return Profile(moments, owl_m, owl, dlp_statistic, dlp)
