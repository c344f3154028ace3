"""What the linears of the dense model read: one pass over all tokens, in units of sequences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.model.config import Config
from refimpl.model.forward import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import (
    Statistic,
    add_sums,
    input_of,
    second_moments,
    sum_of_squares,
)
from refimpl.model.stream import Stream
from refimpl.running.settings import Resources
from refimpl.running.threads import Workers
from refimpl.running.work_units import Tick, results
from refimpl.scoring.grouping import state_bytes
from refimpl.scoring.measurements import Squares

SEQUENCES_AT_RISK = 8  # per thread, in a unit whose results are kept: a kill loses it

Moments = tuple[Mapping[str, Array], ...]
"""Wanda's statistic per block and linear, [in]."""


@dataclass(frozen=True)
class DenseSequences:
    """Sequences on their way through the dense model, ids [S] by their number: a work unit."""

    ids: Mapping[int, Array]
    dtype: npt.DTypeLike = np.float32

    def cost(self, config: Config) -> float:
        """Block passes."""
        return len(self.ids) * config.num_blocks

    def run(self, model: Model, workers: Workers, tick: Tick) -> dict[str, Squares]:
        """Sums of squares of the linears' inputs, by sequence."""
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
        return {f"dense {sequence}": sums for sequence, sums in squares.items()}


class SummedSquares:
    """Squares over all sequences, added by number of the sequence, whichever is computed first."""

    def __init__(self, total: Squares) -> None:
        self.total, self._next, self._waiting = total, 0, dict[int, Squares]()

    def add(self, sequence: int, squares: Squares) -> None:
        """Add the squares of a sequence when those of all sequences before it are added."""
        self._waiting[sequence] = squares
        while self._next in self._waiting:
            for total, sums in zip(self.total, self._waiting.pop(self._next), strict=True):
                add_sums(total, sums)
            self._next += 1


def dense_squares(model: Model, ids: Array, resources: Resources) -> Squares:
    """Run the dense model once over all tokens and sum the squares of the linears' inputs.

    Args:
        model: The model.
        ids: Token ids, [N, S].
        resources: What it runs on; only the dtype changes the sums.

    Returns:
        Per block and trace point that is some linear's input, the sums, [in], float64.
    """
    squares, earlier = SummedSquares(tuple({} for _ in model.config.blocks)), resources.earlier
    rows = {n: row for n, row in enumerate(ids) if f"dense {n}" not in earlier}
    for n in range(len(ids)):
        if n not in rows:
            squares.add(n, tuple(earlier[f"dense {n}"]))
    units = dense_units(model.config, rows, resources, resources.finished is not None)
    for sums in results(units, model, resources):
        resources.keep(sums)
        for key, of_blocks in sums.items():
            squares.add(int(key.split()[1]), of_blocks)
    return squares.total


def dense_units(
    config: Config, ids: Mapping[int, Array], resources: Resources, keep: bool
) -> list[DenseSequences]:
    """The work units of `dense_squares` over these sequences, [S] by their number."""
    left, length = [*ids], max((len(row) for row in ids.values()), default=1)
    size = sequences_together(config, length, resources, keep)
    return [
        DenseSequences({n: ids[n] for n in left[start : start + size]}, resources.dtype)
        for start in range(0, len(left), size)
    ]


def sums_of_all(
    stream: Stream,
    weights: Weights,
    statistic: Statistic,
    workers: Workers,
    tick: Callable[[], None] | None = None,
) -> tuple[dict[int, Array], dict[str, Array]]:
    """All states of a stream after its next block, and the sums of what the block's linears read.

    The sums are added in the order of the states; as those of outer products are large, only as
    many are in memory as there are threads.
    """
    after, total, numbers = dict[int, Array](), dict[str, Array](), list(stream.states)
    for start in range(0, len(numbers), workers.threads):
        together = numbers[start : start + workers.threads]
        passes = [
            partial(stream.through_with_sums, stream.states[n], weights, statistic)
            for n in together
        ]
        for n, (h, sums) in zip(together, workers.run(passes, tick), strict=True):
            after[n] = h
            add_sums(total, sums)
    return after, total


def sequences_together(config: Config, length: int, resources: Resources, keep: bool) -> int:
    """How many sequences of `length` tokens a unit holds: one if it is sent to workers.

    Here, as many as fit into memory with their sums, at least one; fewer if finished units are to
    be kept after each unit.
    """
    if resources.executor is not None:
        return 1
    widths = [
        {input_of(name): width for name, (_, width) in linears.items()}
        for linears in config.linears
    ]
    sums_bytes = 8 * sum(sum(of_block.values()) for of_block in widths)  # float64
    each = 2 * state_bytes(config, length, resources.dtype) + sums_bytes
    fitting = max(1, resources.memory // each)
    return min(fitting, SEQUENCES_AT_RISK * resources.workers.threads) if keep else fitting


def wanda_moments(
    squares: Sequence[Mapping[str, Array]], sequences: int, config: Config
) -> Moments:
    """Wanda's statistic of every block and linear, [in], from sums over so many sequences."""
    return tuple(
        second_moments(sums, sequences, linears)
        for sums, linears in zip(squares, config.linears, strict=True)
    )
