"""How much there is to do in scoring: passes, loads, states and arithmetic, counted beforehand."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refimpl.method.perturbation import Perturbation
from refimpl.model.config import BlockKind, Config
from refimpl.model.kernels import QUERIES
from refimpl.model.ops import Array
from refimpl.running.executors import LOCAL, Pool
from refimpl.scoring import dense_statistics as profile
from refimpl.scoring.experiment import journeys
from refimpl.scoring.measurements import Address, addresses
from refimpl.scoring.memory import read_together


@dataclass(frozen=True)
class Work:
    """What scoring does, in counts that are exact.

    Args:
        dense: Passes of the dense model before the experiment, per block, [L].
        clean: Passes of clean states in the experiment, per block, [L].
        pushed: Passes of pushed states, per block, [L].
        births: States that are pushed.
        turns: Turns in which all threads make the passes, see `in_turn`.
        heads: Times the head turns a state into logits.
        head_turns: Turns in which all threads do that.
        loads: Times a block is read.
        thinned: Times a block is pruned.
        held: States in memory at once at most, each sequence's clean one twice.
    """

    dense: Array
    clean: Array
    pushed: Array
    births: int
    turns: int
    heads: int
    head_turns: int
    loads: int
    thinned: int
    held: int

    @property
    def passes(self) -> int:
        """Block passes of single sequences, in all."""
        return int((self.dense + self.clean + self.pushed).sum())


def work(
    config: Config,
    sequences: int,
    length: int,
    plan: Perturbation,
    divergence: bool,
    threads: int,
    memory: int,
    dtype: npt.DTypeLike = np.float32,
    engine: Pool = LOCAL,
    kept: bool = False,
) -> Work:
    """Count what scoring does.

    Args:
        config: The model's facts.
        sequences: N.
        length: Tokens of a sequence, S.
        plan: The perturbation.
        divergence: Whether the divergence is measured.
        threads: Threads that work on a group of states together.
        memory: Bytes for residual states.
        dtype: Of the computation.
        engine: Where groups of states run.
        kept: Whether what was found is kept on the way.

    Returns:
        The counts.

    Raises:
        RefimplError: What `score` refuses about states: too little memory, a subset too small.

    Example:
        >>> from refimpl import read_model
        >>> config = read_model("fixtures/llama").config
        >>> count = work(config, 2, 16, Perturbation(), False, threads=1, memory=1 << 20)
        >>> count.clean.tolist(), count.pushed.tolist(), count.passes
        ([2, 2, 2, 2], [0, 2, 4, 6], 20)
    """
    blocks, pruning = config.num_blocks, plan.kind == "pruning"
    clean, pushed = np.zeros((2, blocks), np.int64)
    turns = heads = head_turns = loads = thinned = held = 0
    states = addresses(sequences, blocks, plan)
    for part in journeys(states, config, length, threads, memory, dtype, engine, kept):
        each = Counter(a.sequence for a in part)
        moved = moves(part, blocks, plan)
        clean += len(each)
        pushed += moved
        turns += in_turn(len(each) + moved, threads)
        loads += blocks
        held = max(held, len(part) + 2 * len(each))
        thinned += len({a.block for a in part}) if pruning else 0
        if divergence:
            heads += len(part) + len(each)
            head_turns += sum(1 - (-n // threads) for n in each.values())
    dense = np.full(blocks, sequences if pruning else 0)
    if pruning:
        most = 1 if engine.executor is not None else profile.KEPT * threads if kept else None
        room = read_together(config, length, memory, dtype, most)
        groups = [min(room, sequences - start) for start in range(0, sequences, room)]
        turns += in_turn(np.array(groups), threads) * blocks
        loads += len(groups) * blocks
    return Work(dense, clean, pushed, len(states), turns, heads, head_turns, loads, thinned, held)


def moves(states: Sequence[Address], blocks: int, plan: Perturbation) -> Array:
    """Passes that pushed states make: from the block after their own, or from their pruned one.

    Args:
        states: The states.
        blocks: L.
        plan: The perturbation.

    Returns:
        Passes per block, [L].

    Example:
        >>> moves([Address(0, 0, 0, b) for b in range(3)], 3, Perturbation()).tolist()
        [0, 1, 2]
    """
    born = np.bincount([a.block for a in states], minlength=blocks)
    return np.cumsum(born) - (0 if plan.kind == "pruning" else born)


def in_turn(tasks: Array, threads: int) -> int:
    """Turns that tasks take, where all of one block end before those of the next begin.

    Args:
        tasks: Tasks per block, [L].
        threads: Threads.

    Returns:
        Turns of all threads together.

    Example:
        >>> in_turn(np.array([1, 4, 5]), threads=4)
        4
    """
    return int((-(-tasks // threads)).sum())


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of scoring, a multiplication and an addition being two.

    Args:
        linears: Of the linears of all passes.
        attention: Scores and mixed values of all passes, of the keys that are looked at.
        head: Logits.
        spectra: Singular values for AlphaPruning, as LAPACK finds them.
        signals: Wanda's scores, and what OWL and DLP make of them.
    """

    linears: int
    attention: int
    head: int
    spectra: int
    signals: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.linears + self.attention + self.head + self.spectra + self.signals


