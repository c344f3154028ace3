"""What enters a model, token ids, and what travels from block to block."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from refimpl.arguments import require
from refimpl.errors import RefimplError
from refimpl.model.config import Config
from refimpl.model.ops import Array

KeysAndValues = tuple[Array, Array]


@dataclass(frozen=True)
class State:
    """Sequences of one length between two blocks: all that the later blocks need.

    Args:
        stream: The residual stream, [B, S, D].
        token_ids: Ids, [B, S]; blocks with embeddings of their own look them up.
        shared_kv: Keys, before their rotation, and values that later blocks read, [B, K, S, h]
            each, by the number of the block that computed them.
    """

    stream: Array
    token_ids: Array
    shared_kv: Mapping[int, KeysAndValues] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of sequences, B."""
        return len(self.stream)

    @property
    def arrays(self) -> list[Array]:
        """All arrays: the stream, ids, keys and values."""
        return [self.stream, self.token_ids, *chain(*self.shared_kv.values())]

    def changed(self, change: Callable[..., Array], *others: "State") -> "State":
        """The state whose arrays are a function of this one's, and of those of similar states."""
        every = zip(self.arrays, *(x.arrays for x in others), strict=True)
        stream, ids, *rest = (change(*together) for together in every)
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return State(stream, ids, dict(zip(self.shared_kv, pairs, strict=True)))

    def with_stream(self, h: Array) -> "State":
        """The same state with another residual stream, [B, S, D]."""
        return replace(self, stream=h)

    def sequence(self, index: int) -> "State":
        """One of its sequences, as a view."""
        return self.changed(lambda x: x[index : index + 1])

    def and_those_of(self, other: "State") -> "State":
        """Its sequences, and behind them those of another state."""
        return self.changed(lambda x, y: np.concatenate([x, y]), other)

    def where(self, tokens: Array, other: "State") -> "State":
        """This state at some tokens, True in [S], and another one at the rest."""

        def chosen(x: Array, y: Array) -> Array:
            return np.asarray(
                np.where(tokens if x.ndim == 2 else tokens[:, None], x, y)
            )

        return self.changed(chosen, other)

    def equals(self, other: "State") -> bool:
        """Whether all numbers are the same."""
        return all(map(np.array_equal, self.arrays, other.arrays))

    def in_a_row(self) -> "State":
        """Its sequences as one: the stream is [1, B S, D], keys and values are [1, K, B S, h]."""

        def row(x: Array) -> Array:
            if x.ndim == 4:
                return np.reshape(np.swapaxes(x, 0, 1), (1, x.shape[1], -1, x.shape[3]))
            return np.reshape(x, (1, -1, *x.shape[2:]))

        return self.changed(row)

    def apart(self, sequences: int) -> "State":
        """One sequence as several of equal length: the opposite of `in_a_row`."""

        def rows(x: Array) -> Array:
            if x.ndim == 4:
                return np.swapaxes(
                    np.reshape(x, (x.shape[1], sequences, -1, x.shape[3])), 0, 1
                )
            return np.reshape(x, (sequences, -1, *x.shape[2:]))

        return self.changed(rows)


def checked_ids(token_ids: npt.ArrayLike, config: Config) -> Array:
    """Convert token ids, [S] or [B, S], to int64, [B, S], or refuse them."""
    require(token_ids, npt.ArrayLike, "token_ids")
    ids = np.asarray(token_ids)
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2) or ids.size == 0:
        raise RefimplError(
            f"token ids have dtype {ids.dtype} and shape {list(ids.shape)}",
            "at least one integer, in shape [samples, tokens]",
            "save integer ids (numpy: ids.astype(numpy.int64))",
        )
    ids = np.atleast_2d(ids)
    outside = (ids < 0) | (ids >= config.vocab_size)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise RefimplError(
            f"{outside.sum()} token ids are outside the vocabulary; the first is "
            f"{ids[row, column]} (sample {row}, position {column})",
            f"ids from 0 to {config.vocab_size - 1}",
            "use the tokenizer that belongs to this model",
        )
    if ids.shape[1] > config.max_position_embeddings:
        raise RefimplError(
            f"a sequence of {ids.shape[1]} tokens is too long for this model",
            f"at most {config.max_position_embeddings} tokens (its max_position_embeddings)",
            f"use `seq_len={config.max_position_embeddings}` or less",
        )
    return ids.astype(np.int64)
