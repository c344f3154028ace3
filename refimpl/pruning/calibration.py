"""The calibration of a pruning: residual states on their way through the pruned blocks."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy.typing as npt

from refimpl.model.forward import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import Statistic, add_sums
from refimpl.model.stream import Stream
from refimpl.running.threads import Workers


class Calibration(Protocol):
    """Sequences before one block, wherever their states are."""

    @property
    def sequences(self) -> int:
        """How many there are."""
        ...

    def sums(self, index: int, weights: Weights) -> Mapping[str, Array]:
        """Sum over all sequences, in their order, what the dense block's linears read."""
        ...

    def advance(self, index: int, weights: Weights) -> None:
        """Go on behind the pruned block, unless it is the last: nobody looks there."""
        ...

    def behind(self) -> Sequence[Array]:
        """States behind the block that was pruned last, whose weights are in the new file by now.

        Returns:
            A residual stream [1, S, D] per sequence; none behind the last block.
        """
        ...


class HeldStates:
    """States in the memory of this process, which pass on its threads.

    Args:
        model: The model.
        ids: Calibration ids, [N, S].
        statistic: What is summed of the inputs of linears.
        workers: Threads.
        dtype: Of the computation; sums are float64.
        tick: Called after each block pass of a sequence.
        behind: States of an earlier run that is taken up; those before block 0 if None.
    """

    def __init__(
        self,
        model: Model,
        ids: Array,
        statistic: Statistic,
        workers: Workers,
        dtype: npt.DTypeLike,
        tick: Callable[[], None],
        behind: Sequence[Array] | None = None,
    ) -> None:
        self._statistic, self._workers, self._tick = statistic, workers, tick
        self.sequences = len(ids)
        held = dict(enumerate(behind)) if behind else None
        self._stream = Stream(model, dict(enumerate(ids)), dtype, held)

    def sums(self, index: int, weights: Weights) -> Mapping[str, Array]:
        """Sum on the threads."""
        stream, total, step = self._stream, dict[str, Array](), self._workers.threads
        stream.index = index
        states = list(stream.states.values())
        # Sums of outer products are large: no more of them at a time.
        for some in (states[k : k + step] for k in range(0, self.sequences, step)):
            tasks = [partial(stream.through_with_sums, h, weights, self._statistic) for h in some]
            for _, sums in self._workers.run(tasks, self._tick):
                add_sums(total, sums)
        return total

    def advance(self, index: int, weights: Weights) -> None:
        """Pass on the threads."""
        stream, states = self._stream, self._stream.states
        stream.states = {}
        if index + 1 < stream.config.num_blocks:
            passes = [partial(stream.through, h, weights) for h in states.values()]
            stream.advance(dict(zip(states, self._workers.run(passes, self._tick), strict=True)))

    def behind(self) -> Sequence[Array]:
        """The states."""
        return list(self._stream.states.values())
