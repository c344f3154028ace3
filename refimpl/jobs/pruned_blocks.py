"""A model pruned block by block, each block calibrated behind the pruned ones before it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.jobs.execution import Workers
from refimpl.jobs.rewrite import PrunedLinear, stored_weight
from refimpl.jobs.targets import Targets
from refimpl.model.checkpoint import Model
from refimpl.model.config import Config
from refimpl.model.forward import Place, Weights, block, embed, places
from refimpl.model.kernels import TILED
from refimpl.model.ops import Array
from refimpl.model.statistics import (
    INPUT_OF,
    Statistic,
    add_sums,
    block_with_sums,
    sum_of_outer_products,
    sum_of_squares,
)
from refimpl.pruning.decision import Pruner, decision

CALIBRATED: Mapping[str, Statistic] = {
    "wanda": sum_of_squares,
    "sparsegpt": sum_of_outer_products,
}


@dataclass(frozen=True)
class PrunedBlock:
    """One block after pruning.

    Args:
        index: Which block, from 0.
        linears: What became of its linears.
        weights: All its weights by our names, as the file will hold them, in the dtype of the
            computation.
        sums: The statistic of what its linears read, by trace point; empty without one.
    """

    index: int
    linears: Mapping[str, PrunedLinear]
    weights: Weights
    sums: Mapping[str, Array]


def pruned_blocks(
    model: Model,
    targets: Targets,
    pruner: Pruner,
    ids: Array | None,
    workers: Workers,
    dtype: npt.DTypeLike = np.float32,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[PrunedBlock]:
    """Prune a model block by block.

    Statistics of a block come from inputs that passed the pruned blocks before it, the block
    itself still dense; in memory are one block and the calibration's residual states.

    Args:
        model: The model.
        targets: How much every linear loses.
        pruner: How weights are chosen.
        ids: Calibration ids, [N, S]; None for methods that look at weights alone.
        workers: Threads.
        dtype: Of the computation; statistics, scores and SparseGPT are float64.
        tick: Called after each block pass of a sequence.

    Yields:
        The blocks, in order.

    Raises:
        RefimplError: No ids for a method that needs them; statistics that are not finite; a
            Hessian that is not positive definite (named).

    Source:
        Wanda and SparseGPT (peers, confirmed): sequential pruning.
    """
    config, statistic = model.config, CALIBRATED.get(pruner.method)
    states: list[Array] = []
    if statistic is not None:
        if ids is None:
            raise RefimplError(
                f"{pruner.method} without calibration tokens", "token ids", "give tokens"
            )
        positions = np.arange(ids.shape[1])
        where = places(positions, config, dtype)
        table = model.embedding()
        states = [embed(row[None], positions, table, config, dtype) for row in ids]
    for i, kind in enumerate(config.blocks):
        weights = model.block(i, dtype)
        sums: Mapping[str, Array] = {}
        if statistic is not None:
            sums = _sums(statistic, states, weights, where[kind], config, workers, tick)
        tasks = [
            partial(_pruned_linear, model, i, j, weights, sums, len(states), targets, pruner)
            for j in range(len(config.linear_shapes))
        ]
        found = dict(zip(config.linear_shapes, workers.run(tasks), strict=True))
        weights |= {f"{name}.weight": new for name, (_, new) in found.items()}
        if i + 1 < config.num_blocks:  # nobody looks behind the last one
            passes = [
                partial(block, h, weights, where[kind], config, kernels=TILED) for h in states
            ]
            states = workers.run(passes, tick)
        linears = {name: linear for name, (linear, _) in found.items()}
        yield PrunedBlock(i, linears, weights, sums)


def _sums(
    statistic: Statistic,
    states: list[Array],
    weights: Weights,
    place: Place,
    config: Config,
    workers: Workers,
    tick: Callable[[], None],
) -> dict[str, Array]:
    """Sums over all sequences of what a block's linears read, in order of the sequences."""
    total: dict[str, Array] = {}
    step = workers.threads  # sums of outer products are large: no more of them at a time
    for some in (states[k : k + step] for k in range(0, len(states), step)):
        tasks = [
            partial(block_with_sums, statistic, h, weights, place, config, TILED) for h in some
        ]
        for _, sums in workers.run(tasks, tick):
            add_sums(total, sums)
    return total


def _pruned_linear(
    model: Model,
    i: int,
    j: int,
    weights: Weights,
    sums: Mapping[str, Array],
    sequences: int,
    targets: Targets,
    pruner: Pruner,
) -> tuple[PrunedLinear, Array]:
    """Prune one linear: the decision, and the weights as stored; an error names it."""
    name = tuple(model.config.linear_shapes)[j]
    dense, total = weights[f"{name}.weight"], sums.get(INPUT_OF[name])
    try:
        goal, compat = targets.goal(i, j), targets.compat
        keep, updated = decision(dense, total, sequences, goal, pruner, compat, (i, j))
    except RefimplError as error:
        problem = f"blocks.{i}.{name}: {error.problem}"
        raise RefimplError(problem, error.expected, error.remedy) from error
    pruned = PrunedLinear(keep, updated)
    if updated is None:
        return pruned, np.where(keep, dense, np.zeros((), dense.dtype))
    return pruned, stored_weight(model, i, name, pruned).astype(dense.dtype)
