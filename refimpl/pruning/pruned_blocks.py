"""A model pruned block by block, each block calibrated on inputs that passed the pruned ones."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import InitVar, dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from refimpl.allocation.targets import Targets
from refimpl.errors import RefimplError
from refimpl.model.forward import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import SUMS, input_of
from refimpl.model.stream import Stream
from refimpl.model.token_ids import checked_ids
from refimpl.pruners.compensation import SharedFactor, upper_factor
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.pruner import pruners
from refimpl.pruning.pruned_linears import LinearUnit, PrunedLinear
from refimpl.running.settings import Resources
from refimpl.running.work_units import results
from refimpl.scoring.dense_statistics import sums_of_all
from refimpl.storage.finished_units import write_tree
from refimpl.tokens import Tokens
from refimpl.tokens.imatrix import Imatrix


@dataclass
class BlockPruner:
    """Decides on the linears of one block after another; the one place where a block is pruned.

    Inputs are ids [N, S], or the sums of an importance matrix, or None. An earlier run's states
    [1, S, D] before block `index` may be given. Workers find sums that are matrices in `scratch`.
    """

    model: Model
    targets: Targets
    pruner: PrunerOptions
    inputs: Array | Imatrix | None
    resources: Resources
    scratch: Path | None = None
    states: InitVar[Sequence[Array] | None] = None
    index: InitVar[int] = 0

    def __post_init__(self, states: Sequence[Array] | None, index: int) -> None:
        ids, self.stream = self.inputs, None
        if ids is not None and not isinstance(ids, Imatrix):
            numbered = None if states is None else dict(enumerate(map(np.array, states)))
            rows, dtype = dict(enumerate(ids)), self.resources.dtype
            self.stream = Stream(self.model, rows, dtype, numbered, index)

    def sums(self, index: int) -> Mapping[str, Array]:
        """The sums of what the linears of a dense block read, by trace point."""
        workers, tick = self.resources.workers, self.resources.tick
        if isinstance(self.inputs, Imatrix):
            return self.inputs.squares[index]
        if self.stream is None:
            return {}
        weights = self.model.block(index, self.resources.dtype, workers.map)
        statistic = SUMS[str(self.pruner.record.needs)]
        return sums_of_all(self.stream, weights, statistic, workers, tick)[1]

    def advance(self, pruned: Callable[[], Weights]) -> Sequence[Array]:
        """Pass the pruned block; returns the states [1, S, D] after it, none after the last one."""
        stream, states = self.stream, list[Array]()
        if stream is not None:
            if stream.index + 1 < stream.config.num_blocks:
                weights = pruned()
                passes = [partial(stream.through, h, weights) for h in stream.states.values()]
                states = self.resources.workers.run(passes, self.resources.tick)
            stream.advance(dict(enumerate(states)))
        return states

    def linears(self, index: int, sums: Mapping[str, Array]) -> Iterator[tuple[str, PrunedLinear]]:
        """Prune the linears of a block, each on its own: on the threads, or on the executor.

        They come in any order, a few at a time; the sums are of the dense block.
        """
        model, workers, here = self.model, self.resources.workers, self.resources.executor is None
        inputs = {point: self._sent(point, x) for point, x in sums.items()}
        points = Counter(map(input_of, model.config.linears[index]))
        shared = {p: SharedFactor() for p, n in points.items() if n > 1 and here}
        units = [
            LinearUnit(
                index,
                j,
                name,
                self.targets.goal(index, j),
                self.targets.compat,
                self.pruner,
                inputs.get(input_of(name)),
                len(self.stream.states) if self.stream else 1,
                self.resources.dtype,
                shared.get(input_of(name), upper_factor),
            )
            for j, name in enumerate(model.config.linears[index])
        ]
        # The largest first: threads end together, and hold fewer results beside their scores.
        units.sort(key=lambda unit: -prod(model.config.linears[index][unit.name]))
        if not here:
            yield from results(units, model, self.resources)
            return
        running = deque[Future[tuple[str, PrunedLinear]]]()
        for unit in units:
            if len(running) > workers.threads:
                yield running.popleft().result()
            running.append(workers.submit(partial(unit.run, model, workers, lambda cost: None)))
        for linear in running:
            yield linear.result()

    def _sent(self, point: str, sums: Array) -> Array | str:
        """Sums for a work unit: matrices, which are large, by the path of their file."""
        if self.resources.executor is None or self.scratch is None or sums.ndim < 2:
            return sums
        path = self.scratch / f"sums-{point}"
        write_tree(path, sums)
        return str(path.absolute())


def calibration(
    model: Model, pruner: PrunerOptions, tokens: Tokens | Imatrix | Array | None
) -> Array | Imatrix | None:
    """Checked ids [N, S], or an importance matrix, for a pruner that needs inputs; else None."""
    record = pruner.record
    if record.needs is None:
        return None
    named = {x.needs: x.name for x in reversed([*pruners().values()])}
    if isinstance(tokens, Imatrix) and record.needs != "squares":
        raise RefimplError(
            f"{record.name} with an importance matrix",
            f"{named['squares']}, which needs the squares of the inputs and nothing else",
            f"use {named['squares']}, or omit the importance matrix",
        )
    if tokens is None:
        raise RefimplError(
            f"{record.name} without calibration tokens",
            "token ids: the pruner looks at the inputs of linears",
            f"pass tokens, or use {named[None]}",
        )
    if isinstance(tokens, Imatrix):
        return tokens
    return checked_ids(tokens.ids if isinstance(tokens, Tokens) else tokens, model.config)
