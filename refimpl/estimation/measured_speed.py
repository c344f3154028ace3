"""How fast this machine scores this model: its first two blocks, timed on the real tokens."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from refimpl.allocation.request import Request
from refimpl.estimation.workload import in_turn, moves, singular
from refimpl.method.perturbation import Perturbation
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import second_moments
from refimpl.running.threads import Workers
from refimpl.scoring.dense_statistics import Reading, profile
from refimpl.scoring.journey import HEAD_BYTES, Journey
from refimpl.scoring.measurements import Address
from refimpl.scoring.pruned_block import Thinning
from refimpl.scoring.spectra import Spectra

T = TypeVar("T")

BLOCKS = 2  # that are timed
SECONDS, MOST = 0.3, 25  # for which, and as often as, each part is repeated at most


@dataclass(frozen=True)
class Pace:
    """Seconds that each part of scoring takes, all threads busy.

    Args:
        check: Looking through the weights outside the blocks.
        load: Reading a block.
        turn: A block pass on every thread.
        birth: A push on every thread, beyond the pass of a pruned block.
        head: A head on every thread, compared with the clean one's.
        thin: Pruning a block.
        signals: The signals of a block, loading it included.
        spectra: All singular values of a block on one thread.
        blocks: Blocks that were timed.
        measuring: Time that all this took.
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


def pace(
    model: Model,
    ids: Array,
    plan: Perturbation,
    request: Request,
    workers: Workers,
    memory: int,
    dtype: npt.DTypeLike = np.float32,
) -> Pace:
    """Time each part of scoring on the first blocks of a model.

    Args:
        model: The model.
        ids: Token ids, [S].
        plan: The perturbation.
        request: What is asked for besides.
        workers: Threads.
        memory: Bytes that scores may take, about.
        dtype: Of the computation.

    Returns:
        The seconds.

    Raises:
        RefimplError: NaN or Inf among the weights outside the blocks, or in the first blocks.
    """
    started, threads = time.perf_counter(), workers.threads
    check, _ = _timed(lambda: model.check_finite(dtype))
    few = _beginning(model, len(ids), dtype)
    config, blocks = few.config, few.config.num_blocks
    load, weights = _timed(lambda: few.block(0, dtype, workers.map))

    reading = Reading(dict.fromkeys(range(threads), ids), dtype)
    whole, found = _timed(lambda: reading.run(few, workers, _quiet))
    turn = max(0.0, whole / blocks - load)

    states = tuple(Address(0, draw, 0, 0) for draw in range(threads))
    journey = Journey(states, {0: ids}, (), plan, dtype)
    if plan.kind == "pruning":
        journey = replace(journey, pruned=lambda block, weights, workers: weights)
    travel, _ = _timed(lambda: journey.run(few, workers, _quiet))
    turns = in_turn(1 + moves(states, blocks, plan), threads)
    birth = max(0.0, travel - blocks * load - turns * turn)

    head = thin = spectra = 0.0
    if request.correct == "divergence":
        compared = replace(journey, divergence=True)
        both, _ = _timed(lambda: compared.run(few, workers, _quiet))
        head = max(0.0, both - travel) / 2 * model.config.vocab_size / config.vocab_size
    if plan.kind == "pruning":
        sizes = {name: out * width for name, (out, width) in config.linear_shapes.items()}
        counts = {name: round(request.sparsity * size) for name, size in sizes.items()}
        thinning = Thinning((second_moments(found[0][0], 1, config),), (counts,))
        thin, _ = _timed(lambda: thinning(0, weights, workers))
    if request.base == "alphapruning":
        least = min(config.linear_shapes, key=lambda name: singular(config, [name]))
        one = Spectra(0, (least,), str(request.options["fit"]), str(request.options["xmin"]))
        alone, _ = _timed(lambda: one.run(few, workers, _quiet))
        spectra = alone * singular(config) / singular(config, [least])
    signals, _ = _timed(lambda: profile(few, found[0], 1, workers, dtype))
    return Pace(
        check,
        load,
        turn,
        birth,
        head,
        thin,
        signals / blocks,
        spectra,
        blocks,
        time.perf_counter() - started,
    )


def _beginning(model: Model, length: int, dtype: npt.DTypeLike) -> Model:
    """The first blocks of a model, and the first piece of its head."""
    config = model.config
    piece = max(1, HEAD_BYTES // (length * np.dtype(dtype).itemsize))
    return replace(
        model,
        config=replace(
            config,
            blocks=config.blocks[:BLOCKS],
            vocab_size=min(config.vocab_size, piece),
        ),
    )


def _timed(task: Callable[[], T]) -> tuple[float, T]:
    """How long a task takes, the median of several times where it is short; what it gave."""
    times: list[float] = []
    while sum(times) < SECONDS and len(times) < MOST:
        started = time.perf_counter()
        found = task()
        times.append(time.perf_counter() - started)
    return median(times), found


def _quiet(cost: float) -> None:
    """No progress."""
