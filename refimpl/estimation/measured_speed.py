"""How fast this machine scores this model: its first two blocks, timed on the real tokens."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from refimpl.allocation.request import Request
from refimpl.estimation.workload import (
    outer_products_size,
    perturbed_passes,
    rounds_of,
    spectral_work,
)
from refimpl.method.perturbation import Perturbation
from refimpl.method.signals import lsa_error
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import sum_of_outer_products
from refimpl.model.stream import Stream
from refimpl.running.executors import LOCAL
from refimpl.running.settings import Resources
from refimpl.running.work_units import WorkUnit
from refimpl.scoring.activation_signals import activation_signals
from refimpl.scoring.dense_statistics import DenseSequences, wanda_moments
from refimpl.scoring.grouping import ROWS
from refimpl.scoring.measurements import Address
from refimpl.scoring.perturbed_state import WandaBlocks
from refimpl.scoring.reconstruction import PIECE
from refimpl.scoring.spectra import Spectra
from refimpl.scoring.state_group import HEAD_BYTES, StateGroup

T = TypeVar("T")

BLOCKS = 2  # that are timed
SECONDS, MOST = 0.3, 25  # for which, and as often as, each part is repeated at most


@dataclass(frozen=True)
class Pace:
    """Seconds that each part of scoring takes, all threads busy.

    Args:
        check: Looking through the weights outside the blocks.
        load: Reading a block.
        turn: A block pass on every thread, of a state in a full stack.
        birth: A perturbation on every thread, beyond the pass of a pruned block.
        head: A head on every thread, compared with the clean one's.
        thin: Pruning a block.
        signals: The signals of a block, loading it included.
        outer: The outer products of what a block reads, on every thread.
        halves: LSA's decisions on a block on one thread.
        spectra: All spectra of a block on one thread.
        blocks: Blocks that were timed.
        measuring: Time that the measurement took.
    """

    check: float
    load: float
    turn: float
    birth: float
    head: float
    thin: float
    signals: float
    spectra: float
    blocks: int
    measuring: float
    outer: float = 0.0
    halves: float = 0.0


def pace(
    model: Model, ids: Array, plan: Perturbation, request: Request, resources: Resources
) -> Pace:
    """Time each part of scoring on the first blocks of a model and a sequence of ids, [S].

    NaN or Inf among the weights outside the blocks, or in the first blocks, is refused.
    """
    started, dtype, workers = time.perf_counter(), resources.dtype, resources.workers
    check, _ = _timed(lambda: model.check_finite(dtype))
    start = _first_blocks(model, len(ids), resources)
    config, blocks, threads = start.config, start.config.num_blocks, workers.threads

    def timed(unit: WorkUnit[T]) -> tuple[float, T]:
        return _timed(lambda: unit.run(start, workers, lambda cost: None))

    load, weights = _timed(lambda: start.block(0, dtype, workers.map))
    dense, squares = timed(DenseSequences(dict.fromkeys(range(threads), ids), dtype))
    alone = max(0.0, dense / blocks - load)

    states = [Address(0, draw, 0, 0) for draw in range(threads)]
    group = StateGroup(tuple((a,) for a in states), {0: ids}, (), plan, dtype)
    if plan.kind == "pruning":
        group = replace(group, prune_block=lambda block, variant, weights, workers: weights)
    travel, _ = timed(group)
    rounds = rounds_of(1 + perturbed_passes(states, blocks, plan), threads)
    birth = max(0.0, travel - blocks * load - rounds * alone)
    size = min(model.config.num_blocks, max(1, ROWS // len(ids)))
    stream = Stream(start, {0: ids}, dtype)
    stack = np.repeat(stream.states[0], size, axis=0)
    passes = [partial(stream.through, stack, weights)] * threads
    turn = _timed(lambda: workers.run(passes))[0] / size

    moments = wanda_moments(squares[0], 1, config)
    head = thin = spectra = 0.0
    if request.correct == "divergence":
        both, _ = timed(replace(group, divergence=True))
        head = max(0.0, both - travel) / 2 * model.config.vocab_size / config.vocab_size
    if plan.kind == "pruning":
        counts = np.rint(request.sparsity * config.linear_sizes[:1]).astype(np.int64)
        pruned = WandaBlocks(moments[:1], counts[None])
        thin, _ = _timed(lambda: pruned(0, 0, weights, workers))
    if request.base == "alphapruning":
        costs = {name: spectral_work({name: shape}) for name, shape in config.linears[0].items()}
        least = min(costs, key=lambda name: costs[name])
        fit, xmin = str(request.options["fit"]), str(request.options["xmin"])
        alone, _ = timed(Spectra(0, (least,), fit, xmin, exact=dtype == np.float64))
        spectra = alone * sum(costs.values()) / costs[least]
    outer = halves = 0.0
    if request.base == "lsa":
        together, name = int(request.options["block"]), next(iter(config.linears[0]))
        width = config.linears[0][name][1]
        rows = weights[f"{name}.weight"][: max(1, PIECE // (together or width))]
        products = sum_of_outer_products(np.ones((len(ids), width), dtype))
        halves, _ = _timed(lambda: lsa_error(rows, products, together))
        halves *= config.block_sizes[0] / rows.size
        tasks = [partial(sum_of_outer_products, np.ones((len(ids), width), dtype))] * threads
        outer, _ = _timed(lambda: workers.run(tasks))
        outer *= outer_products_size(config) / config.num_blocks / width**2
    here = replace(resources, pool=LOCAL)
    signals, _ = _timed(lambda: activation_signals(start, moments, 5.0, "mean", here))
    return Pace(
        check=check,
        load=load,
        turn=turn,
        birth=birth,
        head=head,
        thin=thin,
        signals=signals / blocks,
        spectra=spectra,
        blocks=blocks,
        measuring=time.perf_counter() - started,
        outer=outer,
        halves=float(halves),
    )


def _first_blocks(model: Model, length: int, resources: Resources) -> Model:
    """The first blocks of a model, and the first piece of its head."""
    config = model.config
    piece = max(1, HEAD_BYTES // (length * resources.dtype.itemsize))
    blocks, vocabulary = config.blocks[:BLOCKS], min(config.vocab_size, piece)
    return replace(model, config=replace(config, blocks=blocks, vocab_size=vocabulary))


def _timed(task: Callable[[], T]) -> tuple[float, T]:
    """How long a task takes, the median of several times if it is short; and its result."""
    times: list[float] = []
    while sum(times) < SECONDS and len(times) < MOST:
        started = time.perf_counter()
        result = task()
        times.append(time.perf_counter() - started)
    return float(np.median(times)), result
