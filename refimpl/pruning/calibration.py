"""Calibration of a pruning: sequences that pass the pruned blocks, and what dense linears read."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from refimpl.model.forward import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import Statistic
from refimpl.model.stream import Stream
from refimpl.running.settings import Resources
from refimpl.scoring.dense_statistics import sums_of_all
from refimpl.tokens.imatrix import Imatrix


class Calibration(Protocol):
    """Sequences before the block that is pruned next."""

    @property
    def sequences(self) -> int:
        """Number of sequences."""
        ...

    def sums(self, weights: Weights) -> Mapping[str, Array]:
        """Sum what the dense block's linears read over all sequences, in their order."""
        ...

    def advance(self, pruned: Callable[[], Weights]) -> Sequence[Array]:
        """Pass the pruned block, which the new files hold; returns the states [1, S, D] after it.

        After the last block there are none: no block reads them.
        """
        ...


class NoCalibration:
    """The calibration of pruners that look at weights alone."""

    sequences = 0

    def sums(self, weights: Weights) -> Mapping[str, Array]:
        """No sums."""
        return {}

    def advance(self, pruned: Callable[[], Weights]) -> Sequence[Array]:
        """No states."""
        return ()


class ImatrixCalibration:
    """Means of squares of the dense model, which somebody else measured; from block `index` on."""

    sequences = 1

    def __init__(self, imatrix: Imatrix, index: int = 0) -> None:
        self._squares, self._index = imatrix.squares, index

    def sums(self, weights: Weights) -> Mapping[str, Array]:
        """The means of the block."""
        return self._squares[self._index]

    def advance(self, pruned: Callable[[], Weights]) -> Sequence[Array]:
        """No states."""
        self._index += 1
        return ()


class LocalCalibration:
    """States in the memory of this process, which pass the blocks on its threads.

    States [1, S, D] before block `index`, which is pruned next, may come from an earlier run; each
    block pass of a sequence costs 1.
    """

    def __init__(
        self,
        model: Model,
        ids: Array,
        statistic: Statistic,
        resources: Resources,
        states: Sequence[Array] | None = None,
        index: int = 0,
    ) -> None:
        self.sequences, self._statistic, self._resources = len(ids), statistic, resources
        numbered = None if states is None else dict(enumerate(states))
        self._stream = Stream(model, dict(enumerate(ids)), resources.dtype, numbered, index)

    def sums(self, weights: Weights) -> Mapping[str, Array]:
        """Sum on the threads."""
        workers, tick = self._resources.workers, self._resources.tick
        return sums_of_all(self._stream, weights, self._statistic, workers, tick)[1]

    def advance(self, pruned: Callable[[], Weights]) -> Sequence[Array]:
        """Pass on the threads."""
        stream, states = self._stream, list[Array]()
        if stream.index + 1 < stream.config.num_blocks:
            weights = pruned()
            passes = [partial(stream.through, h, weights) for h in stream.states.values()]
            states = self._resources.workers.run(passes, self._resources.tick)
        stream.advance(dict(enumerate(states)))
        return states
