"""Sums over what the linears of the dense model read."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from refimpl.model.config import Config
from refimpl.model.forward import Weights
from refimpl.model.ops import Array
from refimpl.model.statistics import (
    Statistic,
    add_sums,
    input_of,
    second_moments,
)
from refimpl.model.stream import Stream
from refimpl.running.settings import Resources
from refimpl.running.threads import Workers
from refimpl.scoring.grouping import state_bytes
from refimpl.scoring.measurements import Squares

SEQUENCES_AT_RISK = 8  # per thread, in a unit whose results are kept: a kill loses it

Moments = tuple[Mapping[str, Array], ...]
"""Wanda's statistic per block and linear, [in]."""


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
