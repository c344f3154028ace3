"""Log likelihoods of token sequences: batches travel through the model, block by block.

A block is read once for all batches that fit into memory. The result is the same for every memory
and number of threads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.evaluation.batch import Batch, batches, groups
from refimpl.model.floating_point import loud
from refimpl.model.forward import Weights, head
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.stream import Stream
from refimpl.running.threads import Workers
from refimpl.running.work_units import Tick
from refimpl.scoring.state_group import head_cost
from refimpl.tokens.samples import Ids

ROWS, PIECE = 512, 4096  # positions and ids whose logits are in memory at a time, per thread
FEW = 16  # positions whose exponentials are in memory at a time


@dataclass(frozen=True)
class Likelihood:
    """Log probabilities of a sequence's scored tokens, [n], float64, and whether all are greedy."""

    log_probabilities: Array
    greedy: bool


@dataclass(frozen=True)
class RunningSoftmax:
    """``ln p(target) = z_target - ln sum exp z``, from logits that arrive piece by piece.

    Args:
        targets: Ids whose probability is wanted, [n].
        largest: Largest logit so far, [n]; the sum is relative to it.
        best: Its id, the lowest of several, [n].
        total: ``sum exp(z - largest)``, [n], float64.
        target: The target's logit, once its piece has arrived, [n].
    """

    targets: Ids
    largest: Array
    best: Ids
    total: Array
    target: Array

    @classmethod
    def start(cls, targets: Ids) -> "RunningSoftmax":
        """The sums before any logits, for targets [n]."""
        none, zero = np.full(len(targets), -np.inf), np.zeros(len(targets))
        return cls(targets, none, np.full(len(targets), -1), zero, none)

    def add(self, logits: Array, first: int) -> "RunningSoftmax":
        """The sums after the logits [n, ids] of the next ids, the first of which is given."""
        column, row = self.targets - first, np.arange(len(self.targets))
        here = (column >= 0) & (column < logits.shape[1])
        best = logits.argmax(axis=-1)  # the lowest of several
        highest = logits[row, best].astype(np.float64)
        largest = np.maximum(self.largest, highest)
        return replace(
            self,
            largest=largest,
            best=np.where(highest > self.largest, best + first, self.best),
            total=self.total * np.exp(self.largest - largest) + sums_of_exp(logits, largest),
            target=np.where(here, logits[row, np.where(here, column, 0)], self.target),
        )

    @property
    def log_probabilities(self) -> Array:
        """``ln p(target)``, [n], float64, at most zero."""
        return np.minimum(self.target - self.largest - np.log(self.total), 0)

    @property
    def greedy(self) -> npt.NDArray[np.bool_]:
        """Whether the target is the arg max, [n]; among equal logits the lowest id is."""
        return self.best == self.targets


def sums_of_exp(logits: Array, largest: Array) -> Array:
    """``sum exp(z - largest)`` of each row, [n], float64, a few rows at a time: in a core's cache.

    Example:
        >>> sums_of_exp(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([0.0, 1.0])).tolist()
        [2.0, 2.0]
    """
    sums = np.empty(len(logits))
    for start in range(0, len(logits), FEW):
        rows = slice(start, start + FEW)
        e = logits[rows] - largest[rows, None]
        sums[rows] = np.exp(e, out=e).sum(axis=-1)
    return sums


