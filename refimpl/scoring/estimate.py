"""The time and memory that scoring takes, from its work units and a few of them, run and timed."""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.allocation.request import Request
from refimpl.method.perturbation import Perturbation
from refimpl.model.model import BlockWeights, Model
from refimpl.model.ops import Array
from refimpl.model.stream import Stream
from refimpl.model.token_ids import checked_ids
from refimpl.running.held_model import HeldModel
from refimpl.running.memory import peak_memory
from refimpl.running.provenance import TokenFacts, token_facts
from refimpl.running.settings import Resources, Settings
from refimpl.running.threads import Workers
from refimpl.running.work_units import WorkUnit
from refimpl.scoring.dense_statistics import DenseSequences, Moments, dense_units, wanda_moments
from refimpl.scoring.experiment import work_list
from refimpl.scoring.grouping import ROWS, stacks, state_bytes
from refimpl.scoring.measurements import Address, PruneBlock
from refimpl.scoring.score import counts_of_probes, pruned_base, pruning_perturbation
from refimpl.scoring.signals import Chosen, before_squares, of_moments
from refimpl.scoring.state_group import StateGroup
from refimpl.tokens import Tokens

SECONDS, MOST = 0.3, 25  # for which, and as often as, each part is repeated at most


@dataclass(frozen=True)
class Seconds:
    """Predicted time.

    Args:
        checks: Looking through the weights outside the blocks.
        signals: What bases are made of.
        passes: Passes of states through blocks, and heads.
        loads: Reading blocks.
        pruning: Pruning blocks for the pruning perturbation.
    """

    checks: float
    signals: float
    passes: float
    loads: float
    pruning: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Memory:
    """Resident memory in bytes, by formula from the shapes.

    Args:
        before: Largest that the process has had so far.
        states: Of all states that are held at once.
        blocks: Weights of two blocks: of one that is used, and of the next.
    """

    before: int
    states: int
    blocks: int

    @property
    def peak(self) -> int:
        """About the largest there will be, without the activations of the threads."""
        return self.before + self.states + self.blocks


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
        seconds: Time.
        memory: Bytes.
        blocks: The first blocks, which were timed.
        measuring: Seconds that this took.
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
    seconds: Seconds
    memory: Memory
    blocks: int
    measuring: float
    dtype: str
    threads: int
    elsewhere: bool = False


def estimate(
    model: Model,
    tokens: Tokens,
    plan: Perturbation | None = None,
    request: Request | None = None,
    *,
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
    memory: str | int | None = None,
    executor: Executor | None = None,
    kept: bool = False,
) -> Estimate:
    """Estimate what `score` with the same arguments takes.

    The work units of the run are listed, not run. The same kinds of units are run and timed on the
    first blocks of the model and the first sample, and their time is multiplied: passes by the cost
    that the units state for the progress bar, everything else by the number of blocks and units.

    Args:
        model: From `read_model`.
        tokens: Token ids and where they come from.
        plan: The perturbation, as for `score`.
        request: Which base's signals are computed, and whether the divergence is measured.
        dtype: float32 or float64.
        threads: Worker threads, or processes; one per core if None.
        memory: Memory for residual states, as for `score`.
        executor: Where the work units will run, as for `score`; workers elsewhere are assumed to
            be as fast as a thread here.
        kept: Whether `score` will keep finished units.

    Returns:
        The estimate.

    Raises:
        RefimplError: What `score` refuses of tokens, memory and plan; NaN or Inf among the weights
            that are looked at.

    Example:
        >>> from refimpl import read_model
        >>> from refimpl.tokens import random_tokens
        >>> result = estimate(read_model("fixtures/llama"), random_tokens(264, 2, 16), threads=1)
        >>> result.passes, result.seconds.total > 0
        (20.0, True)
    """
    started, request = time.perf_counter(), request or Request()
    plan, before = request.perturbation(plan), peak_memory() or 0
    ids, config = checked_ids(tokens.ids, model.config), model.config
    counts = counts_of_probes(pruned_base(config, request), plan, config)
    with Settings(dtype, threads, memory, executor).open() as resources:
        divergence, pruning = request.correct == "divergence", plan.kind == "pruning"
        groups = work_list(config, ids, plan, resources, divergence=divergence, keep=kept)
        dense = dense_units(config, dict(enumerate(ids)), resources, kept) if pruning else []
        units: list[StateGroup | DenseSequences] = [*dense, *groups]
        passes = sum(unit.cost(config) for unit in units)
        with Workers(1 if executor else resources.workers.threads) as workers:
            timed = _Timed(model, ids, replace(resources, executor=None, workers=workers))
            sums, variant = timed.pruning(plan, counts) if pruning else (0.0, 0.0)
            pruned = [{(a.block, a.variant) for x in unit.stacks for a in x} for unit in groups]
            summed = sum(
                len(unit.ids) * len({*dict(x)}) for unit, x in zip(groups, pruned, strict=True)
            )
            in_turn = {
                "signals": timed.signals(request) * config.num_blocks,
                "passes": timed.per_pass(plan, divergence) * passes,
                "loads": timed.load * len(units) * config.num_blocks,
                "pruning": variant * sum(map(len, pruned)) + sums * summed,
            }
            checks = _seconds(lambda: model.check_finite(resources.dtype))
            seconds = Seconds(checks, **{n: x / resources.at_once for n, x in in_turn.items()})
        held = max((unit.held for unit in groups), default=0)
        item, state = resources.dtype.itemsize, state_bytes(config, ids.shape[1], resources.dtype)
        return Estimate(
            model=model.name,
            num_blocks=config.num_blocks,
            tokens=token_facts(tokens),
            plan=plan,
            passes=passes,
            units=len(groups),
            states=sum(len(stack) for unit in groups for stack in unit.stacks),
            seconds=seconds,
            memory=Memory(before, held * state, 2 * int(config.block_sizes.max()) * item),
            blocks=timed.blocks,
            measuring=time.perf_counter() - started,
            dtype=resources.dtype.name,
            threads=resources.at_once if executor else workers.threads,
            elsewhere=executor is not None,
        )


