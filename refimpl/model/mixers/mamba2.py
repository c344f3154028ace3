"""Mamba 2: a state space that is attention with decays in place of the softmax."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from refimpl.model import attention, ops
from refimpl.model.config import Config, Mixer, WeightShapes
from refimpl.model.mixers.gated_delta_rule import decays
from refimpl.model.mixers.parts import Place, Weights, affine
from refimpl.model.mixers.short_convolution import causal_convolution
from refimpl.model.mixers.softmax_attention import Attention, self_attention
from refimpl.model.ops import Array


@dataclass(frozen=True)
class Mamba2(Mixer):
    """A state space whose decay, input and output depend on the token."""

    heads: int  # H
    head_dim: int  # p, channels per head
    groups: int  # Groups of heads that share b and c
    state: int  # n, numbers that each channel keeps
    taps: int  # Tokens that the convolution before it sees
    steps: tuple[float, float]  # Smallest and largest time step
    # Multiply the inputs of the gate, x, b, c and the time step
    factors: tuple[float, ...] = (1.0,) * 5
    # Whether the output is normalised before the gate, after it, or not ("")
    norm: Literal["", "before", "after"] = "after"

    name = "mamba2"
    points = ("conv_in", "conv_out", "state_out")
    reads: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("in_proj_z", "in_proj_x", "in_proj_bc"), "attn_norm"
    ) | {"out_proj": "mixed"}
    in_a_row = False

    def shapes(self, width: int) -> WeightShapes:
        """As of `Mixer`."""
        inner, both = self.heads * self.head_dim, 2 * self.groups * self.state
        linears = {
            "in_proj_z": (inner, width),
            "in_proj_x": (inner, width),
            "in_proj_bc": (both, width),
            "out_proj": (width, inner),
        }
        arrays: dict[str, tuple[int, ...]] = {
            "conv.weight": (inner + both, 1, self.taps),
            "conv.bias": (inner + both,),
            "state_norm.weight": (inner,),
        }
        arrays |= dict.fromkeys(("A_log", "D", "dt_bias"), (self.heads,))
        return WeightShapes(linears, {"in_proj_dt": (self.heads, width)}, arrays=arrays)


def state_space(
    x: Array, b: Array, c: Array, step: Array, rate: Array, positions: Array
) -> Array:
    """Read a state after each token, into which each token has put its x.

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t b_t^T;  y_t = S_t c_t

    All tokens at once, with the `decays` D: ``y = (D * c b^T) (dt x)``.

    Args:
        x: Inputs, [B, H, S, p].
        b: How each token writes into the state, [B, H, S, n].
        c: How it reads, [B, H, S, n].
        step: dt, [B, H, S, 1].
        rate: A, at most 0, [H, 1, 1].
        positions: Of the tokens, [S].

    Returns:
        [B, H, S, p].

    Source: Dao and Gu, arXiv:2405.21060, section 5 (quadratic mode).

    Example:
        >>> one = np.ones((1, 1, 2, 1))
        >>> x, rate = np.array([[[[2.0], [5.0]]]]), np.log(np.array([[[0.5]]]))
        >>> state_space(x, one, one, one, rate, np.arange(2)).ravel().tolist()
        [2.0, 6.0]
    """
    left = decays(step * rate, positions)
    return (left * (c @ np.swapaxes(b, -1, -2))) @ (step * x)


def mamba2(x: Array, weights: Weights, place: Place, config: Config) -> Array:
    """Mix tokens by `state_space`, after a convolution, and gate its output.

    x, b, c = split(silu(conv(W_xbc x)));  dt = clip(softplus(W_dt x + dt_bias));  A = -exp(A_log);
    W_out rms_norm((y + D x) silu(W_z x)), the norm by groups of heads, before the gate or absent
    in some models; in some, a factor multiplies each of W_z x, W_xbc x and W_dt x

    Observed: `conv_in` and `conv_out` [B, S, channels of x, b and c], before and after the
    convolution and its activation; `state_out` [B, S, H p], y + D x; `mixed` [B, S, H p], the input
    of `out_proj`.

    Weights: `in_proj_*`, `out_proj`, `conv`, `A_log`, `D`, `dt_bias` and `state_norm`.

    Source: Dao and Gu, arXiv:2405.21060; transformers' `GraniteMoeHybridMambaLayer`.
    """
    sizes, observe = place.mixer, place.observe
    assert isinstance(sizes, Mamba2)
    inner, half = sizes.heads * sizes.head_dim, sizes.groups * sizes.state
    values, both = (affine(x, weights, f"in_proj_{name}") for name in ("x", "bc"))
    parts = zip(
        (values, both[..., :half], both[..., half:]), sizes.factors[1:4], strict=True
    )
    xbc = np.concatenate([ops.scaled(*part) for part in parts], axis=-1)
    xbc = ops.silu(
        causal_convolution(observe("conv_in", xbc), weights, place.positions)
    )
    xbc = observe("conv_out", xbc)
    group_of = np.arange(sizes.heads) // (sizes.heads // sizes.groups)
    b, c = (
        np.take(attention.split_heads(y, sizes.state), group_of, axis=1)
        for y in (xbc[..., inner : inner + half], xbc[..., inner + half :])
    )
    values = attention.split_heads(xbc[..., :inner], sizes.head_dim)
    step = ops.scaled(affine(x, weights, "in_proj_dt"), sizes.factors[4])
    step = ops.softplus(step + weights["dt_bias"])
    step = attention.split_heads(
        np.minimum(np.maximum(step, sizes.steps[0]), sizes.steps[1]), 1
    )
    rate, skip = (
        np.reshape(y, (-1, 1, 1)) for y in (-np.exp(weights["A_log"]), weights["D"])
    )
    y = state_space(values, b, c, step, rate, place.positions) + skip * values
    y = observe("state_out", attention.merge_heads(y))
    gate = ops.silu(ops.scaled(affine(x, weights, "in_proj_z"), sizes.factors[0]))
    y = y if sizes.norm == "before" else y * gate
    if sizes.norm:
        y = attention.split_heads(y, inner // sizes.groups)
        y = attention.merge_heads(place.kernels.rms_norm(y, 1.0, config.norm_eps))
        y = y * weights["state_norm.weight"]
    y = y * gate if sizes.norm == "before" else y
    return affine(observe("mixed", y), weights, "out_proj")


@dataclass(frozen=True)
class Beside(Mixer):
    """Softmax attention and Mamba 2 that read the same, and whose outputs are added."""

    mamba2: Mamba2  # Sizes of the one
    attention: Attention  # Sizes of the other
    before: tuple[float, float]  # Multiply the inputs of Mamba 2 and attention
    after: tuple[float, float]  # Multiply their outputs

    name = "attention_beside_mamba2"
    points = (*Mamba2.points, *Attention.points)
    in_a_row = False
    attends = True

    def shapes(self, width: int) -> WeightShapes:
        """As of `Mixer`."""
        one, other = self.mamba2.shapes(width), self.attention.shapes(width)
        linears = other.linears | one.linears
        return WeightShapes(
            linears, one.matrices, other.norms, one.arrays | other.arrays
        )


def attention_beside_mamba2(
    x: Array, weights: Weights, place: Place, config: Config
) -> Array:
    """Mix tokens in two ways: ``after_m mamba2(before_m x) + after_a self_attention(before_a x)``.

    Observed: as of both. The inputs of their linears are observed before they are multiplied.

    Source: Falcon-H1, arXiv:2507.22448; transformers' `FalconH1DecoderLayer`.
    """
    sizes = place.mixer
    assert isinstance(sizes, Beside)
    first, second = (
        replace(place, mixer=sizes.mamba2),
        replace(place, mixer=sizes.attention),
    )
    y = mamba2(ops.scaled(x, sizes.before[0]), weights, first, config)
    heads = self_attention(ops.scaled(x, sizes.before[1]), weights, second, config)
    return ops.scaled(y, sizes.after[0]) + ops.scaled(heads, sizes.after[1])
