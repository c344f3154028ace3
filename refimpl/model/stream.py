"""Sequences on their way through a model: embedded once, then one block after another."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from refimpl.model.config import Config
from refimpl.model.forward import Place, Weights, block, embed, places
from refimpl.model.kernels import TILED
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.state import State
from refimpl.model.statistics import Statistic, block_with_sums


class Stream:
    """The states of several sequences before block `index`.

    The caller passes the weights of each block (the model's or changed ones) and decides in which
    thread `through` runs, which changes nothing.

    Args:
        model: The model: facts and embedding.
        ids: Token ids of each sequence, [S] or [B, S], by its number; lengths may differ.
        dtype: Dtype of the computation.

    Example:
        >>> from refimpl import read_model
        >>> model = read_model("fixtures/llama")
        >>> stream = Stream(model, {0: np.array([1, 5, 7])})
        >>> for i in range(model.config.num_blocks):
        ...     weights = model.block(i, np.float32)
        ...     stream.advance({n: stream.through(h, weights) for n, h in stream.states.items()})
        >>> stream.index, stream.states[0].stream.shape
        (4, (1, 3, 32))
    """

    def __init__(
        self, model: Model, ids: Mapping[int, Array], dtype: npt.DTypeLike = np.float32
    ) -> None:
        self.model, self.config, self.dtype, self.index = model, model.config, dtype, 0
        self._places = {
            length: places(np.arange(length), model.config, dtype, TILED)
            for length in {row.shape[-1] for row in ids.values()}
        }
        self.states, table = dict[int, State](), model.embedding()
        for number, row in ids.items():
            positions, batch = np.arange(row.shape[-1]), np.atleast_2d(row)
            self.states[number] = embed(batch, positions, table, model.config, dtype)

    def place(self, length: int) -> Place:
        """The `Place` of a sequence of this length in block `index`."""
        return self._places[length][self.config.blocks[self.index]]

    def through(self, state: State, weights: Weights) -> State:
        """A state after block `index` with these weights.

        Its sequences pass as one row of tokens, [1, B S, D], if the mixer can do that: then each
        linear is one product.
        """
        place, sequences = self.place(state.stream.shape[1]), len(state)
        if sequences == 1 or not self.config.mixer(self.index).in_a_row:
            return block(state, weights, place, self.config)
        row = block(state.in_a_row(), weights, in_a_row(place, sequences), self.config)
        return row.apart(sequences)

    def through_with_sums(
        self, state: State, weights: Weights, statistic: Statistic
    ) -> tuple[State, dict[str, Array]]:
        """The same, and a statistic's sums over the inputs of the block's linears."""
        place = self.place(state.stream.shape[1])
        return block_with_sums(statistic, state, weights, place, self.config)

    def advance(self, states: Mapping[int, State]) -> None:
        """Replace the states by those after block `index`, and count one block on."""
        self.states, self.index = dict(states), self.index + 1


def state_bytes(config: Config, length: int, dtype: npt.DTypeLike) -> int:
    """Bytes of one state of `length` tokens, [S, D and what is carried]."""
    return length * config.state_size * np.dtype(dtype).itemsize


def in_a_row(place: Place, sequences: int) -> Place:
    """The same place for sequences one after another, as `kernels.tiled_attention` takes them."""
    rope, scale, times = place.rope, place.query_scale, (sequences, 1)
    return replace(
        place,
        positions=np.tile(place.positions, sequences),
        rope=None if rope is None else (np.tile(rope[0], times), np.tile(rope[1], times)),
        query_scale=np.tile(scale, times) if isinstance(scale, np.ndarray) else scale,
    )
