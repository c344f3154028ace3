"""Log likelihoods of token sequences, which travel through the model side by side, block by block.

A block is read once for all batches that fit into memory. The result is the same for every memory
and number of threads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.method.divergence import extended
from refimpl.model.config import Config
from refimpl.model.floating_point import loud
from refimpl.model.forward import Weights, head
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.stream import Stream
from refimpl.model.token_ids import checked_ids
from refimpl.running.settings import require_memory
from refimpl.running.threads import Workers
from refimpl.running.work_units import Tick
from refimpl.scoring.state_group import head_cost
from refimpl.tokens.samples import Ids

BATCH = 512  # tokens, padding included; a longer sequence is a batch of its own
CORES = 4  # which a few sequences are divided for, on every machine
ROWS, PIECE = 512, 4096  # positions and ids whose logits are in memory at a time, per thread


@dataclass(frozen=True)
class Batch:
    """Sequences computed side by side; those with the same input share a row."""

    ids: Ids  # inputs, padded with 0 at the end, which no token before it sees, [B, S]
    members: tuple[int, ...]  # which sequences these are
    counts: tuple[int, ...]  # scored tokens of each member
    places: Ids  # where, in B S, the scored tokens are predicted, member by member, [n]
    targets: Ids  # the scored tokens, [n]
    tokens: int  # inputs, padding left out

    def cost(self, config: Config) -> float:
        """Work on this batch: tokens times blocks, and the head in the same unit."""
        return self.ids.size * config.num_blocks + len(self.targets) * head_cost(config)


def batches(
    sequences: Sequence[npt.ArrayLike], starts: Sequence[int], config: Config
) -> list[Batch]:
    """Lay sequences [tokens], scored from `starts` on, side by side: the longest first.

    The last token of a sequence is predicted, never an input.
    """
    pairs = zip(sequences, starts, strict=True)
    checked = [_checked(n, ids, start, config) for n, (ids, start) in enumerate(pairs)]
    same: dict[bytes, list[int]] = {}  # sequences by their input
    for n, ids in enumerate(checked):
        same.setdefault(ids[:-1].tobytes(), []).append(n)
    rows = sorted(same.values(), key=lambda row: -len(checked[row[0]]))
    # The layout depends on nothing else, so neither does the rounding of what is computed from it.
    size = min(BATCH, sum(len(checked[row[0]]) - 1 for row in rows) // CORES)
    laid: list[Batch] = []
    # Positions of sequences of different lengths may differ.
    by_length = any(kind.rope is not None and kind.rope.by_length for kind in config.blocks)
    while rows:
        width = len(checked[rows[0][0]]) - 1
        height = max(1, size // width)
        if by_length:
            height = min(height, sum(len(checked[row[0]]) == width + 1 for row in rows))
        laid.append(_batch(rows[:height], width, checked, starts))
        rows = rows[height:]
    return laid


def _batch(
    rows: Sequence[Sequence[int]], width: int, checked: Sequence[Ids], starts: Sequence[int]
) -> Batch:
    """A batch of rows, each the sequences that share an input."""
    inputs = [checked[row[0]][:-1] for row in rows]
    members = [(i, n) for i, row in enumerate(rows) for n in row]
    places = [i * width + np.arange(starts[n] - 1, len(checked[n]) - 1) for i, n in members]
    return Batch(
        np.stack([np.pad(ids, (0, width - len(ids))) for ids in inputs]),
        tuple(n for _, n in members),
        tuple(len(place) for place in places),
        np.concatenate(places),
        np.concatenate([checked[n][starts[n] :] for _, n in members]),
        sum(len(ids) for ids in inputs),
    )


def _checked(n: int, sequence: npt.ArrayLike, start: int, config: Config) -> Ids:
    """The ids of one sequence, or an error that says why they cannot be scored."""
    ids = np.asarray(sequence)
    if ids.ndim != 1 or not 1 <= start < len(ids):
        raise RefimplError(
            f"sequence {n} has shape {list(ids.shape)} and is scored from token {start}",
            "one row of at least 2 tokens, scored from token 1 or later",
            "give each sequence a token before the first scored one",
        )
    inputs, last = checked_ids(ids[:-1], config), checked_ids(ids[-1:], config)
    return np.concatenate([inputs[0], last[0]])


def groups(batches: Sequence[Batch], tokens: int) -> Iterator[list[Batch]]:
    """Cut batches into runs of at most so many tokens, padding included; at least one batch."""
    group: list[Batch] = []
    for batch in batches:
        if group and sum(b.ids.size for b in group) + batch.ids.size > tokens:
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


@dataclass(frozen=True)
class Likelihood:
    """Log probabilities of a sequence's scored tokens, [n], float64, and whether all are greedy."""

    log_probabilities: Array
    greedy: bool


