"""LSA's errors: half of each linear's weights taken away, in units of blocks of the dense model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import fsum

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.method.signals import lsa_error
from refimpl.model.config import Config
from refimpl.model.forward import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import input_of, saw_no_token, sum_of_outer_products
from refimpl.model.stream import Stream
from refimpl.running.settings import Resources
from refimpl.running.threads import Workers
from refimpl.running.work_units import Tick, results
from refimpl.scoring.dense_statistics import sums_of_all
from refimpl.scoring.grouping import state_bytes

PIECE = 1 << 14  # weights of a group of columns decided on together: they stay in a core's cache


@dataclass(frozen=True)
class BlockErrors:
    """LSA's error of some blocks, after a pass of all sequences through those before: a work unit.

    Args:
        blocks: Which, ascending.
        ids: Token ids of all sequences, [S], by their number.
        group: Columns that LSA decides on together, 0 for all.
        dtype: Of the passes; outer products and errors are float64.
    """

    blocks: tuple[int, ...]
    ids: Mapping[int, Array]
    group: int
    dtype: npt.DTypeLike = np.float32

    def cost(self, config: Config) -> float:
        """Block passes, and what else takes time, in the same unit."""
        length = len(next(iter(self.ids.values())))
        each = error_cost(config, len(self.ids), length, self.group)
        return len(self.ids) * (self.blocks[-1] + 1) + each * len(self.blocks)

    def run(self, model: Model, workers: Workers, tick: Tick) -> dict[int, float]:
        """The errors by block."""
        return dict(self.errors(model, workers, tick))

    def errors(self, model: Model, workers: Workers, tick: Tick) -> Iterator[tuple[int, float]]:
        """Each block with its error, as soon as it is known; outer products of one in memory."""
        stream, config = Stream(model, self.ids, self.dtype), model.config
        length = len(next(iter(self.ids.values())))
        for i in range(self.blocks[-1] + 1):
            weights, one = model.block(i, self.dtype, workers.map), partial(tick, 1)
            if i not in self.blocks:
                passes = [partial(stream.through, h, weights) for h in stream.states.values()]
                stream.advance(dict(zip(self.ids, workers.run(passes, one), strict=True)))
                continue
            after, sums = sums_of_all(stream, weights, sum_of_outer_products, workers, one)
            stream.advance(after)
            yield i, 2 / len(self.ids) * self._mean(config.linears[i], weights, sums, workers)
            tick(error_cost(config, len(self.ids), length, self.group))

    def _mean(
        self,
        linears: Mapping[str, tuple[int, int]],
        weights: Weights,
        sums: Mapping[str, Array],
        workers: Workers,
    ) -> float:
        """Mean error of a block's linears; an expert that saw no token has none."""
        errors = list[float]()
        for name, (out, width) in linears.items():
            total = sums.get(input_of(name))
            if total is None or saw_no_token(name, total):
                continue
            weight, rows = weights[f"{name}.weight"], max(1, PIECE // (self.group or width))
            pieces = [
                partial(lsa_error, weight[start : start + rows], total, self.group)
                for start in range(0, out, rows)
            ]
            errors += workers.run(pieces)
        return fsum(errors) / len(linears)


def lsa_errors(model: Model, ids: Array, group: int, resources: Resources) -> Array:
    """Compute LSA's reconstruction error of every block of the dense model.

    Args:
        model: The dense model.
        ids: Token ids, [N, S].
        group: Columns that LSA decides on together, 0 for all.
        resources: What it runs on; only the dtype changes the numbers.

    Returns:
        E, the mean of `lsa_error` over a block's linears with H = (2/N) sum x x^T, [L].

    Raises:
        RefimplError: The memory does not hold the states of all sequences.

    Source: LSA (peer), `blk_score`.
    """
    config, kept, sequences = model.config, resources.partial, dict(enumerate(ids))
    need = 2 * len(ids) * state_bytes(config, ids.shape[1], resources.dtype)
    need *= resources.pool.workers
    if need > resources.memory:
        raise RefimplError(
            f"memory of {resources.memory} bytes does not hold the states of all sequences",
            f"{need} bytes: {len(ids)} x {ids.shape[1]} tokens, before and after a block",
            f"use --memory {need} or more, or fewer --samples",
        )
    errors = {
        int(key.removeprefix("lsa ")): error
        for key, error in (kept.results if kept else {}).items()
        if key.startswith("lsa ")
    }
    for error in _errors(model, sequences, group, resources, errors):
        errors |= error
        if kept is not None:
            kept.add({f"lsa {i}": of_block for i, of_block in error.items()})
    return np.array([errors[i] for i in range(config.num_blocks)])


def _errors(
    model: Model,
    sequences: Mapping[int, Array],
    group: int,
    resources: Resources,
    finished: Mapping[int, float],
) -> Iterator[dict[int, float]]:
    """The errors of the blocks that are left, as they are known: here, of one after another."""
    workers, tick = resources.workers, resources.tick
    left = [i for i in range(model.config.num_blocks) if i not in finished]
    units = [
        BlockErrors(blocks, sequences, group, resources.dtype) for blocks in ranges(left, resources)
    ]
    if resources.pool.executor is None:
        for unit in units:
            yield from ({i: error} for i, error in unit.errors(model, workers, tick))
    else:
        yield from (found for _, found in results(units, model, resources.pool, workers, tick))


def ranges(blocks: list[int], resources: Resources) -> list[tuple[int, ...]]:
    """The blocks of each unit: all of them here; on workers, which start anew, some for each."""
    pieces = 1 if resources.pool.executor is None else resources.pool.workers
    return [tuple(piece.tolist()) for piece in np.array_split(blocks, pieces) if piece.size]


def error_cost(config: Config, sequences: int, length: int, group: int) -> float:
    """Cost of a block's error in block passes of one sequence: its outer products, its decisions.

    Outer products take about as long as the pass. An operation of the decisions, 5 per weight and
    column that is taken, takes about ten times as long as one of a pass.
    """
    taken = (group or config.hidden_size) / 2
    return sequences + 10 * 5 * taken / (2 * length)
