"""Calibration of a pruning: sequences that pass the pruned blocks, and what dense linears read."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from refimpl.model.forward import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import SUMS
from refimpl.model.stream import Stream
from refimpl.running.settings import Resources
from refimpl.scoring.dense_statistics import sums_of_all
from refimpl.tokens.imatrix import Imatrix

BLOCK, STATES = "block {}".format, "states {}".format
"""Names of finished units: the linears of a pruned block, and the states [1, S, D] after it."""


class Calibration:
    """Sequences before the block that is pruned next, which pass it on the threads.

    The inputs are ids [N, S]; or means of squares of the dense model, which somebody else measured;
    or None for pruners that look at weights alone. States [1, S, D] before block `index`, which is
    pruned next, may come from an earlier run; each block pass of a sequence costs 1.
    """

    def __init__(
        self,
        model: Model,
        inputs: Array | Imatrix | None,
        needs: str | None,
        resources: Resources,
        states: Sequence[Array] | None = None,
        index: int = 0,
    ) -> None:
        self._needs, self._resources, self._index = str(needs), resources, index
        self._imatrix = inputs if isinstance(inputs, Imatrix) else None
        self._stream: Stream | None = None
        self.sequences = 0 if inputs is None else 1
        if inputs is not None and not isinstance(inputs, Imatrix):
            self.sequences = len(inputs)
            numbered = None if states is None else dict(enumerate(map(np.array, states)))
            rows = dict(enumerate(inputs))
            self._stream = Stream(model, rows, resources.dtype, numbered, index)

    def sums(self, weights: Weights) -> Mapping[str, Array]:
        """Sum what the dense block's linears read over all sequences, in their order."""
        if self._imatrix is not None:
            return self._imatrix.squares[self._index]
        if self._stream is None:
            return {}
        workers, tick = self._resources.workers, self._resources.tick
        return sums_of_all(self._stream, weights, SUMS[self._needs], workers, tick)[1]

    def advance(self, pruned: Callable[[], Weights]) -> Sequence[Array]:
        """Pass the pruned block; returns the states [1, S, D] after it, none after the last one."""
        stream, states = self._stream, list[Array]()
        self._index += 1
        if stream is not None:
            if self._index < stream.config.num_blocks:
                weights = pruned()
                passes = [partial(stream.through, h, weights) for h in stream.states.values()]
                states = self._resources.workers.run(passes, self._resources.tick)
            stream.advance(dict(enumerate(states)))
        return states