@dataclass(frozen=True)
class RunningSoftmax:
    """``ln p(target) = z_target - ln sum exp z``, from logits that arrive piece by piece."""

    targets: Ids  # whose probability is wanted, [n]
    largest: Array  # logit so far, [n]; the sum is relative to it
    best: Ids  # its id, the lowest of several, [n]
    total: Array  # ``sum exp(z - largest)``, [n], float64
    target: Array  # the target's logit, once its piece has arrived, [n]

    @classmethod
    def start(cls, targets: Ids) -> "RunningSoftmax":
        """The sums before any logits, for targets [n]."""
        none, zero = np.full(len(targets), -np.inf), np.zeros(len(targets))
        return cls(targets, none, np.full(len(targets), -1), zero, none)

    def add(self, logits: Array, first: int) -> "RunningSoftmax":
        """The sums after the logits [n, ids] of the next ids, the first of which is given."""
        column, row = self.targets - first, np.arange(len(self.targets))
        here = (column >= 0) & (column < logits.shape[1])
        largest, total, *_ = extended(self.largest, self.total, logits)
        best = logits.argmax(axis=-1) + first  # the lowest of several
        return replace(
            self,
            largest=largest,
            best=np.where(largest > self.largest, best, self.best),
            total=total,
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


def tokens_in_memory(
    model: Model, batches: Sequence[Batch], memory: int, dtype: npt.DTypeLike
) -> int:
    """Number of tokens, padding included, whose states fit into `memory` bytes."""
    channels = model.config.state_size + model.config.hidden_size  # a state, and the head's input
    each = channels * np.dtype(dtype).itemsize
    need = max(batch.ids.size for batch in batches) * each
    size = f"{need // each} tokens of {each} bytes"
    require_memory(memory, need, "one batch of sequences", size, "shorter sequences")
    return memory // each


def group_likelihoods(
    model: Model,
    group: Sequence[Batch],
    workers: Workers,
    dtype: npt.DTypeLike = np.float32,
    tick: Tick = lambda cost: None,
) -> dict[int, Likelihood]:
    """Take batches that fit into memory together through the model."""
    model.check_finite(dtype)
    with loud(dtype):
        stream = Stream(model, {i: batch.ids for i, batch in enumerate(group)}, dtype)
    for i in range(model.config.num_blocks):
        weights = model.block(i, dtype)
        with loud(dtype):
            passes = [partial(stream.through, h, weights) for h in stream.states.values()]
            stream.advance(dict(zip(stream.states, workers.run(passes), strict=True)))
        tick(sum(batch.ids.size for batch in group))
    sums = _softmax(model, group, list(stream.states.values()), workers, dtype, tick)
    members = [n for batch in group for n in batch.members]
    ends = np.cumsum([count for batch in group for count in batch.counts])[:-1]
    columns = ([x.log_probabilities for x in sums], [x.greedy for x in sums])
    rows = (np.split(np.concatenate(column), ends) for column in columns)
    return {n: Likelihood(p, bool(g.all())) for n, p, g in zip(members, *rows, strict=True)}


def _softmax(
    model: Model,
    group: Sequence[Batch],
    states: Sequence[Array],
    workers: Workers,
    dtype: npt.DTypeLike,
    tick: Tick,
) -> list[RunningSoftmax]:
    """The sums over the vocabulary of all scored tokens, from states [B, S, D] after the blocks."""
    vocabulary = model.config.vocab_size
    cuts = [
        (h.reshape(-1, h.shape[2]), batch, slice(start, start + ROWS))
        for h, batch in zip(states, group, strict=True)
        for start in range(0, len(batch.targets), ROWS)
    ]
    inputs = [h[batch.places[rows]][None] for h, batch, rows in cuts]
    sums = [RunningSoftmax.start(batch.targets[rows]) for _, batch, rows in cuts]

    def add(i: int, weights: Weights, first: int) -> RunningSoftmax:
        return sums[i].add(head(inputs[i], weights, model.config)[0], first)

    cost = sum(len(batch.targets) for batch in group) * head_cost(model.config) / vocabulary
    with loud(dtype):
        for first in range(0, vocabulary, PIECE):
            ids = slice(first, min(first + PIECE, vocabulary))
            weights = model.head(dtype, ids)
            sums = workers.run(partial(add, i, weights, first) for i in range(len(sums)))
            tick(cost * (ids.stop - first))
    return sums


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
