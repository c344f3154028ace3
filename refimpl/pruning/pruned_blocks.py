"""A model pruned block by block, each block calibrated on inputs that passed the pruned ones."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from refimpl.allocation.targets import Targets
from refimpl.errors import RefimplError
from refimpl.model.forward import Weights
from refimpl.model.model import BlockWeights, Model
from refimpl.model.ops import Array
from refimpl.model.statistics import input_of, saw_no_token
from refimpl.model.token_ids import checked_ids
from refimpl.pruners.compensation import SharedFactor, upper_factor
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.magnitude import MAGNITUDE
from refimpl.pruners.pruner import pruners
from refimpl.pruning.calibration import Calibration
from refimpl.pruning.pruned_linears import LinearUnit, PrunedLinear
from refimpl.running.settings import Resources
from refimpl.running.work_units import results
from refimpl.storage.arrays import write_tree


@dataclass(frozen=True)
class PrunedBlock:
    """One block after pruning: its linears by name, and all its weights by our names.

    The sums are of what its linears read, by trace point; empty without calibration.
    """

    index: int
    linears: Mapping[str, PrunedLinear]
    weights: Weights
    sums: Mapping[str, Array]


@dataclass(frozen=True)
class BlockPruner:
    """Decides on the linears of one block after another; the one place where a block is pruned.

    Workers of an executor find sums that are matrices in the scratch folder.
    """

    model: Model
    targets: Targets
    pruner: PrunerOptions
    calibration: Calibration
    resources: Resources
    scratch: Path | None = None

    def dense(self, index: int) -> tuple[BlockWeights, Mapping[str, Array]]:
        """The weights of a dense block, and the sums of what its linears read."""
        weights = self.model.block(index, self.resources.dtype, self.resources.workers.map)
        return weights, self.calibration.sums(weights)

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
                self.calibration.sequences,
                self.resources.dtype,
                MAGNITUDE.name if sums and saw_no_token(name, sums.get(input_of(name))) else None,
                shared.get(input_of(name), upper_factor),
            )
            for j, name in enumerate(model.config.linears[index])
        ]
        # The largest first: threads end together, and hold fewer results beside their scores.
        units.sort(key=lambda unit: -unit.weights(model.config))
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


def calibration_ids(model: Model, pruner: PrunerOptions, ids: Array | None) -> Array | None:
    """The checked calibration ids [N, S] of a pruner that needs some, or None."""
    if pruner.record.needs is None:
        return None
    if ids is None:
        weights_alone = [x.name for x in pruners().values() if x.needs is None]
        raise RefimplError(
            f"{pruner.record.name} without calibration tokens",
            "token ids: the pruner looks at the inputs of linears",
            f"pass tokens, or use {' or '.join(weights_alone)}",
        )
    return checked_ids(ids, model.config)


def pruned_blocks(
    model: Model, targets: Targets, pruner: PrunerOptions, ids: Array | None, resources: Resources
) -> Iterator[PrunedBlock]:
    """Prune a model in memory, block by block; ids [N, S] may be None without calibration."""
    ids = calibration_ids(model, pruner, ids)
    calibration = Calibration(model, ids, pruner.record.needs, resources)
    block_pruner = BlockPruner(model, targets, pruner, calibration, resources)
    for i in range(model.config.num_blocks):
        dense, sums = block_pruner.dense(i)
        pruned = dict(block_pruner.linears(i, sums))
        linears = {name: pruned[name] for name in model.config.linears[i]}
        new = {f"{n}.weight": x.weight(dense[f"{n}.weight"]) for n, x in linears.items()}
        block = PrunedBlock(i, linears, dense | new, sums)
        calibration.advance(partial(dense.__or__, new))
        yield block
