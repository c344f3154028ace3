"""A model pruned block by block, each block calibrated behind the pruned ones before it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.jobs.execution import Workers
from refimpl.jobs.executors import HERE, Engine
from refimpl.jobs.pruned_linears import prune_linears
from refimpl.jobs.rewrite import PrunedLinear
from refimpl.jobs.targets import Targets
from refimpl.model.checkpoint import Model
from refimpl.model.config import Config
from refimpl.model.forward import Place, Weights, block, embed, places
from refimpl.model.kernels import TILED
from refimpl.model.ops import Array
from refimpl.model.statistics import (
    Statistic,
    add_sums,
    block_with_sums,
    sum_of_outer_products,
    sum_of_squares,
)
from refimpl.pruning.decision import Pruner

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
        states: What the next block reads, one residual stream [1, S, D] per sequence; empty where
            nobody looks.
    """

    index: int
    linears: Mapping[str, PrunedLinear]
    weights: Weights
    sums: Mapping[str, Array]
    states: Sequence[Array] = ()


def pruned_blocks(
    model: Model,
    targets: Targets,
    pruner: Pruner,
    ids: Array | None,
    workers: Workers,
    dtype: npt.DTypeLike = np.float32,
    tick: Callable[[], None] = lambda: None,
    *,
    first: int = 0,
    behind: Sequence[Array] | None = None,
    engine: Engine = HERE,
    scratch: Path | None = None,
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
        first: The first block to prune; those before it are done.
        behind: The states behind them, of a run that is taken up.
        engine: Where the linears of a block are pruned; passes run on the threads.
        scratch: A folder that all workers see, for sums of outer products on their way to them.

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
        states, behind = list(behind or ()), None
        if not states:
            states = [embed(row[None], positions, table, config, dtype) for row in ids]
    for i, kind in islice(enumerate(config.blocks), first, None):
        weights = model.block(i, dtype)
        sums: Mapping[str, Array] = {}
        if statistic is not None:
            sums = _sums(statistic, states, weights, where[kind], config, workers, tick)
        found = prune_linears(
            model, i, weights, sums, len(states), targets, pruner, workers, engine, scratch
        )
        weights |= {f"{name}.weight": new for name, (_, new) in found.items()}
        after: list[Array] = []
        if i + 1 < config.num_blocks:  # nobody looks behind the last one
            passes = [
                partial(block, h, weights, where[kind], config, kernels=TILED) for h in states
            ]
            states = after = workers.run(passes, tick)
        linears = {name: linear for name, (linear, _) in found.items()}
        yield PrunedBlock(i, linears, weights, sums, after)


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
