"""Sequences on their way through a model, block by block, and sums over each linear's inputs.

Sums are of squares (Wanda, OWL, DLP) or of outer products (SparseGPT, LSA).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from refimpl.model.config import Config
from refimpl.model.forward import MIXERS, block, embed, places
from refimpl.model.kernels import TILED
from refimpl.model.mixers.parts import Place, Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.state import State

INPUT_OF = {
    "q_proj": "attn_norm",
    "k_proj": "attn_norm",
    "v_proj": "attn_norm",
    "o_proj": "attn_heads",
    "gate_proj": "mlp_norm",
    "up_proj": "mlp_norm",
    "down_proj": "mlp_hidden",
}
INPUT_OF |= {name: point for mixer in MIXERS for name, point in mixer.reads.items()}
ONE_PRODUCT = 4096  # inputs up to which outer products are one product
ROWS_AT_ONCE = 1024  # of each product beyond that
Statistic = Callable[[Array], Array]
"""Sums over the tokens of a linear's input, [B, S, in], or [n, in] of an expert."""


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
        rope=None
        if rope is None
        else (np.tile(rope[0], times), np.tile(rope[1], times)),
        query_scale=np.tile(scale, times) if isinstance(scale, np.ndarray) else scale,
    )


def input_of(linear: str) -> str:
    """Name of the trace point that a linear reads; an expert's has its prefix.

    Example:
        >>> input_of("down_proj"), input_of("experts.7.up_proj")
        ('mlp_hidden', 'experts.7.mlp_norm')
    """
    *of, name = linear.rpartition(".")
    return "".join((*of, INPUT_OF[name]))


def inputs_of(linears: Iterable[str]) -> tuple[str, ...]:
    """Trace points that linears read, each once, in order."""
    return tuple(dict.fromkeys(input_of(name) for name in linears))


def saw_no_token(linear: str, total: Array | None) -> bool:
    """Whether a linear is an expert's to which no token was routed, by the sum of its inputs."""
    return linear.startswith("experts.") and (total is None or not total.any())


def sum_of_squares(x: Array) -> Array:
    """Sum the squares of every channel: ``sum_t x_tj^2``, [..., in] to [in], float64.

    Source: Wanda's code, before it divides by the number of sequences.

    Example:
        >>> sum_of_squares(np.array([[[1.0, 2.0], [3.0, 4.0]]])).tolist()
        [10.0, 20.0]
    """
    return np.sum(np.square(x, dtype=np.float64), axis=tuple(range(len(x.shape) - 1)))


def sum_of_outer_products(x: Array) -> Array:
    """Sum the outer products of the tokens: ``sum_t x_t x_t^T``, [..., in] to [in, in], float64.

    Source: SparseGPT's code, before it multiplies by 2 / n.

    Example:
        >>> sum_of_outer_products(np.array([[[1.0, 2.0], [3.0, 4.0]]])).tolist()
        [[10.0, 14.0], [14.0, 20.0]]
    """
    total = np.zeros((x.shape[-1], x.shape[-1]))
    for rows in product_rows(len(total)):
        total[rows, rows.start :] = outer_products(x, rows)
    return mirrored(total)


def product_rows(width: int) -> list[slice]:
    """Rows of a matrix [width, width] of outer products, as many as are computed at once."""
    step = width if width <= ONE_PRODUCT else ROWS_AT_ONCE
    return [slice(start, min(start + step, width)) for start in range(0, width, step)]


def outer_products(x: Array, rows: slice) -> Array:
    """Some rows of ``sum_t x_t x_t^T``, from the diagonal on, float64."""
    right = x.reshape(-1, x.shape[-1])[:, rows.start :].astype(np.float64)
    return right[:, : rows.stop - rows.start].T @ right


def mirrored(total: Array) -> Array:
    """The symmetric matrix whose `product_rows` are known from the diagonal on, in its place."""
    for rows in product_rows(len(total)):
        total[rows.stop :, rows] = total[rows, rows.stop :].T
    return total


SUMS: Mapping[str, Statistic] = {
    "squares": sum_of_squares,
    "products": sum_of_outer_products,
}
"""What may be summed of the inputs of linears, by the word for it in a record's `needs`."""


def block_with_sums(
    statistic: Statistic, state: State, weights: Weights, place: Place, config: Config
) -> tuple[State, dict[str, Array]]:
    """The state after `block`, and the sums of its linears' inputs, by trace point."""
    sums, linears = (
        dict[str, Array](),
        (name.removesuffix(".weight") for name in weights),
    )
    read = {input_of(name) for name in linears if name.rpartition(".")[2] in INPUT_OF}

    def observe(name: str, value: Array) -> Array:
        if name in read:
            sums[name] = statistic(value)
        return value

    return block(state, weights, replace(place, observe=observe), config), sums


def add_sums(total: dict[str, Array], more: Mapping[str, Array]) -> None:
    """Add one sequence's sums, by trace point, to the total, in place."""
    for name, sums in more.items():
        total[name] = total.get(name, 0.0) + sums


def second_moments(
    squares: Mapping[str, Array], sequences: int, linears: Mapping[str, tuple[int, int]]
) -> dict[str, Array]:
    """Wanda's statistic of linears of a block: ``c_j = (1/n) sum over all tokens of x_j^2``.

    `squares` are sums by trace point over n sequences, and the result is [in] by linear, float64.
    The tokens of an expert are those routed to it, n stays the same; without any, c is 0.

    Source: Wanda's code, which divides by the number of sequences.
    """
    return {
        name: squares.get(input_of(name), np.zeros(width)) / sequences
        for name, (_, width) in linears.items()
    }
