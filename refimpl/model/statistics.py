"""Sums over each linear's inputs: squares (Wanda, OWL, DLP) and outer products (SparseGPT, LSA)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from refimpl.model.config import Config
from refimpl.model.forward import MIXERS, Place, Weights, block
from refimpl.model.ops import Array
from refimpl.model.state import State

INPUT_OF = {
    "q_proj": "attn_norm", "k_proj": "attn_norm", "v_proj": "attn_norm", "o_proj": "attn_heads",
    "gate_proj": "mlp_norm", "up_proj": "mlp_norm", "down_proj": "mlp_hidden",
}  # fmt: skip
INPUT_OF |= {name: point for mixer in MIXERS for name, point in mixer.reads.items()}


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


ONE_PRODUCT, ROWS_AT_ONCE = (
    4096,
    1024,
)  # inputs up to which outer products are one product; else, of each

Statistic = Callable[[Array], Array]
"""Sums over the tokens of a linear's input, [B, S, in], or [n, in] of an expert."""


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


SUMS: Mapping[str, Statistic] = {"squares": sum_of_squares, "products": sum_of_outer_products}
"""What may be summed of the inputs of linears, by the word for it in a record's `needs`."""


def block_with_sums(
    statistic: Statistic, state: State, weights: Weights, place: Place, config: Config
) -> tuple[State, dict[str, Array]]:
    """The state after `block`, and the sums of its linears' inputs, by trace point."""
    sums, linears = dict[str, Array](), (name.removesuffix(".weight") for name in weights)
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
