"""A gated convolution of a few taps along the tokens, in place of attention."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refimpl.model.config import Config, Mixer, WeightShapes
from refimpl.model.mixers.parts import Place, Weights, affine
from refimpl.model.ops import Array


@dataclass(frozen=True)
class ShortConvolution(Mixer):
    """A gated convolution of a few taps along the tokens."""

    taps: int  # K, tokens that each token sees, itself included

    name = "short_convolution"
    points = ("conv_in", "conv_out")
    reads: ClassVar[Mapping[str, str]] = {"in_proj": "attn_norm", "out_proj": "mixed"}

    def shapes(self, width: int) -> WeightShapes:
        """As of `Mixer`."""
        kernel = {"conv.weight": (width, 1, self.taps), "conv.bias": (width,)}
        linears = {"in_proj": (3 * width, width), "out_proj": (width, width)}
        return WeightShapes(linears, arrays=kernel)


def causal_convolution(x: Array, weights: Weights, positions: Array) -> Array:
    """Convolve every channel along the tokens: ``y[s, c] = sum_j w[c, j] x[s - K + 1 + j, c]``.

    Args:
        x: Input, [B, S, C].
        weights: `conv.weight` [C, 1, K] and any `conv.bias` [C].
        positions: Of the tokens, [S]; a token sees none before position 0.

    Returns:
        [B, S, C].

    Example:
        >>> x, w = np.array([[[1.0], [2.0], [4.0]]]), {"conv.weight": np.array([[[10.0, 1.0]]])}
        >>> causal_convolution(x, w, np.arange(3)).ravel().tolist()
        [1.0, 12.0, 24.0]
    """
    kernel, position = weights["conv.weight"], np.expand_dims(positions, -1)
    taps = kernel.shape[-1]
    y = x * np.reshape(kernel[..., taps - 1], (-1,))
    for delay in range(1, taps):
        earlier = np.where(position >= delay, np.roll(x, delay, axis=1), 0.0)
        y = y + earlier * np.reshape(kernel[..., taps - 1 - delay], (-1,))
    return y + weights["conv.bias"] if "conv.bias" in weights else y


def short_convolution(
    x: Array, weights: Weights, place: Place, config: Config
) -> Array:
    """Mix tokens: ``b, c, v = split(W_in x)``, then ``W_out (c * conv(b * v))``.

    Observed: `conv_in`, b * v, and `conv_out`, both [B, S, D]; `mixed` [B, S, D], the input of
    `out_proj`.

    Weights: `in_proj`, `out_proj` and `conv`.

    Source: Liquid AI's LFM2, arXiv:2511.23404, section 2; transformers' `Lfm2ShortConv`.
    """
    bcv, width = affine(x, weights, "in_proj"), config.hidden_size
    b, c, v = (bcv[..., i * width : (i + 1) * width] for i in range(3))
    y = causal_convolution(place.observe("conv_in", b * v), weights, place.positions)
    mixed = c * place.observe("conv_out", y)
    return affine(place.observe("mixed", mixed), weights, "out_proj")
