"""The gated delta rule: a state that forgets, and learns each key's value by its own error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refimpl.model import attention, ops
from refimpl.model.config import Config, Mixer, WeightShapes
from refimpl.model.mixers.parts import Place, Weights, affine
from refimpl.model.mixers.short_convolution import causal_convolution
from refimpl.model.ops import Array

LENGTH_EPS = 1e-6  # under the root of a query's and a key's length


@dataclass(frozen=True)
class GatedDeltaRule(Mixer):
    """Linear attention whose state forgets, and corrects what it holds for a key."""

    key_heads: int  # Heads of queries and keys; value_heads is a multiple of it
    value_heads: int  # H, heads of values, decays and gates
    key_dim: int  # Channels of a query and of a key
    value_dim: int  # Channels of a value
    taps: int  # Tokens that the convolution before it sees
    most: float = 1.0  # Largest share of an error that is corrected: 1, or 2
    # Added under the root of its norm; None: as in the other norms
    norm_eps: float | None = None

    name = "gated_delta_rule"
    points = ("conv_in", "conv_out", "state_out")
    reads: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("in_proj_q", "in_proj_k", "in_proj_v", "in_proj_z"), "attn_norm"
    ) | {"out_proj": "mixed"}
    in_a_row = False
    not_recorded = "ONNX has no operator that solves a triangular system"

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of all queries, keys and values."""
        keys = self.key_heads * self.key_dim
        return keys, keys, self.value_heads * self.value_dim

    def runs(self, fused: tuple[str, ...]) -> int:
        """As of `Mixer`."""
        return self.key_heads

    def shapes(self, width: int) -> WeightShapes:
        """As of `Mixer`."""
        q, k, v = self.channels
        rows = dict(zip(self.reads, (q, k, v, v), strict=False))
        linears = {name: (count, width) for name, count in rows.items()}
        never = dict.fromkeys(("in_proj_b", "in_proj_a"), (self.value_heads, width))
        arrays: dict[str, tuple[int, ...]] = {"conv.weight": (q + k + v, 1, self.taps)}
        arrays |= dict.fromkeys(("A_log", "dt_bias"), (self.value_heads,))
        for name, channels in zip(
            "qkv", self.channels, strict=True
        ):  # in files that split it
            arrays[f"conv_{name}.weight"] = (channels, 1, self.taps)
        arrays["state_norm.weight"] = (self.value_dim,)
        return WeightShapes(linears | {"out_proj": (width, v)}, never, arrays=arrays)


def decays(log_decay: Array, positions: Array) -> Array:
    """Multiply the decays between two tokens: ``D[t, s] = a_{s+1} ... a_t`` for s <= t, else 0.

    Logarithms are summed from s + 1 to t, without a difference of two long sums, whose rounding
    would grow with the length of the text.

    Args:
        log_decay: log a_t, at most 0, [..., S, 1].
        positions: Of the tokens, [S].

    Returns:
        [..., S (t), S (s)].

    Example:
        >>> decays(np.log([[1.0], [0.5], [0.5]]), np.arange(3)).tolist()
        [[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.25, 0.5, 1.0]]
    """
    later = np.expand_dims(positions, -1) > positions
    left = np.exp(np.cumsum(np.where(later, log_decay, 0.0), axis=-2))
    return np.where(np.expand_dims(positions, -1) >= positions, left, 0.0)


def unit(x: Array) -> Array:
    """Divide every vector by its length, ``x / sqrt(x^T x + 1e-6)``.

    Example:
        >>> unit(np.array([3.0, 4.0])).round(6).tolist()
        [0.6, 0.8]
    """
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + LENGTH_EPS)


