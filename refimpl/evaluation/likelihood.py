"""Log likelihoods of token sequences: all of them through one block, then through the next.

A block is read once for all that fit into memory. The result is the same for every memory and
number of threads.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.evaluation.batch import Batch, batches, groups
from refimpl.evaluation.softmax import RunningSoftmax
from refimpl.model.floating_point import loud
from refimpl.model.forward import Weights, head
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.stream import Stream
from refimpl.running.threads import Workers
from refimpl.scoring.state_group import head_cost

ROWS, PIECE = 512, 4096  # positions and ids whose logits are held at a time, per thread

Tick = Callable[[float], None]
"""Called with the cost of what was done, in the unit of `Batch.cost`."""


@dataclass(frozen=True)
class Likelihood:
    """What a model says of one sequence.

    Args:
        log_probabilities: ``ln p(token_t | tokens before t)`` of its scored tokens, [n], float64.
        greedy: Whether every one of these tokens is the arg max (the lowest id of several).
    """

    log_probabilities: Array
    greedy: bool


class Batches(Stream):
    """Batches on their way through a model, and what the model says of them at the end.

    Args:
        model: The model: facts, embedding and head.
        batches: From `batches`.
        workers: Threads, each on one batch at a time.
        dtype: Of the computation; sums over the vocabulary are float64.

    Raises:
        RefimplError: NaN or Inf in the embedding or the head.
    """

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
        """Take all batches through the next block, given its weights in the stream's dtype."""
        with loud(self.dtype):
            passes = [partial(self.through, h, weights) for h in self.states.values()]
            self.advance(dict(zip(self.states, self._workers.run(passes), strict=True)))
        tick(sum(batch.ids.size for batch in self._batches))

    def likelihoods(self, tick: Tick = lambda cost: None) -> dict[int, Likelihood]:
        """What the model says, after its last block; the head is read once, piece by piece.

        Args:
            tick: Called after each piece of the vocabulary.

        Returns:
            A `Likelihood` per sequence, by its number.

        Raises:
            RefimplError: Blocks are left to pass.
        """
        model, vocabulary = self.model, self.config.vocab_size
        if self.index != model.config.num_blocks:
            raise RefimplError(
                f"{self.index} of {model.config.num_blocks} blocks passed",
                "the weights of every block, in order",
                "give the missing blocks to pass_block()",
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
        return dict(self._by_member(sums))

    def _by_member(self, sums: Sequence[RunningSoftmax]) -> Iterator[tuple[int, Likelihood]]:
        """Hand what was found at all positions, in the order of the batches, to the sequences."""
        log_probabilities = np.concatenate([found.log_probabilities for found in sums])
        greedy, at = np.concatenate([found.greedy for found in sums]), 0
        for batch in self._batches:
            for n, count in zip(batch.members, batch.counts, strict=True):
                mine = slice(at, at + count)
                yield n, Likelihood(log_probabilities[mine], bool(greedy[mine].all()))
                at += count


def room(model: Model, batches: Sequence[Batch], memory: int, dtype: npt.DTypeLike) -> int:
    """Tokens whose states fit into memory.

    Args:
        model: The model.
        batches: What has to pass through it.
        memory: Bytes for residual states.
        dtype: Of the computation.

    Returns:
        Tokens, padding included.

    Raises:
        RefimplError: Not even the largest batch fits.
    """
    each = (
        2 * model.config.hidden_size * np.dtype(dtype).itemsize
    )  # a state, and what the head reads
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
    blocks: Iterable[Weights] | None = None,
    tick: Tick = lambda cost: None,
) -> dict[int, Likelihood]:
    """Take batches through a whole model.

    Args:
        model: The model.
        group: Batches that fit into memory together.
        workers: Threads.
        dtype: Of the computation.
        blocks: Weights to use in place of the model's, block by block, in order.
        tick: Called with the cost of what was done.

    Returns:
        A `Likelihood` per sequence, by its number.
    """
    stream = Batches(model, group, workers, dtype)
    dense = (model.block(i, dtype) for i in range(model.config.num_blocks))
    for weights in dense if blocks is None else blocks:
        stream.pass_block(weights, tick)
    return stream.likelihoods(tick)


def log_likelihoods(
    model: Model,
    sequences: Sequence[npt.ArrayLike],
    starts: Sequence[int],
    workers: Workers,
    memory: int,
    dtype: npt.DTypeLike = np.float32,
    blocks: Iterable[Weights] | None = None,
    tick: Tick = lambda cost: None,
) -> list[Likelihood]:
    """Log probabilities of the tokens of sequences, from a given token of each on.

    ``ln p(token_t | tokens before t) = z[token_t] - ln sum_v exp z_v``, z the logits at t - 1.

    Args:
        model: The model.
        sequences: Ids of each, [tokens], of any lengths, two or more.
        starts: First scored token of each: 1 for all but the first, which nothing predicts.
        workers: Threads.
        memory: Bytes for residual states.
        dtype: Of the computation; sums over the vocabulary are float64.
        blocks: Weights to use in place of the model's, block by block, in order.
        tick: Called with the cost of what was done, in the unit of `Batch.cost`.

    Returns:
        A `Likelihood` per sequence, in order; the same for every memory and number of threads.

    Raises:
        RefimplError: Ids the model cannot take, a sequence too long, nothing to score in it;
            memory for less than one batch, or, with `blocks`, for less than all.

    Source:
        lm-evaluation-harness's `loglikelihood` (peer), which this is per token.

    Example:
        >>> from refimpl import read_model
        >>> model = read_model("fixtures/llama")
        >>> with Workers(1) as workers:
        ...     found = log_likelihoods(model, [[1, 5, 7, 3], [2, 4]], [2, 1], workers, 1 << 20)
        >>> [likelihood.log_probabilities.shape for likelihood in found]
        [(2,), (1,)]
    """
    if not sequences:
        return []
    made = batches(sequences, starts, model.config)
    parts = list(groups(made, room(model, made, memory, dtype)))
    if blocks is not None and len(parts) > 1:
        raise RefimplError(
            f"memory of {memory} bytes holds {len(parts[0])} of {len(made)} batches of sequences",
            "memory for all of them where the weights of the blocks are given one by one",
            "use a larger --memory, or fewer sequences",
        )
    found: dict[int, Likelihood] = {}
    for part in parts:
        found |= group_likelihoods(model, part, workers, dtype, blocks, tick)
    return [found[n] for n in range(len(sequences))]
