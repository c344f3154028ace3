"""Sums over what the linears of the dense model read."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from refimpl.model.config import Config
from refimpl.model.forward import Weights
from refimpl.model.ops import Array
from refimpl.model.statistics import Statistic, add_sums, second_moments
from refimpl.model.stream import Stream
from refimpl.running.threads import Workers

Moments = tuple[Mapping[str, Array], ...]
"""Wanda's statistic per block and linear, [in]."""


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


def wanda_moments(
    squares: Sequence[Mapping[str, Array]], sequences: int, config: Config
) -> Moments:
    """Wanda's statistic of every block and linear, [in], from sums over so many sequences."""
    return tuple(
        second_moments(sums, sequences, linears)
        for sums, linears in zip(squares, config.linears, strict=True)
    )