def delta_rule(
    q: Array, k: Array, v: Array, log_decay: Array, beta: Array, positions: Array
) -> Array:
    """Read a state after each token, which first corrects the state's value for its key.

    S_t = a_t S_{t-1} + k_t (beta_t (v_t - k_t^T a_t S_{t-1}))^T;  y_t = S_t^T q_t

    All tokens at once, with the `decays` D, of which L keeps those of s < t:
    the corrections u solve ``(1 + beta L(D * k k^T)) u = beta v``, and ``y = (D * q k^T) u``.

    Args:
        q: Queries, [B, H, S, d].
        k: Keys, [B, H, S, d].
        v: Values, [B, H, S, e].
        log_decay: log a_t, at most 0, [B, H, S, 1].
        beta: How much of the error is corrected, [B, H, S, 1].
        positions: Of the tokens, [S].

    Returns:
        [B, H, S, e].

    Source: Yang et al., arXiv:2412.06464, equation 10, whose chunked form is a product by blocks.

    Example:
        >>> one, v = np.ones((1, 1, 2, 1)), np.array([[[[2.0], [5.0]]]])
        >>> delta_rule(one, one, v, np.log(0.5 * one), one, np.arange(2)).ravel().tolist()
        [2.0, 5.0]
    """
    left, keys = decays(log_decay, positions), np.swapaxes(k, -1, -2)
    system = np.eye(k.shape[-2], dtype=k.dtype) + beta * np.tril(left * (k @ keys), -1)
    return (left * (q @ keys)) @ np.linalg.solve(system, beta * v)


def gated_delta_rule(x: Array, weights: Weights, place: Place, config: Config) -> Array:
    """Mix tokens by `delta_rule`, from a convolution of q, k and v to a gate on each head.

    q, k, v = split(silu(conv(W_qkv x)));  beta = m sigmoid(W_b x);
    log a = -exp(A) softplus(W_a x + dt);  W_out (rms_norm(y) silu(W_z x))

    q and k have length 1, and q is divided by sqrt(d); m, the `most`, is 1 or 2.

    Observed: `conv_in` and `conv_out` [B, S, channels of q, k and v], before and after the
    convolution and its activation; `state_out` [B, S, H e], y; `mixed` [B, S, H e], the input of
    `out_proj`.

    Weights: `in_proj_*`, `out_proj`, `conv`, `A_log`, `dt_bias` and `state_norm`.

    Source: Yang et al., arXiv:2412.06464; transformers' `Qwen3_5GatedDeltaNet`.
    """
    sizes, observe = place.mixer, place.observe
    assert isinstance(sizes, GatedDeltaRule)
    qkv = np.concatenate(
        [affine(x, weights, f"in_proj_{name}") for name in "qkv"], axis=-1
    )
    taps = weights
    if "conv.weight" not in weights:
        parts = [weights[f"conv_{name}.weight"] for name in "qkv"]
        taps = {"conv.weight": np.concatenate(parts)}
    qkv = ops.silu(causal_convolution(observe("conv_in", qkv), taps, place.positions))
    qkv, (ends, _, _) = observe("conv_out", qkv), sizes.channels
    q, k, v = qkv[..., :ends], qkv[..., ends : 2 * ends], qkv[..., 2 * ends :]
    head_of = np.arange(sizes.value_heads) // (sizes.value_heads // sizes.key_heads)
    q, k = (
        np.take(unit(attention.split_heads(y, sizes.key_dim)), head_of, axis=1)
        for y in (q, k)
    )
    beta = sizes.most * attention.split_heads(
        ops.sigmoid(affine(x, weights, "in_proj_b")), 1
    )
    step = attention.split_heads(
        affine(x, weights, "in_proj_a") + weights["dt_bias"], 1
    )
    log_decay = -np.exp(np.reshape(weights["A_log"], (-1, 1, 1))) * ops.softplus(step)
    q, v = q * sizes.key_dim**-0.5, attention.split_heads(v, sizes.value_dim)
    y = attention.merge_heads(delta_rule(q, k, v, log_decay, beta, place.positions))
    y = attention.split_heads(observe("state_out", y), sizes.value_dim)
    eps = config.norm_eps if sizes.norm_eps is None else sizes.norm_eps
    y = place.kernels.rms_norm(y, weights["state_norm.weight"], eps)
    gate = ops.silu(affine(x, weights, "in_proj_z"))
    return affine(
        observe("mixed", attention.merge_heads(y) * gate), weights, "out_proj"
    )
