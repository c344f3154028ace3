"""The calibration of a pruning: residual states on their way through the pruned blocks."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from refimpl.model.forward import Weights, block, embed, places
from refimpl.model.kernels import TILED
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import (
    Statistic,
    add_sums,
    block_with_sums,
)
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
        self._config, self._statistic, self._workers, self._tick = (
            model.config,
            statistic,
            workers,
            tick,
        )
        positions = np.arange(ids.shape[1])
        self._places = places(positions, model.config, dtype)
        self.sequences = len(ids)
        self._states: list[Array] = list(behind or ())
        if not self._states:
            table = model.embedding()
            self._states = [embed(row[None], positions, table, model.config, dtype) for row in ids]

    def sums(self, index: int, weights: Weights) -> Mapping[str, Array]:
        """Sum on the threads."""
        config, total = self._config, dict[str, Array]()
        place, step = self._places[config.blocks[index]], self._workers.threads
        # Sums of outer products are large: no more of them at a time.
        for some in (self._states[k : k + step] for k in range(0, self.sequences, step)):
            tasks = [
                partial(block_with_sums, self._statistic, h, weights, place, config, TILED)
                for h in some
            ]
            for _, sums in self._workers.run(tasks, self._tick):
                add_sums(total, sums)
        return total

    def advance(self, index: int, weights: Weights) -> None:
        """Pass on the threads."""
        config, states, self._states = self._config, self._states, []
        if index + 1 < config.num_blocks:
            place = self._places[config.blocks[index]]
            passes = [partial(block, h, weights, place, config, kernels=TILED) for h in states]
            self._states = self._workers.run(passes, self._tick)

    def behind(self) -> Sequence[Array]:
        """The states."""
        return self._states