def arithmetic(config: Config, length: int, count: Work, spectra: bool, signals: int) -> Arithmetic:
    """Operations, by formula from the shapes.

    ``2 S N_l`` for the linears of a pass, ``4 H h`` for every pair of a query and a key that are
    multiplied, ``2 S D V`` for a head, ``4 m n^2 - 4 n^3 / 3`` for the singular values of a linear
    (m >= n), 5 per weight for the signals. Norms, activations and softmax are left out.

    Args:
        config: The model's facts.
        length: Tokens, S.
        count: From `work`.
        spectra: Whether the singular values of all linears are computed.
        signals: How often the signals are computed.

    Returns:
        The operations.

    Source:
        Singular values: Golub and Van Loan, Matrix Computations, on bidiagonalisation.
    """
    passes = count.dense + count.clean + count.pushed
    pairs = {kind: attended(kind, length) for kind in set(config.blocks)}
    width = config.num_attention_heads * config.head_dim
    of_blocks = zip(passes.tolist(), config.blocks, strict=True)
    return Arithmetic(
        linears=2 * length * config.block_size * int(passes.sum()),
        attention=sum(4 * width * n * pairs[kind] for n, kind in of_blocks),
        head=2 * length * config.hidden_size * config.vocab_size * count.heads,
        spectra=config.num_blocks * singular(config) if spectra else 0,
        signals=5 * config.num_blocks * config.block_size * signals,
    )


def singular(config: Config, linears: Iterable[str] | None = None) -> int:
    """Operations for the singular values of some linears of a block.

    Args:
        config: The model's facts.
        linears: Names of the linears; all if None.

    Returns:
        Operations, see `arithmetic`.
    """
    shapes = config.linear_shapes
    sizes = [sorted(shapes[name]) for name in (shapes if linears is None else linears)]
    return sum(4 * m * n**2 - 4 * n**3 // 3 for n, m in sizes)


def attended(kind: BlockKind, length: int) -> int:
    """Pairs of a query and a key that are multiplied: a tile of queries and the keys it sees.

    Args:
        kind: Which tokens a block sees.
        length: Tokens, S.

    Returns:
        Their number, for one head.

    Example:
        >>> attended(BlockKind(window=None, rope=None), 256)  # 128 x 128 + 128 x 256
        49152
    """
    starts = range(0, length, QUERIES)
    ends = [min(start + QUERIES, length) for start in starts]
    firsts = [0 if kind.window is None else max(0, start - kind.window + 1) for start in starts]
    return sum(
        (end - start) * (end - first)
        for start, end, first in zip(starts, ends, firsts, strict=True)
    )