class _Timed:
    """Work units on the first blocks of a model, and how long each takes.

    There are as many blocks as states in a stack, at least two: so its products are as in the run.
    """

    def __init__(self, model: Model, ids: Array, resources: Resources) -> None:
        config, blocks = model.config, max(2, ROWS // ids.shape[1])
        self.model = replace(model, config=replace(config, blocks=config.blocks[:blocks]))
        self.config, self.resources, self.ids = self.model.config, resources, ids
        self.blocks, self.dtype = self.config.num_blocks, resources.dtype
        self.load = _seconds(lambda: model.block(0, self.dtype, resources.workers.map))
        self.held = HeldModel.of(self.model, resources.memory)  # so that it is not read again

    def per_pass(self, plan: Perturbation, divergence: bool) -> float:
        """Seconds per pass of a group of a sequence for each thread; nothing is pruned in it."""
        sequences = range(self.resources.workers.threads)
        states = [Address(n, 0, 0, i) for n in sequences for i in range(self.blocks)]
        cut = tuple(stacks(states, self.ids.shape[1]))
        prune = None if plan.kind == "gaussian" else _unpruned
        ids = dict.fromkeys(sequences, self.ids[0])
        unit = StateGroup(cut, ids, (), plan, self.dtype, prune, divergence)
        return self._seconds(unit, self.held) / unit.cost(self.config)

    def pruning(self, plan: Perturbation, counts: Array) -> tuple[float, float]:
        """Seconds for the sums of a sequence that a pruner needs, and for one pruned variant."""
        workers, weights = self.resources.workers, self.held.block(0, self.dtype)
        rows = dict.fromkeys(range(workers.threads), self.ids[0])
        clean = Stream(self.model, rows, self.dtype)
        prune = pruning_perturbation(self.config, counts[:, : self.blocks], plan, self._moments())
        variants = range(plan.variants(len(self.config.linears[0])))

        def all_of(prune: PruneBlock) -> None:
            for variant in variants:
                prune(0, variant, weights, workers)

        if not prune.needs_products:
            return 0.0, _seconds(partial(all_of, prune)) / len(variants)
        summed = partial(prune.summed, clean, weights, workers)
        sums = _seconds(summed)
        both = _seconds(lambda: all_of(summed()))  # anew each time: variants share what it keeps
        return sums / len(rows), max(0.0, both - sums) / len(variants)

    def signals(self, request: Request) -> float:
        """Seconds for what bases are made of, of one block, from all sequences."""
        config = replace(self.config, blocks=self.config.blocks[:1])
        first, moments = replace(self.model, config=config), self._moments()[:1]
        chosen = Chosen.of(request)

        def signals() -> None:
            before_squares(first, chosen, self.ids, self.resources)
            of_moments(first, chosen, moments, self.resources)

        return _seconds(signals)

    def _moments(self) -> Moments:
        """Wanda's statistic of the first sequence."""
        unit = DenseSequences({0: self.ids[0]}, self.dtype)
        squares = unit.run(self.held, self.resources.workers, lambda cost: None)[0]
        return wanda_moments(squares, 1, self.config)

    def _seconds(self, unit: WorkUnit[object], model: Model) -> float:
        """How long a unit takes."""
        return _seconds(lambda: unit.run(model, self.resources.workers, lambda cost: None))


def _unpruned(block: int, variant: int, weights: BlockWeights, workers: Workers) -> BlockWeights:
    """In place of pruning, which is timed alone."""
    return weights


def _seconds(task: Callable[[], object]) -> float:
    """How long a task takes, the median of several times if it is short."""
    times: list[float] = []
    while not times or (sum(times) < SECONDS and len(times) < MOST):
        started = time.perf_counter()
        task()
        times.append(time.perf_counter() - started)
    return float(np.median(times))
