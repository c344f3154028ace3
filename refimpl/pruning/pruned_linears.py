"""The linears of one block pruned, each on its own: here, or wherever an executor takes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.allocation.targets import Targets
from refimpl.errors import RefimplError
from refimpl.method.allocation import Compat
from refimpl.model.config import Config
from refimpl.model.forward import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import INPUT_OF
from refimpl.pruners.decision import Goal, Pruner, decision
from refimpl.pruning.pruned_files import PrunedLinear, stored_weight
from refimpl.running.executors import Pool
from refimpl.running.threads import Workers
from refimpl.running.work_units import results
from refimpl.storage.arrays import read_array, sent


@dataclass(frozen=True)
class LinearToPrune:
    """One linear, and how it is pruned.

    Args:
        block: Its block.
        index: Its place among the block's linears.
        goal: What it loses.
        compat: "exact" or "peer".
        pruner: How weights are chosen.
        sums: The statistic of what it reads, or the file that holds it, or None without one.
        sequences: Number of sequences that the statistic was summed over.
        dtype: In which its weights are read.
    """

    block: int
    index: int
    goal: Goal
    compat: Compat
    pruner: Pruner
    sums: Array | str | None
    sequences: int
    dtype: npt.DTypeLike

    def cost(self, config: Config) -> float:
        """Weights."""
        out, width = tuple(config.linear_shapes.values())[self.index]
        return out * width

    def run(
        self, model: Model, workers: Workers, tick: Callable[[float], None]
    ) -> tuple[Array, Array | None]:
        """Which weights stay, as bits, and SparseGPT's new ones as the file will hold them."""
        name = tuple(model.config.linear_shapes)[self.index]
        dense = model.weights[f"blocks.{self.block}.{name}.weight"].read(self.dtype)
        pruned = self.pruned(model, dense)
        if pruned.weight is None:
            return np.packbits(pruned.keep), None
        return np.packbits(pruned.keep), stored_weight(model, self.block, name, pruned)

    def pruned(self, model: Model, dense: Array) -> PrunedLinear:
        """The decision about its weights; an error names it."""
        sums = read_array(Path(self.sums)) if isinstance(self.sums, str) else self.sums
        try:
            return PrunedLinear(
                *decision(
                    dense,
                    sums,
                    self.sequences,
                    self.goal,
                    self.pruner,
                    self.compat,
                    (self.block, self.index),
                )
            )
        except RefimplError as error:
            name = f"blocks.{self.block}.{tuple(model.config.linear_shapes)[self.index]}"
            raise RefimplError(f"{name}: {error.problem}", error.expected, error.remedy) from error


def prune_linears(
    model: Model,
    block: int,
    weights: Weights,
    sums: Mapping[str, Array],
    sequences: int,
    targets: Targets,
    pruner: Pruner,
    workers: Workers,
    engine: Pool,
    scratch: Path | None,
) -> dict[str, tuple[PrunedLinear, Array]]:
    """Prune the linears of a block.

    Args:
        model: The model.
        block: The block.
        weights: Its dense weights by our names.
        sums: The statistic of what they read, by trace point.
        sequences: Number of sequences that it was summed over.
        targets: How much every linear loses.
        pruner: How weights are chosen.
        workers: Threads.
        engine: Where it is done.
        scratch: A folder that all workers see, for statistics too large to send.

    Returns:
        By name: the decision, and the weights as the file will hold them, in the dtype of the
        computation.

    Raises:
        RefimplError: What a decision raises; the linear is named.
    """
    names = tuple(model.config.linear_shapes)
    dtype = weights[f"{names[0]}.weight"].dtype
    given: Mapping[str, Array | str] = sums
    if engine.executor is not None and scratch is not None:
        given = {point: sent(total, scratch / f"sums-{point}.npy") for point, total in sums.items()}
    linears = [
        LinearToPrune(
            block,
            j,
            targets.goal(block, j),
            targets.compat,
            pruner,
            given.get(INPUT_OF[name]),
            sequences,
            dtype,
        )
        for j, name in enumerate(names)
    ]
    if engine.executor is None:
        # The largest first: threads end together, and fewer results are held beside their scores.
        order = sorted(linears, key=lambda x: -weights[f"{names[x.index]}.weight"].size)
        ahead = {x.index: workers.submit(partial(_here, model, weights, x)) for x in order}
        return {name: ahead[j].result() for j, name in enumerate(names)}
    made: dict[str, tuple[PrunedLinear, Array]] = {}
    for linear, (bits, stored) in results(linears, model, engine, workers, lambda cost: None):
        name = names[linear.index]
        dense = weights[f"{name}.weight"]
        keep = np.unpackbits(bits, count=dense.size).reshape(dense.shape).astype(bool)
        made[name] = _with_weights(model, block, name, PrunedLinear(keep, stored), dense)
    return {name: made[name] for name in names}


def _here(model: Model, weights: Weights, linear: LinearToPrune) -> tuple[PrunedLinear, Array]:
    """Prune a linear whose weights are here."""
    name = tuple(model.config.linear_shapes)[linear.index]
    dense = weights[f"{name}.weight"]
    return _with_weights(model, linear.block, name, linear.pruned(model, dense), dense)


def _with_weights(
    model: Model, block: int, name: str, pruned: PrunedLinear, dense: Array
) -> tuple[PrunedLinear, Array]:
    """A decision, and the weights that it leaves."""
    if pruned.weight is None:
        return pruned, np.where(pruned.keep, dense, np.zeros((), dense.dtype))
    return pruned, stored_weight(model, block, name, pruned).astype(dense.dtype)
