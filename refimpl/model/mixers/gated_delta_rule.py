"""The gated delta rule: a state that forgets, and learns each key's value by its own error."""

import numpy as np

from refimpl.model import attention, ops
from refimpl.model.config import Config
from refimpl.model.mixers.decay import decays
from refimpl.model.mixers.projection import Place, Weights, project
from refimpl.model.mixers.short_convolution import causal_convolution
from refimpl.model.mixers.sizes import GatedDeltaRule
from refimpl.model.ops import Array

EPS = 1e-6  # under the root of a query's and a key's length


def unit(x: Array) -> Array:
    """Divide every vector by its length, ``x / sqrt(x^T x + 1e-6)``.

    Example:
        >>> unit(np.array([3.0, 4.0])).round(6).tolist()
        [0.6, 0.8]
    """
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + EPS)


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

    Args:
        x: Normalised input, [B, S, D].
        weights: `in_proj_*`, `out_proj`, `conv`, `A_log`, `dt_bias` and `state_norm`.
        place: Positions, mask and observer.
        config: The model's facts.

    Returns:
        [B, S, D].

    Source: Yang et al., arXiv:2412.06464; transformers' `Qwen3_5GatedDeltaNet`.
    """
    sizes, observe = place.mixer, place.observe
    assert isinstance(sizes, GatedDeltaRule)
    qkv = np.concatenate([project(x, weights, f"in_proj_{name}") for name in "qkv"], axis=-1)
    taps = weights
    if "conv.weight" not in weights:
        parts = [weights[f"conv_{name}.weight"] for name in "qkv"]
        taps = {"conv.weight": np.concatenate(parts)}
    qkv = ops.silu(causal_convolution(observe("conv_in", qkv), taps, place.positions))
    qkv, (ends, _, _) = observe("conv_out", qkv), sizes.channels
    q, k, v = qkv[..., :ends], qkv[..., ends : 2 * ends], qkv[..., 2 * ends :]
    head_of = np.arange(sizes.value_heads) // (sizes.value_heads // sizes.key_heads)
    q, k = (np.take(unit(attention.split_heads(y, sizes.key_dim)), head_of, axis=1) for y in (q, k))
    beta = sizes.most * attention.split_heads(ops.sigmoid(project(x, weights, "in_proj_b")), 1)
    step = attention.split_heads(project(x, weights, "in_proj_a") + weights["dt_bias"], 1)
    log_decay = -np.exp(np.reshape(weights["A_log"], (-1, 1, 1))) * ops.softplus(step)
    q, v = q * sizes.key_dim**-0.5, attention.split_heads(v, sizes.value_dim)
    y = attention.merge_heads(delta_rule(q, k, v, log_decay, beta, place.positions))
    y = attention.split_heads(observe("state_out", y), sizes.value_dim)
    eps = config.norm_eps if sizes.norm_eps is None else sizes.norm_eps
    y = place.kernels.rms_norm(y, weights["state_norm.weight"], eps)
    gate = ops.silu(project(x, weights, "in_proj_z"))
    return project(observe("mixed", attention.merge_heads(y) * gate), weights, "out_proj")
