"""What scoring takes: passes, arithmetic, memory and time, without the scoring."""

from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from refimpl.allocation.request import Request
from refimpl.estimation.measured_speed import Pace, pace
from refimpl.estimation.workload import (
    Arithmetic,
    Work,
    arithmetic,
    outer_products_size,
    work,
)
from refimpl.method.perturbation import Perturbation
from refimpl.model.config import Config
from refimpl.model.kernels import ELEMENTS, QUERIES
from refimpl.model.model import Model
from refimpl.model.token_ids import checked_ids
from refimpl.model.weight import DTYPES
from refimpl.running.memory import peak_memory
from refimpl.running.provenance import TokenFacts, token_facts
from refimpl.running.settings import Resources, Settings
from refimpl.scoring.activation_signals import PIECE
from refimpl.scoring.grouping import state_bytes
from refimpl.scoring.state_group import HEAD_BYTES
from refimpl.tokens import Tokens


@dataclass(frozen=True)
class Memory:
    """Resident memory of scoring, in bytes, by formula from the shapes.

    Args:
        allowed: For states, as asked for.
        states: Of all states that are held at once.
        blocks: Weights of a block as computed with, and of the next one while it is read.
        pages: Of the model's files, mapped at once.
        working: What the threads compute with: activations, noise, drifts; or logits and a piece
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

    The experiment includes passes and reads of the dense model; thinning is pruning blocks.
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
        plan: The perturbation, as for `score`.
        request: Which base's signals are computed, and whether the divergence is measured.
        dtype: float32 or float64.
        threads: Worker threads, or processes; one per core if None.
        memory: Memory for residual states; what is free, at most 2 GiB, if None.
        executor: Where the work units will run, as for `score`; workers elsewhere are assumed to
            be as fast as a thread here.
        kept: Whether `score` will keep partial results (`part`).

    Returns:
        The estimate.

    Raises:
        RefimplError: What `score` refuses of tokens, memory and plan; NaN or Inf among the weights
            that are looked at.

    Example:
        >>> from refimpl import read_model
        >>> from refimpl.tokens import random_tokens
        >>> result = estimate(read_model("fixtures/llama"), random_tokens(264, 2, 16), threads=1)
        >>> result.work.passes, result.seconds.total > 0
        (20, True)
    """
    request, settings = request or Request(), Settings(dtype, threads, memory, executor)
    plan = request.perturbation(plan)
    return Estimator(model, tokens, plan, request, settings, kept)(len(tokens.ids), plan)


class Estimator:
    """Measures the first sample once, and then estimates any number of samples, draws and blocks.

    Arguments are as for `estimate`; of the plan, its kind, scale and norm are measured.
    """

    def __init__(
        self,
        model: Model,
        tokens: Tokens,
        plan: Perturbation,
        request: Request | None,
        settings: Settings,
        kept: bool = False,
    ) -> None:
        self.model, self.request, self.kept = model, request or Request(), kept
        ids = checked_ids(tokens.ids, model.config)
        self.before, self.facts = peak_memory() or 0, token_facts(tokens)
        with settings.open() as self.resources:
            self._work(len(ids), plan)  # refuses before anything is measured
            self.pace = pace(model, ids[0], plan, self.request, self.resources)

    def __call__(self, samples: int, plan: Perturbation) -> Estimate:
        """What scoring so many samples takes."""
        config, resources, count = self.model.config, self.resources, self._work(samples, plan)
        length = self.facts.seq_len
        elsewhere = resources.pool.executor is not None
        return Estimate(
            self.model.name,
            config.num_blocks,
            replace(self.facts, samples=samples),
            plan,
            count,
            arithmetic(config, length, count, self.request),
            self._memory(count),
            seconds_of(count, self.pace, config, resources),
            self.pace,
            resources.dtype.name,
            resources.pool.workers if elsewhere else resources.workers.threads,
            elsewhere,
        )

    def _work(self, samples: int, plan: Perturbation) -> Work:
        config, length = self.model.config, self.facts.seq_len
        return work(config, samples, length, plan, self.request, self.resources, self.kept)

    def _memory(self, count: Work) -> Memory:
        """Memory by formula; of one worker if the work is sent to workers."""
        config, length, resources = self.model.config, self.facts.seq_len, self.resources
        threads = resources.workers.threads if resources.pool.executor is None else 1
        item, double = resources.dtype.itemsize, np.dtype(np.float64).itemsize
        first = next(iter(config.linears[0]))
        stored = self.model.weights[f"blocks.0.{first}.weight"].stored
        is_view = DTYPES.get(stored.kind) == resources.dtype
        width, wide = config.hidden_size, config.intermediate_size
        heads, tile = config.num_attention_heads, min(QUERIES, length) * length  # of one head
        scores_of_heads = max(tile, min(ELEMENTS, heads * tile))
        attending = length * (2 * width + 6 * heads * config.head_dim) + 3 * scores_of_heads
        passing = max(attending, length * (4 * width + 4 * wide)) * item
        measuring = length * max(4 * width, wide) * double
        rows = min(config.vocab_size, max(1, HEAD_BYTES // (length * item)))  # in a piece of head
        piece = rows * (
            6 * threads * length * double + width * (item + stored.numpy_dtype.itemsize)
        )
        largest_block = int(config.block_sizes.max())
        median = self.request.options.get("statistic") == "median"
        scores = double * (largest_block if median else threads * PIECE)
        largest = int(config.linear_sizes.max())
        spectra = 3 * threads * largest * double if self.request.base == "alphapruning" else 0
        outer = 0  # the sums of a block, and those of each sequence that a thread has passed
        if self.request.base == "lsa":
            outer = (1 + threads) * double * outer_products_size(config) // config.num_blocks
        return Memory(
            allowed=resources.memory,
            states=count.held * state_bytes(config, length, resources.dtype),
            blocks=0 if is_view else 2 * largest_block * item,
            pages=largest_block * stored.numpy_dtype.itemsize,
            working=max(threads * (passing + measuring), piece if count.heads else 0),
            signals=max(2 * scores, spectra, outer),
            before=self.before,
        )


def seconds_of(count: Work, speed: Pace, config: Config, resources: Resources) -> Seconds:
    """Time from counts and the pace; workers elsewhere share what the threads here do in turn."""
    elsewhere = resources.pool.executor is not None
    workers = resources.pool.workers if elsewhere else 1
    abreast = workers if elsewhere else resources.workers.threads
    in_turn = count.rounds * speed.turn + count.loads * speed.load
    return Seconds(
        check=speed.check,
        experiment=in_turn / workers + count.states * speed.birth / abreast,
        head=count.head_rounds * speed.head / workers,
        thinning=count.pruned_blocks * speed.thin / workers,
        spectra=config.num_blocks * speed.spectra / abreast,
        signals=config.num_blocks * (speed.signals / workers + speed.halves / abreast)
        + count.outer_rounds * speed.outer / workers,
    )
