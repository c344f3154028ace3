"""The time and memory that scoring takes: the passes of its work units, and one of them timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from refimpl.allocation.request import Request, recommended
from refimpl.method.perturbation import Perturbation, Probes
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.stream import Stream
from refimpl.model.token_ids import checked_ids
from refimpl.running.held_model import HeldModel
from refimpl.running.provenance import TokenFacts, token_facts
from refimpl.running.settings import Settings, parse_memory, peak_memory
from refimpl.running.threads import Workers, thread_count
from refimpl.scoring.experiment import dense_units, probing_bytes, state_bytes, work_list
from refimpl.scoring.measurements import wanda_moments
from refimpl.scoring.score import probed_blocks, pruned_base
from refimpl.scoring.signals import Chosen, before_squares
from refimpl.scoring.state_group import StateGroup
from refimpl.tokens import Tokens

SECONDS, MOST = 0.3, 25  # for which, and as often as, each part is repeated at most


@dataclass(frozen=True)
class Estimate:
    """What scoring will take.

    Args:
        model: Its name.
        num_blocks: L.
        tokens: Where the tokens come from.
        plan: The perturbation.
        passes: Block passes of single sequences; a head counts as many as it has operations.
        units: Work units of the experiment: groups of states that travel together.
        states: Perturbed states.
        seconds: Predicted time: passes, what bases are made of, reading blocks, and pruning them.
        memory: Predicted resident memory in bytes, without the activations of the threads.
        dtype: Of the computation.
        threads: Worker threads, or workers elsewhere.
        elsewhere: Whether the work is sent to workers.
    """

    model: str
    num_blocks: int
    tokens: TokenFacts
    plan: Perturbation
    passes: float
    units: int
    states: int
    seconds: float
    memory: int
    dtype: str
    threads: int
    elsewhere: bool = False


def estimate(
    model: Model,
    tokens: Tokens,
    plan: Perturbation | None = None,
    request: Request | None = None,
    settings: Settings | None = None,
    **changes: Any,
) -> Estimate:
    """Estimate what `score` with the same arguments takes.

    The work units of the run are listed, not run. A dense pass of the first sample through a block
    is timed, as are reading the block and pruning it, and multiplied by the run's with all samples.

    Args:
        model: From `read_model`.
        tokens: Token ids and where they come from.
        plan: The perturbation, as for `score`.
        request: Which base's signals are computed, and whether the divergence is measured.
        settings: How `score` will run; workers elsewhere count as fast as a thread here.
        **changes: Fields of the settings to change.

    Returns:
        The estimate.

    Raises:
        RefimplError: What `score` refuses of tokens, memory and plan.

    Example:
        >>> from refimpl import Noise, read_model
        >>> from refimpl.tokens import random_tokens
        >>> tokens = random_tokens(264, 2, 16)
        >>> result = estimate(read_model("fixtures/llama"), tokens, Noise(), threads=1)
        >>> result.passes, result.seconds > 0
        (20.0, True)
    """
    request, settings = request or recommended(plan), replace(settings or Settings(), **changes)
    plan, before = request.perturbation(plan), peak_memory() or 0
    ids, config = checked_ids(tokens.ids, model.config), model.config
    base = pruned_base(config, request).linear_pruned
    beside = probing_bytes(config, plan, settings.dtype, thread_count(settings.threads))
    settings = replace(settings, memory=parse_memory(settings.memory, beside))
    with settings.open() as resources:
        divergence, probes = request.correct == "divergence", isinstance(plan, Probes)
        rounds = work_list(config, ids, plan, resources, None, divergence, bool(plan.precision))
        groups = [unit for units in rounds for unit in units]
        dense = dense_units(config, dict(enumerate(ids)), resources) if probes else []
        units = [*dense, *groups]
        passes = sum(unit.cost(config) for unit in units)
        with Workers(1 if resources.executor else resources.workers.threads) as workers:
            each, load, prune, sums = _timed(model, ids[0], plan, base, resources.dtype, workers)
            first = replace(model, config=replace(config, blocks=config.blocks[:1]))
            here, chosen = replace(resources, executor=None, workers=workers), Chosen.of(request)
            signals = _seconds(lambda: before_squares(first, chosen, ids, here))
        pruned = [{(a.block, a.variant) for x in unit.stacks for a in x} for unit in groups]
        summed = sum(len(unit.ids) * len(dict(x)) for unit, x in zip(groups, pruned, strict=True))
        in_turn = each * passes + signals * config.num_blocks
        in_turn += load * len(units) * config.num_blocks
        in_turn += prune * sum(map(len, pruned)) + sums * summed
        held = max((unit.held for unit in groups), default=0)
        state, item = state_bytes(config, ids.shape[1], resources.dtype), resources.dtype.itemsize
        return Estimate(
            model=model.name,
            num_blocks=config.num_blocks,
            tokens=token_facts(tokens),
            plan=plan,
            passes=passes,
            units=len(groups),
            states=sum(len(stack) for unit in groups for stack in unit.stacks),
            seconds=in_turn / resources.at_once,
            memory=before + held * state + beside + 2 * int(config.block_sizes.max()) * item,
            dtype=resources.dtype.name,
            threads=resources.at_once if resources.executor else workers.threads,
            elsewhere=resources.executor is not None,
        )


def _timed(
    model: Model, ids: Array, plan: Perturbation, base: Array, dtype: Any, workers: Workers
) -> tuple[float, float, float, float]:
    """Seconds of one pass, of reading a block, of pruning it, and of the sums that this needs.

    As many copies of the sequence as there are threads pass the first block at the same time.
    """
    config = replace(model.config, blocks=model.config.blocks[:1])
    first, rows = replace(model, config=config), dict.fromkeys(range(workers.threads), ids)
    load = _seconds(lambda: first.block(0, dtype, workers.map))
    held, unit = HeldModel.of(first), StateGroup((), rows, tuple(rows), dtype=dtype)
    run = partial(unit.run, held, workers, lambda cost: None)
    each, prune, sums = _seconds(run) / len(rows), 0.0, 0.0
    if isinstance(plan, Probes):
        moments = wanda_moments(run()["squares 0"], 1, config)
        pruner = probed_blocks(config, base[:1, : len(config.linears[0])], plan, moments)
        weights, clean = held.block(0, dtype), Stream(first, rows, dtype)
        if plan.pruner.record.needs == "products":
            sums = _seconds(lambda: pruner.summed(clean, weights, workers)) / len(rows)
            pruner = pruner.summed(clean, weights, workers)
        prune = _seconds(lambda: pruner(0, 0, weights, workers))
    return each, load, prune, sums


def _seconds(task: Callable[[], object]) -> float:
    """How long a task takes, the median of several times if it is short."""
    times: list[float] = []
    while not times or (sum(times) < SECONDS and len(times) < MOST):
        started = time.perf_counter()
        task()
        times.append(time.perf_counter() - started)
    return float(np.median(times))
