"""Alternating updates: several residual streams, of which a block computes with the first alone.

Also the low-rank path that these models have beside a block's mixer.
"""

from collections.abc import Callable
from math import sqrt

import numpy as np

from refimpl.model.attention import merge_heads, split_heads
from refimpl.model.config import OTHER_STREAMS, Config
from refimpl.model.mixers.carried import stream
from refimpl.model.mixers.projection import Place, Weights, norm, project
from refimpl.model.ops import Array, linear

LEAST = 1e-5  # mean square of a stream that is brought to the length of another
Corrected = Callable[[Array, Callable[[Array, Array], Array]], tuple[Array, Array | None]]


def as_long(x: Array, h: Array) -> Array:
    """Bring x to the root mean square of h, token by token."""
    own = np.maximum(np.mean(x * x, axis=-1, keepdims=True), LEAST)
    return x * np.sqrt(np.mean(h * h, axis=-1, keepdims=True)) / np.sqrt(own)


def other_streams(h: Array, weights: Weights, config: Config) -> list[Array]:
    """The streams beside the embeddings h, [B, S, D]: ``as_long(P_i h, h)``, in one [B, n-1, S, D].

    The list is empty in a model with one stream.
    """
    matrices = (weights[f"altup_embed.{i}.weight"] for i in range(config.streams - 1))
    made = [as_long(linear(h, matrix.astype(h.dtype)), h) for matrix in matrices]
    return [np.stack(made, axis=1)] if made else []


def merged(x: Array, weights: Weights, config: Config) -> Array:
    """The mean of all streams of the last state: ``(h_0 + sum_i as_long(U_i h_i, h_0)) / n``."""
    total = h = stream(x, config)
    for i in range(config.streams - 1):
        other = x[..., (i + 1) * config.hidden_size : (i + 2) * config.hidden_size]
        total = total + as_long(project(other, weights, f"altup_head.{i}"), h)
    return total if config.streams == 1 else total / config.streams


def predicted(x: Array, weights: Weights, place: Place, config: Config) -> tuple[Array, Corrected]:
    """What a block computes with, and how all streams follow from what it has computed.

    r(x) = tanh(W_r norm(x) / D);  p_i = h_i + sum_j C_ij h_j, with C = W_p r(h_0) as a matrix

    The block computes with p_0, to h. Then, with c = 1 + W_c r(h): h_i = p_i + c_i (h - p_0). The
    embedding of the block is added to the streams beside the first, and its gate reads scale h_0.

    Observed: `predicted` [B, S, D], p_0, and `other_streams` [B, n-1, S, D] after the block.

    Args:
        x: The first residual stream, [B, S, D].
        weights: The block's weights by our names.
        place: The other streams, kernels and observer.
        config: The model's facts.

    Returns:
        The first stream as predicted; a function of h, and of one that adds the block's embedding
        to a stream, which returns the first stream [B, S, D] and the others [B, S, (n-1) D]. With
        one stream: x, and what is not corrected.

    Source: Baykal et al., arXiv:2301.13310, and transformers' `Gemma3nTextAltUp`.
    """
    others, width = place.streams, x.shape[-1]
    if others is None:
        return x, lambda h, with_embedding: (with_embedding(h, h), None)
    count = others.shape[-1] // width + 1

    def routed(h: Array, name: str) -> Array:
        read = norm(h, weights, "altup_norm", config, place.kernels) * (1 / width)
        return project(np.tanh(project(read, weights, "altup_router")), weights, name)

    coefficients = np.reshape(routed(x, "altup_predict"), (*x.shape[:2], count, count))
    every = np.concatenate([x, others], axis=-1)
    rows = coefficients @ np.reshape(every, (*x.shape[:2], count, width))
    every = every + np.reshape(rows, (*x.shape[:2], count * width))
    first = place.observe("predicted", every[..., :width])

    def corrected(
        h: Array, with_embedding: Callable[[Array, Array], Array]
    ) -> tuple[Array, Array | None]:
        shares, change = routed(h, "altup_correct") + 1, h - first
        of_others = np.expand_dims(shares[..., 1:], -1) * np.expand_dims(change, 2)
        rest = every[..., width:] + np.reshape(of_others, (*x.shape[:2], (count - 1) * width))
        post = first + shares[..., :1] * change
        rest = split_heads(rest, width)
        read = post * weights["altup_scale"] if "altup_scale" in weights else post
        rest = rest + np.expand_dims(with_embedding(np.zeros_like(post), read), 1)
        return post, merge_heads(place.observe(OTHER_STREAMS, rest))

    return first, corrected


def with_laurel(h: Array, x: Array, weights: Weights, place: Place, config: Config) -> Array:
    """Add a low-rank path beside the mixer: ``(h + n + norm(W_r W_l n)) / sqrt(2)``, n = norm(x).

    Observed: `laurel_out` [B, S, D], n and what is added to it. Without the path: h.

    Args:
        h: The stream after the mixer, [B, S, D].
        x: The stream before it.
        weights: The block's weights by our names.
        place: Kernels and observer.
        config: The model's facts.

    Source: Menghani et al., arXiv:2411.07501, and transformers' `Gemma3nTextLaurelBlock`.
    """
    if "laurel_left.weight" not in weights:
        return h
    read = norm(x, weights, "attn_norm", config, place.kernels)
    low = project(project(read, weights, "laurel_left"), weights, "laurel_right")
    y = read + norm(low, weights, "laurel_post_norm", config, place.kernels)
    return (h + place.observe("laurel_out", y)) * sqrt(0.5)
