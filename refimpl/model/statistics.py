"""Inputs of each linear: the sum of squares that Wanda, OWL and DLP are made from."""

from collections.abc import Mapping

import numpy as np

from refimpl.model.config import Config
from refimpl.model.forward import Place, Weights, block
from refimpl.model.kernels import PLAIN, Kernels
from refimpl.model.ops import Array

INPUT_OF = {
    "q_proj": "attn_norm",
    "k_proj": "attn_norm",
    "v_proj": "attn_norm",
    "o_proj": "attn_heads",
    "gate_proj": "mlp_norm",
    "up_proj": "mlp_norm",
    "down_proj": "mlp_hidden",
}


def block_with_squares(
    x: Array, weights: Weights, place: Place, config: Config, kernels: Kernels = PLAIN
) -> tuple[Array, dict[str, Array]]:
    """Run one block and sum the squares of what its linears read: ``sum_t x_tj^2``.

    Args:
        x: Residual stream before the block, [B, S, D].
        weights: The block's weights by our names.
        place: Bias and rotary tables.
        config: The model's facts.
        kernels: How attention and activation are evaluated.

    Returns:
        The residual stream after the block [B, S, D], and for each trace point that is some
        linear's input the sum over batch and tokens, [in], float64.

    Source:
        Wanda's statistic before division by the number of sequences (a peer, confirmed).
    """
    squares: dict[str, Array] = {}

    def point(name: str, value: Array) -> Array:
        if name in INPUT_OF.values():
            squares[name] = np.sum(np.square(value, dtype=np.float64), axis=(0, 1))
        return value

    return block(x, weights, place, config, point, kernels), squares


def add_squares(total: dict[str, Array], more: Mapping[str, Array]) -> None:
    """Add one sequence's sums of squares to the total, in place.

    Args:
        total: Sums so far, by trace point; empty at first.
        more: One sequence's sums.

    Example:
        >>> total = {}
        >>> add_squares(total, {"attn_norm": np.ones(2)})
        >>> add_squares(total, {"attn_norm": np.ones(2)})
        >>> total["attn_norm"].tolist()
        [2.0, 2.0]
    """
    for name, sums in more.items():
        total[name] = total.get(name, 0.0) + sums


def second_moments(
    squares: Mapping[str, Array], sequences: int, config: Config
) -> dict[str, Array]:
    """Wanda's statistic of every linear: ``c_j = (1/n) sum over all tokens of x_j^2``.

    Args:
        squares: Sums of squares by trace point, over all n sequences.
        sequences: n, the number of sequences (not of tokens).
        config: The model's facts.

    Returns:
        By linear, [in], float64.

    Source:
        Wanda (a peer, confirmed): divided by the number of sequences.
    """
    return {name: squares[INPUT_OF[name]] / sequences for name in config.linear_shapes}
