"""Perplexity, and log likelihoods of token sequences, which travel side by side, block by block.

A block is read once for all batches that fit into memory. The result is the same for every memory
and number of threads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp, inf, log, nan, sqrt

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.loading.samples import Ids
from refimpl.method.perturbation import extended
from refimpl.model.config import Config
from refimpl.model.forward import final_state, logits
from refimpl.model.mixers.parts import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array, within_range
from refimpl.model.state import State, checked_ids
from refimpl.model.stream import Stream
from refimpl.running.settings import Tick, require_memory
from refimpl.running.threads import Workers
from refimpl.scoring.state_group import head_cost

_BATCH = 512  # tokens, padding included; a longer sequence is a batch of its own
CORES = 4  # which a few sequences are divided for, on every machine
_ROWS, _PIECE = (
    512,
    4096,
)  # positions and ids whose logits are in memory at a time, per thread
LOG_MOST = log(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Batch:
    """Sequences computed side by side."""

    ids: Ids  # inputs, padded with 0 at the end, which no token before it sees, [B, S]
    members: tuple[int, ...]  # which sequences these are
    counts: tuple[int, ...]  # predicted tokens of each member
    positions: Ids  # where, in B S, the tokens are predicted, member by member, [n]
    targets: Ids  # the predicted tokens, [n]

    def cost(self, config: Config) -> float:
        """Work on this batch: tokens times blocks, and the head in the same unit."""
        return self.ids.size * config.num_blocks + len(self.targets) * head_cost(config)


def batches(sequences: Sequence[npt.ArrayLike], config: Config) -> list[Batch]:
    """Lay sequences [tokens] side by side: the longest first.

    The first token of a sequence is not predicted, and the last one is never an input.
    """
    checked = [_checked(n, ids, config) for n, ids in enumerate(sequences)]
    rows = sorted(range(len(checked)), key=lambda n: -len(checked[n]))
    # The layout depends on nothing else, so neither does the rounding of what is computed from it.
    size = min(_BATCH, sum(len(ids) - 1 for ids in checked) // CORES)
    laid: list[Batch] = []
    # Positions of sequences of different lengths may differ.
    by_length = any(
        kind.rope is not None and kind.rope.by_length for kind in config.blocks
    )
    while rows:
        width = len(checked[rows[0]]) - 1
        height = max(1, size // width)
        if by_length:
            height = min(height, sum(len(checked[n]) == width + 1 for n in rows))
        laid.append(_batch(rows[:height], width, checked))
        rows = rows[height:]
    return laid


def _batch(members: Sequence[int], width: int, checked: Sequence[Ids]) -> Batch:
    """A batch of some sequences."""
    rows = [checked[n] for n in members]
    return Batch(
        np.stack([np.pad(ids[:-1], (0, width + 1 - len(ids))) for ids in rows]),
        tuple(members),
        tuple(len(ids) - 1 for ids in rows),
        np.concatenate(
            [i * width + np.arange(len(ids) - 1) for i, ids in enumerate(rows)]
        ),
        np.concatenate([ids[1:] for ids in rows]),
    )


def _checked(n: int, sequence: npt.ArrayLike, config: Config) -> Ids:
    """The ids of one sequence, or an error that says why they cannot be scored."""
    ids = np.asarray(sequence)
    if ids.ndim != 1 or len(ids) < 2:
        raise RefimplError(
            f"sequence {n} has shape {list(ids.shape)}",
            "one row of at least 2 tokens",
            "give each sequence a token before the first predicted one",
        )
    inputs, last = checked_ids(ids[:-1], config), checked_ids(ids[-1:], config)
    return np.concatenate([inputs[0], last[0]])


def batch_groups(batches: Sequence[Batch], tokens: int) -> Iterator[list[Batch]]:
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
class RunningSoftmax:
    """``ln p(target) = z_target - ln sum exp z``, from logits that arrive piece by piece."""

    targets: Ids  # whose probability is wanted, [n]
    largest: Array  # logit so far, [n]; the sum is relative to it
    total: Array  # ``sum exp(z - largest)``, [n], float64
    target: Array  # the target's logit, once its piece has arrived, [n]

    @classmethod
    def start(cls, targets: Ids) -> "RunningSoftmax":
        """The sums before any logits, for targets [n]."""
        none, zero = np.full(len(targets), -np.inf), np.zeros(len(targets))
        return cls(targets, none, zero, none)

    def add(self, logits: Array, first: int) -> "RunningSoftmax":
        """The sums after the logits [n, ids] of the next ids, the first of which is given."""
        column, row = self.targets - first, np.arange(len(self.targets))
        here = (column >= 0) & (column < logits.shape[1])
        largest, total, *_ = extended(self.largest, self.total, logits)
        return replace(
            self,
            largest=largest,
            total=total,
            target=np.where(here, logits[row, np.where(here, column, 0)], self.target),
        )

    @property
    def log_probabilities(self) -> Array:
        """``ln p(target)``, [n], float64, at most zero."""
        return np.minimum(self.target - self.largest - np.log(self.total), 0)


def tokens_in_memory(
    model: Model, batches: Sequence[Batch], memory: int, dtype: npt.DTypeLike
) -> int:
    """Number of tokens, padding included, whose states fit into `memory` bytes."""
    channels = (
        model.config.state_size + model.config.hidden_size
    )  # a state, and the head's input
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
) -> dict[int, Array]:
    """``ln p`` of the predicted tokens, [n], of each sequence of batches that fit into memory."""
    model.check_finite(dtype)
    with within_range(dtype):
        stream = Stream(model, {i: batch.ids for i, batch in enumerate(group)}, dtype)
    for i in range(model.config.num_blocks):
        weights = model.block(i, dtype, workers.map)
        with within_range(dtype):
            passes = [
                partial(stream.through, h, weights) for h in stream.states.values()
            ]
            stream.advance(dict(zip(stream.states, workers.run(passes), strict=True)))
        tick(sum(batch.ids.size for batch in group))
    sums = _softmax(model, group, list(stream.states.values()), workers, dtype, tick)
    members = [n for batch in group for n in batch.members]
    ends = np.cumsum([count for batch in group for count in batch.counts])[:-1]
    rows = np.split(np.concatenate([x.log_probabilities for x in sums]), ends)
    return dict(zip(members, rows, strict=True))


def _softmax(
    model: Model,
    group: Sequence[Batch],
    states: Sequence[State],
    workers: Workers,
    dtype: npt.DTypeLike,
    tick: Tick,
) -> list[RunningSoftmax]:
    """The sums over the vocabulary of all scored tokens, from states after the blocks."""
    vocabulary = model.config.vocab_size
    cuts = [
        (x.stream.reshape(-1, x.stream.shape[2]), batch, slice(start, start + _ROWS))
        for x, batch in zip(states, group, strict=True)
        for start in range(0, len(batch.targets), _ROWS)
    ]
    last = partial(
        final_state, weights=model.head(dtype, slice(0)), config=model.config
    )
    sums = [RunningSoftmax.start(batch.targets[rows]) for _, batch, rows in cuts]

    def add(i: int, weights: Weights, first: int) -> RunningSoftmax:
        """The sums of some rows with the next ids, of which these are the weights."""
        return sums[i].add(logits(inputs[i], weights, model.config)[0], first)

    cost = (
        sum(len(batch.targets) for batch in group)
        * head_cost(model.config)
        / vocabulary
    )
    with within_range(dtype):
        inputs = workers.run(
            partial(last, h[batch.positions[at]][None]) for h, batch, at in cuts
        )
        for first in range(0, vocabulary, _PIECE):
            ids = slice(first, min(first + _PIECE, vocabulary))
            weights = model.head(dtype, ids)
            sums = workers.run(
                partial(add, i, weights, first) for i in range(len(sums))
            )
            tick(cost * (ids.stop - first))
    return sums


@dataclass(frozen=True)
class Perplexity:
    """``exp(m)``, ``m = sum_w nats_w / sum_w n_w``, the mean nats of a predicted token."""

    nats: Array  # ``- sum ln p`` over the predicted tokens of each window, [W], float64
    tokens: Array  # predicted tokens n_w of each window: all but its first, [W]
    bytes: Array | None = None  # of the text that they cover, [W], if there is a text

    @property
    def mean_nats(self) -> float:
        """Mean nats per predicted token, m."""
        return float(self.nats.sum() / self.tokens.sum())

    def minus(self, other: "Perplexity") -> "Perplexity":
        """The nats that it takes more than another on the same windows: a paired change."""
        return Perplexity(self.nats - other.nats, self.tokens)

    @property
    def value(self) -> float:
        """``exp(m)``; Inf beyond float64, where the mean nats still have a meaning."""
        return exp(self.mean_nats) if self.mean_nats < LOG_MOST else inf

    @property
    def nats_stderr(self) -> float:
        """``sqrt(W / (W - 1) sum_w (nats_w - m n_w)^2) / sum_w n_w``, of a ratio; NaN for W < 2."""
        windows = len(self.nats)
        if windows < 2:
            return nan
        squares = float(np.square(self.nats - self.mean_nats * self.tokens).sum())
        return sqrt(windows / (windows - 1) * squares) / float(self.tokens.sum())

    @property
    def stderr(self) -> float:
        """Standard error of the perplexity to first order, ``exp(m)`` times that of m."""
        return self.value * self.nats_stderr

    @property
    def bits_per_byte(self) -> float:
        """``sum nats / (ln 2 sum bytes)``; NaN where there is no text."""
        covered = 0.0 if self.bytes is None else float(self.bytes.sum())
        return float(self.nats.sum()) / (log(2) * covered) if covered else nan
