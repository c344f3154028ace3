"""How much scoring has to do: passes, loads, states and arithmetic, counted beforehand."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from refimpl.allocation.request import Request
from refimpl.method.perturbation import Perturbation
from refimpl.model.config import BlockKind, Config
from refimpl.model.kernels import QUERIES
from refimpl.model.ops import Array
from refimpl.model.statistics import input_of
from refimpl.running.settings import Resources
from refimpl.scoring.dense_statistics import sequences_together
from refimpl.scoring.grouping import stacks, state_groups
from refimpl.scoring.measurements import Address, addresses
from refimpl.scoring.reconstruction import ranges


@dataclass(frozen=True)
class Work:
    """What scoring does, in counts that are exact.

    Args:
        dense: Passes of the dense model before the experiment, per block, [L].
        clean: Passes of clean states in the experiment, per block, [L].
        perturbed: Passes of perturbed states, per block, [L].
        states: Perturbed states.
        rounds: Rounds in which all threads make the passes, see `rounds_of`.
        heads: Times the head turns a state into logits.
        head_rounds: Rounds in which all threads do that.
        loads: Times a block is read.
        pruned_blocks: Times a block is pruned.
        held: States in memory at once at most, each sequence's clean one twice.
        outer: Passes of a block that sum the outer products of what its linears read, for LSA.
        outer_rounds: Rounds in which all threads do that.
    """

    dense: Array
    clean: Array
    perturbed: Array
    states: int
    rounds: int
    heads: int
    head_rounds: int
    loads: int
    pruned_blocks: int
    held: int
    outer: int = 0
    outer_rounds: int = 0

    @property
    def passes(self) -> int:
        """Block passes of single sequences, in all."""
        return int((self.dense + self.clean + self.perturbed).sum())


def work(
    config: Config,
    sequences: int,
    length: int,
    plan: Perturbation,
    request: Request,
    resources: Resources,
    keep: bool = False,
) -> Work:
    """Count what scoring N sequences of S tokens does.

    Like `score`, it refuses too little memory for states, and a subset that is too small.
    """
    blocks, pruning = config.num_blocks, plan.kind == "pruning"
    divergence, outer, outer_rounds = request.correct == "divergence", 0, 0
    threads = resources.workers.threads if resources.pool.executor is None else 1
    clean, perturbed = np.zeros((2, blocks), np.int64)
    rounds = heads = head_rounds = loads = pruned_blocks = held = 0
    states = addresses(sequences, blocks, plan, [len(block) for block in config.linears])
    every = sequences if plan.probe_pruner == "sparsegpt" else 0
    cut = stacks(states, length)
    for held_together in state_groups(cut, config, length, resources, keep, every):
        group = [a for stack in held_together for a in stack]
        per_sequence = Counter(a.sequence for a in group)
        per_sequence.update(dict.fromkeys(range(every), 0))
        passes = perturbed_passes(group, blocks, plan)
        clean += len(per_sequence)
        perturbed += passes
        rounds += rounds_of(len(per_sequence) + passes, threads)
        loads += blocks
        held = max(held, len(group) + 2 * len(per_sequence))
        variants = {(a.block, a.eta) for a in group} if pruning else set()
        alone = len([e for _, e in variants if e > 0 and plan.units == "linears"])
        pruned_blocks += len(variants) - alone - (-alone // config.linear_sizes.shape[1])
        if divergence:
            heads += len(group) + len(per_sequence)
            head_rounds += sum(1 - (-n // threads) for n in per_sequence.values())
    dense = np.full(blocks, sequences if pruning else 0)
    if pruning:
        together = sequences_together(config, length, resources, keep)
        units = [min(together, sequences - start) for start in range(0, sequences, together)]
        rounds += rounds_of(np.array(units), threads) * blocks
        loads += len(units) * blocks
    if request.base == "lsa":
        for unit in ranges([*range(blocks)], resources):
            dense[: unit[-1] + 1] += sequences
            rounds += rounds_of(np.full(unit[-1] + 1, sequences), threads)
            loads += unit[-1] + 1
        outer, held = blocks * sequences, max(held, 2 * sequences)
        outer_rounds = rounds_of(np.full(blocks, sequences), threads)
    counts = dense, clean, perturbed, len(states), rounds, heads, head_rounds, loads, pruned_blocks
    return Work(*counts, held, outer, outer_rounds)


def perturbed_passes(states: Sequence[Address], blocks: int, plan: Perturbation) -> Array:
    """Passes of perturbed states per block, [L]: a pruned block is passed too, noise is added."""
    starting = np.bincount([a.block for a in states], minlength=blocks)
    return np.cumsum(starting) - (0 if plan.kind == "pruning" else starting)


def rounds_of(tasks: Array, threads: int) -> int:
    """Rounds of all threads for tasks per block, [L], if each block waits for the one before it."""
    return int((-(-tasks // threads)).sum())


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of scoring, a multiplication and an addition being two.

    Attention counts the keys that are looked at; spectra are eigenvalues of Gram matrices.
    """

    linears: int
    attention: int
    head: int
    spectra: int
    signals: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))


def arithmetic(config: Config, length: int, count: Work, request: Request) -> Arithmetic:
    """Operations, by formula from the shapes.

    ``2 S N_l`` for the linears of a pass, ``4 H h`` for every pair of a query and a key that are
    multiplied, ``2 S D V`` for a head, ``m n^2 + 4 n^3 / 3`` for the spectrum of a linear (m >= n;
    half of a product, and Golub and Van Loan, Matrix Computations, on tridiagonalisation), 5 per
    weight for the signals; for LSA 5 more per weight and column taken of a group, and
    ``2 S in^2`` for outer products. Norms, activations and softmax are not counted.
    """
    signals, taken = 5 * int(config.block_sizes.sum()), 0
    if request.base == "lsa":
        taken = (int(request.options["block"]) or config.hidden_size) // 2
    squares = outer_products_size(config) // config.num_blocks
    passes = count.dense + count.clean + count.perturbed
    pairs = {kind: attended(kind, length) for kind in set(config.blocks)}
    width = config.num_attention_heads * config.head_dim
    of_blocks = zip(passes.tolist(), config.blocks, strict=True)
    return Arithmetic(
        linears=2 * length * int((passes * config.block_sizes).sum()),
        attention=sum(4 * width * n * pairs[kind] for n, kind in of_blocks),
        head=2 * length * config.hidden_size * config.vocab_size * count.heads,
        spectra=sum(map(spectral_work, config.linears)) if request.base == "alphapruning" else 0,
        signals=signals * (1 + taken) + 2 * length * squares * count.outer,
    )


def outer_products_size(config: Config) -> int:
    """Numbers in the outer products of what all linears read, each input counted once."""
    widths = ({input_of(name): w for name, (_, w) in block.items()} for block in config.linears)
    return sum(width**2 for block in widths for width in block.values())


def spectral_work(linears: Mapping[str, tuple[int, int]]) -> int:
    """Operations for the spectra of linears of these shapes [out, in], by name."""
    return sum(m * n**2 + 4 * n**3 // 3 for n, m in map(sorted, linears.values()))


def attended(kind: BlockKind, length: int) -> int:
    """Pairs of a query and a key that a head multiplies: a tile of queries and the keys it sees."""
    starts = range(0, length, QUERIES)
    ends = [min(start + QUERIES, length) for start in starts]
    size = kind.window or length
    firsts = [
        start - start % size if kind.chunked else max(0, start - size + 1) for start in starts
    ]
    return sum(
        (end - start) * (end - first)
        for start, end, first in zip(starts, ends, firsts, strict=True)
    )
