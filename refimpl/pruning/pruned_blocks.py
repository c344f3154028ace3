"""A model pruned block by block, each block calibrated behind the pruned ones before it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.allocation.targets import Targets
from refimpl.errors import RefimplError
from refimpl.model.forward import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import Statistic, sum_of_outer_products, sum_of_squares
from refimpl.pruners.decision import Pruner
from refimpl.pruning.calibration import Calibration, HeldStates
from refimpl.pruning.pruned_files import PrunedLinear
from refimpl.pruning.pruned_linears import prune_linears
from refimpl.running.executors import LOCAL, Pool
from refimpl.running.threads import Workers

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
    *,
    first: int = 0,
    calibration: Calibration | None = None,
    engine: Pool = LOCAL,
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
        calibration: The sequences before the first block; made of the ids, and on the threads, if
            None.
        engine: Where the linears of a block are pruned.
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
    if statistic is not None and calibration is None:
        if ids is None:
            raise RefimplError(
                f"{pruner.method} without calibration tokens", "token ids", "give tokens"
            )
        calibration = HeldStates(model, ids, statistic, workers, dtype, tick)
    sequences = 0 if calibration is None else calibration.sequences
    for i in range(first, config.num_blocks):
        weights = model.block(i, dtype, workers.map)
        sums = {} if calibration is None else calibration.sums(i, weights)
        found = prune_linears(
            model, i, weights, sums, sequences, targets, pruner, workers, engine, scratch
        )
        weights |= {f"{name}.weight": new for name, (_, new) in found.items()}
        if calibration is not None:
            calibration.advance(i, weights)
        yield PrunedBlock(i, {name: linear for name, (linear, _) in found.items()}, weights, sums)
