"""What scoring will take: passes, arithmetic, memory and time, without the scoring."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.allocation.request import Request
from refimpl.estimation.measured_speed import Pace, pace
from refimpl.estimation.workload import Arithmetic, Work, arithmetic, work
from refimpl.method.perturbation import Perturbation
from refimpl.model.config import Config
from refimpl.model.floating_point import loud
from refimpl.model.kernels import QUERIES
from refimpl.model.model import Model
from refimpl.model.token_ids import checked_ids
from refimpl.running.executors import Pool, open_pool
from refimpl.running.memory import parse_memory, peak_memory
from refimpl.running.provenance import TokenFacts, token_facts
from refimpl.running.threads import Workers
from refimpl.scoring.activation_signals import PIECE
from refimpl.scoring.journey import HEAD_BYTES
from refimpl.tokens import Tokens


@dataclass(frozen=True)
class Memory:
    """Resident memory of scoring, in bytes, by formula from the shapes.

    Args:
        allowed: For states, as asked for.
        states: Of all states that are there at once.
        blocks: Weights of a block as computed with, and of the next one while it is read.
        pages: Of the model's files, mapped at once.
        working: What the threads have in hand: activations, noise, drifts; or logits and a piece
            of the head.
        signals: What signals, spectra and pruned blocks are made of, before or after that.
        before: Largest that the process has had before it begins.
    """

    allowed: int
    states: int
    blocks: int
    pages: int
    working: int
    signals: int
    before: int

    @property
    def peak(self) -> int:
        """About the largest there will be."""
        passes = self.states + self.working
        return self.before + self.blocks + self.pages + max(passes, self.signals)


@dataclass(frozen=True)
class Seconds:
    """Time that the parts of scoring will take, about.

    Args:
        check: Looking through the weights outside the blocks.
        experiment: Passes, pushes and reading blocks, of the dense model as well.
        head: Comparing distributions.
        thinning: Pruning blocks.
        spectra: Singular values.
        signals: Signals of the dense model.
    """

    check: float
    experiment: float
    head: float
    thinning: float
    spectra: float
    signals: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Estimate:
    """What scoring will take.

    Args:
        model: Its name.
        num_blocks: L.
        tokens: Where the tokens come from.
        plan: The perturbation.
        work: Passes, loads and states.
        arithmetic: Operations.
        memory: Bytes.
        seconds: Time.
        pace: What the time was extrapolated from.
        dtype: Of the computation.
        threads: Worker threads, or workers elsewhere.
        elsewhere: Whether the work is sent to workers.
    """

    model: str
    num_blocks: int
    tokens: TokenFacts
    plan: Perturbation
    work: Work
    arithmetic: Arithmetic
    memory: Memory
    seconds: Seconds
    pace: Pace
    dtype: str
    threads: int
    elsewhere: bool = False


Estimator = Callable[[int, Perturbation], Estimate]
"""From a number of samples and a perturbation to what scoring them will take."""


def estimate(
    model: Model,
    tokens: Tokens,
    plan: Perturbation | None = None,
    request: Request | None = None,
    *,
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
    memory: str | int | None = None,
    executor: Executor | str | None = None,
    kept: bool = False,
) -> Estimate:
    """Estimate what `score` with the same arguments takes.

    Passes and arithmetic are counted. The time is extrapolated from a short measurement of the
    model's first blocks on the first of the samples.

    Args:
        model: From `read_model`.
        tokens: Token ids and where they come from.
        plan: The perturbation; Gaussian noise at eta 0.01 if None.
        request: Which base's signals are computed, and whether the divergence is measured.
        dtype: float32 or float64.
        threads: Worker threads, or processes; one per core if None.
        memory: Memory for residual states; what is free, at most 2 GiB, if None.
        executor: Where the units will run, as for `score`; workers elsewhere are taken to be as
            fast as a thread here.
        kept: Whether what is found will be kept on the way (`part`).

    Returns:
        The estimate.

    Raises:
        RefimplError: What `score` refuses of tokens, memory and plan; NaN or Inf among the weights
            that are looked at.

    Source:
        Ours; docs/how-to/time-budget.md.

    Example:
        >>> from refimpl import read_model
        >>> from refimpl.tokens import random_tokens
        >>> found = estimate(read_model("fixtures/llama"), random_tokens(264, 2, 16), threads=1)
        >>> found.work.passes, found.seconds.total > 0
        (20, True)
    """
    plan = plan or Perturbation()
    options: dict[str, Any] = {"dtype": dtype, "threads": threads, "memory": memory}
    found = estimator(model, tokens, plan, request, executor=executor, kept=kept, **options)
    return found(len(tokens.ids), plan)


def estimator(
    model: Model,
    tokens: Tokens,
    plan: Perturbation,
    request: Request | None = None,
    *,
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
    memory: str | int | None = None,
    executor: Executor | str | None = None,
    kept: bool = False,
) -> Estimator:
    """Measure once, to estimate for any number of samples, draws and blocks.

    Args:
        model: As for `estimate`, as are all others.
        tokens: Its first sample is measured.
        plan: Its kind, scale and norm are measured.
        request: What is asked for.
        dtype: Of the computation.
        threads: Worker threads.
        memory: Memory for residual states.
        executor: Where the units will run.
        kept: Whether what is found will be kept on the way.

    Returns:
        A function from samples and a perturbation to the estimate.

    Raises:
        RefimplError: See `estimate`.
    """
    request, config = request or Request(), model.config
    ids, budget = checked_ids(tokens.ids, config), parse_memory(memory)
    before, facts, length = peak_memory() or 0, token_facts(tokens), tokens.ids.shape[1]
    divergence, spectra = request.correct == "divergence", request.base == "alphapruning"
    with loud(dtype), open_pool(executor, threads) as where, Workers(threads) as workers:
        together = workers.threads if where.executor is None else 1

        def counted(samples: int, plan: Perturbation) -> Work:
            return work(
                config, samples, length, plan, divergence, together, budget, dtype, where, kept
            )

        counted(len(ids), plan)  # refuses before anything is measured
        speed = pace(model, ids[0], plan, request, workers, budget, dtype)

    def found(samples: int, plan: Perturbation) -> Estimate:
        count, times = counted(samples, plan), 2 if plan.kind == "pruning" else 1
        return Estimate(
            model.name,
            config.num_blocks,
            TokenFacts(**{**vars(facts), "samples": samples}),
            plan,
            count,
            arithmetic(config, length, count, spectra, times),
            _memory(model, length, count, together, budget, where, before, dtype, request),
            _seconds(config, count, speed, where, workers.threads, times),
            speed,
            np.dtype(dtype).name,
            workers.threads if where.executor is None else where.workers,
            where.executor is not None,
        )

    return found


def _seconds(
    config: Config, count: Work, speed: Pace, where: Pool, threads: int, signals: int
) -> Seconds:
    """Time, from counts and the pace; workers elsewhere share what the threads here do in turn."""
    workers = 1 if where.executor is None else where.workers
    abreast = threads if where.executor is None else where.workers
    in_turn = count.turns * speed.turn + count.loads * speed.load
    return Seconds(
        check=speed.check,
        experiment=in_turn / workers + count.births * speed.birth / abreast,
        head=count.head_turns * speed.head / workers,
        thinning=count.thinned * speed.thin / workers,
        spectra=config.num_blocks * speed.spectra / abreast,
        signals=config.num_blocks * speed.signals * signals / workers,
    )


def _memory(
    model: Model,
    length: int,
    count: Work,
    threads: int,
    allowed: int,
    where: Pool,
    before: int,
    dtype: npt.DTypeLike,
    request: Request,
) -> Memory:
    """Memory by formula; of one worker where the work is sent to workers."""
    config, item, double = model.config, np.dtype(dtype).itemsize, np.dtype(np.float64).itemsize
    stored = model.weights["blocks.0.down_proj.weight"].stored.array
    width, wide = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_dim
    largest = max(out * into for out, into in config.linear_shapes.values())
    attending = length * (2 * width + 6 * heads) + 3 * min(QUERIES, length) * length
    passing = max(attending, length * (4 * width + 4 * wide)) * item
    measuring = length * max(4 * width, wide) * double
    rows = min(config.vocab_size, max(1, HEAD_BYTES // (length * item)))  # of a piece of the head
    piece = rows * (6 * threads * length * double + width * (item + stored.itemsize))
    comparing = piece if count.heads else 0
    median = dict(request.options).get("statistic") == "median"
    scores = double * (config.block_size if median else threads * PIECE)
    singular = 3 * threads * largest * double if request.base == "alphapruning" else 0
    return Memory(
        allowed,
        states=count.held * length * width * item,
        blocks=0 if stored.dtype == dtype else 2 * config.block_size * item,
        pages=config.block_size * stored.itemsize,
        working=max(threads * (passing + measuring), comparing),
        signals=max(2 * scores, singular),
        before=before,
    )