class Batches(Stream):
    """Batches on their way through a model, and the likelihoods at the end."""

    def __init__(
        self,
        model: Model,
        batches: Sequence[Batch],
        workers: Workers,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        model.check_finite(dtype)
        self._batches, self._workers = batches, workers
        with loud(dtype):
            super().__init__(model, {i: batch.ids for i, batch in enumerate(batches)}, dtype)

    def pass_block(self, weights: Weights, tick: Tick = lambda cost: None) -> None:
        """Take all batches through the next block, with these weights of it."""
        with loud(self.dtype):
            passes = [partial(self.through, h, weights) for h in self.states.values()]
            self.advance(dict(zip(self.states, self._workers.run(passes), strict=True)))
        tick(sum(batch.ids.size for batch in self._batches))

    def likelihoods(self, tick: Tick = lambda cost: None) -> dict[int, Likelihood]:
        """A `Likelihood` per sequence after the last block; the head is read piece by piece."""
        model, vocabulary = self.model, self.config.vocab_size
        if self.index != model.config.num_blocks:
            raise RefimplError(
                f"the batches have passed {self.index} of {model.config.num_blocks} blocks",
                "the weights of every block, in order",
                "call pass_block() for the other blocks",
            )
        pieces = [
            (h.reshape(-1, h.shape[2])[batch.places[start : start + ROWS]], start, batch)
            for h, batch in zip(self.states.values(), self._batches, strict=True)
            for start in range(0, len(batch.targets), ROWS)
        ]
        sums = [RunningSoftmax.start(b.targets[start : start + ROWS]) for _, start, b in pieces]

        def add(i: int, weights: Weights, first: int) -> RunningSoftmax:
            return sums[i].add(head(pieces[i][0][None], weights, model.config)[0], first)

        cost = sum(len(b.targets) for b in self._batches) * head_cost(model.config) / vocabulary
        with loud(self.dtype):
            for first in range(0, vocabulary, PIECE):
                ids = slice(first, min(first + PIECE, vocabulary))
                weights = model.head(self.dtype, ids)
                sums = self._workers.run(partial(add, i, weights, first) for i in range(len(sums)))
                tick(cost * (ids.stop - first))
        return dict(self._by_sequence(sums))

    def _by_sequence(self, sums: Sequence[RunningSoftmax]) -> Iterator[tuple[int, Likelihood]]:
        """Cut what all positions gave, in the order of the batches, into sequences."""
        log_probabilities = np.concatenate([piece.log_probabilities for piece in sums])
        greedy, at = np.concatenate([piece.greedy for piece in sums]), 0
        for batch in self._batches:
            for n, count in zip(batch.members, batch.counts, strict=True):
                mine = slice(at, at + count)
                yield n, Likelihood(log_probabilities[mine], bool(greedy[mine].all()))
                at += count


def tokens_in_memory(
    model: Model, batches: Sequence[Batch], memory: int, dtype: npt.DTypeLike
) -> int:
    """Number of tokens, padding included, whose states fit into `memory` bytes."""
    each = 2 * model.config.hidden_size * np.dtype(dtype).itemsize  # a state, and the head's input
    need = max(batch.ids.size for batch in batches) * each
    if need > memory:
        raise RefimplError(
            f"memory of {memory} bytes does not hold one batch of sequences",
            f"at least {need} bytes: {need // each} tokens of {each} bytes",
            f"use --memory {need} or more, or shorter sequences",
        )
    return memory // each


def group_likelihoods(
    model: Model,
    group: Sequence[Batch],
    workers: Workers,
    dtype: npt.DTypeLike = np.float32,
    tick: Tick = lambda cost: None,
) -> dict[int, Likelihood]:
    """Take batches that fit into memory together through the model."""
    stream = Batches(model, group, workers, dtype)
    for i in range(model.config.num_blocks):
        stream.pass_block(model.block(i, dtype), tick)
    return stream.likelihoods(tick)


def log_likelihoods(
    model: Model,
    sequences: Sequence[npt.ArrayLike],
    starts: Sequence[int],
    workers: Workers,
    memory: int,
    dtype: npt.DTypeLike = np.float32,
) -> list[Likelihood]:
    """``ln p(token_t | tokens before t)`` of each sequence's ids [tokens], from its start on."""
    if not sequences:
        return []
    laid = batches(sequences, starts, model.config)
    likelihoods: dict[int, Likelihood] = {}
    for group in groups(laid, tokens_in_memory(model, laid, memory, dtype)):
        likelihoods |= group_likelihoods(model, group, workers, dtype)
    return [likelihoods[n] for n in range(len(sequences))]
