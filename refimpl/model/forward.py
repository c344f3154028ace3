"""The forward pass, from token ids to logits, for every family.

Read from the bottom: `forward` calls `embed`, then `block` (`self_attention` and `mlp`) once per
block, then `head`. What a family does differently is in its `Config`, or in which weights exist.
Each step passes its result to an observer, which may record the array or return another one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.model import attention, ops, position_tables
from refimpl.model.config import LEARNED_ACTIVATION, BlockKind, Config
from refimpl.model.experts import Observer, route, unobserved
from refimpl.model.floating_point import loud
from refimpl.model.kernels import PLAIN, Kernels
from refimpl.model.model import Model
from refimpl.model.ops import Array, linear
from refimpl.model.token_ids import checked_ids

Weights = Mapping[str, Array]

TRACE_POINTS = (
    "resid_pre", "attn_norm", "q", "k", "v", "q_rope", "k_rope", "attn_out",
    "resid_mid", "mlp_norm", "mlp_out", "resid_post",
)  # fmt: skip
INSIDE = ("attn_heads", "mlp_hidden")  # observed, but not part of a trace: inputs of linears


@dataclass(frozen=True)
class Place:
    """What a block needs besides its weights: token positions, kernels and an observer.

    Args:
        bias: Added to attention scores: 0 or -inf, [S, S].
        rope: Cosines and sines, each [S, h_rot / 2]; None if the block does not rotate.
        interleaved: As in `attention.rotate`.
        ramps: From `alibi_ramps`, [H, S], or None.
        query_scale: Multiplies queries; a number, or one for each position, [S, 1].
        kernels: How the costly steps are evaluated; results differ in rounding only.
        observe: Receives the name and value of every trace point; the block continues with the
            array that it returns.
    """

    bias: Array
    rope: tuple[Array, Array] | None
    interleaved: bool = False
    ramps: Array | None = None
    query_scale: Array | float = 1.0
    kernels: Kernels = PLAIN
    observe: Observer = unobserved


@dataclass(frozen=True)
class Forward:
    """The result of a forward pass.

    Args:
        logits: Scores of the next token, [B, S, V].
        trace: Trace points by name (`embed`, `blocks.0.resid_pre`, ..., `logits`), in
            execution order; empty unless requested.
    """

    logits: Array
    trace: Mapping[str, Array] = field(default_factory=dict)


def places(
    positions: Array, config: Config, dtype: npt.DTypeLike, kernels: Kernels = PLAIN
) -> dict[BlockKind, Place]:
    """Attention bias and tables of each kind of block, for tokens at positions [S] from 0.

    Rotary tables may depend on the length, S, so all tokens of a sequence are in one `Place`.
    """
    ramps = position_tables.alibi_ramps(positions, config.alibi) if config.alibi else None

    def place(kind: BlockKind) -> Place:
        scale: Array | float = config.attention_scale
        if kind.temperature is not None:
            scale = (scale * position_tables.query_scale(positions, kind.temperature)).astype(dtype)
        bias = position_tables.causal_bias(positions, position_tables.reach(positions, kind), dtype)
        tables = position_tables.rotation(positions, kind.rope, dtype) if kind.rope else None
        interleaved = kind.rope is not None and kind.rope.interleaved
        return Place(bias, tables, interleaved, ramps, scale, kernels)

    return {kind: place(kind) for kind in dict.fromkeys(config.blocks)}


def norm(x: Array, weights: Weights, role: str, config: Config, kernels: Kernels = PLAIN) -> Array:
    """Normalise over the last axis; a norm that the model does not have is the identity."""
    if f"{role}.weight" not in weights and role not in config.weightless_norms:
        return x
    gain = weights.get(f"{role}.weight", 1.0)
    if config.norm == "rms":
        return kernels.rms_norm(x, gain, config.norm_eps)
    return ops.layer_norm(x, gain, weights.get(f"{role}.bias", 0.0), config.norm_eps)


def project(x: Array, weights: Weights, name: str) -> Array:
    """Apply one linear, with its bias if the model has one."""
    return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def embed(
    token_ids: Array, positions: Array, weights: Weights, config: Config, dtype: npt.DTypeLike
) -> Array:
    """Look up tokens (and learned positions): ``norm(scale * E[id] + P[offset + position])``.

    Args:
        token_ids: Ids, [B, S], integers.
        positions: Token positions, [S], integers.
        weights: `embed.weight` [V, D]; `pos_embed.weight` [P, D], if positions are learned;
            `embed_norm.*` [D], if embeddings are normalised.
        config: The model's facts.
        dtype: Dtype of the computation.

    Returns:
        The residual stream before the first block, h_0, [B, S, D].
    """
    x = np.take(weights["embed.weight"], token_ids, axis=0).astype(dtype) * config.embed_scale
    if "pos_embed.weight" in weights:
        row = positions + config.position_offset
        x = x + np.take(weights["pos_embed.weight"], row, axis=0).astype(dtype)
    return norm(x, weights, "embed_norm", config).astype(dtype)


def self_attention(x: Array, weights: Weights, place: Place, config: Config) -> Array:
    """Attend: ``softmax(cap((scale q) k^T) + bias) v``, heads merged, then `o_proj`.

    A learned score per head, `sinks` [H], may take a share of the softmax.

    q and k may be normalised in three places: over all heads together (`q_width_norm`), per head
    (`q_norm`), or per head after the rotation (`q_rope_norm`).

    Observed: `q`, `k`, `v`, `q_rope`, `k_rope` [B, heads, S, h], and `attn_heads` [B, S, H h], the
    input of `o_proj`.

    Args:
        x: Normalised input, [B, S, D].
        weights: The block's weights by our names.
        place: Bias, rotary tables, kernels and observer.
        config: The model's facts.

    Returns:
        Attention's output, [B, S, D].
    """
    observe, kernels = place.observe, place.kernels

    def heads_of(name: str) -> Array:
        y = norm(
            project(x, weights, f"{name}_proj"), weights, f"{name}_width_norm", config, kernels
        )
        y = ops.limited(y, config.qkv_limit)
        y = attention.split_heads(y, config.head_dim)
        return observe(name, norm(y, weights, f"{name}_norm", config, kernels))

    q, k, v = map(heads_of, "qkv")
    if place.rope is not None:
        q, k = (kernels.rotate(x, *place.rope, place.interleaved) for x in (q, k))
        q = observe("q_rope", norm(q, weights, "q_rope_norm", config, kernels))
        k = observe("k_rope", norm(k, weights, "k_rope_norm", config, kernels))
    k, v = (np.take(kv, config.kv_head_of_head, axis=1) for kv in (k, v))
    q, cap = q * place.query_scale, config.attn_soft_cap
    sink = np.reshape(weights["sinks"], (-1, 1, 1)) if "sinks" in weights else None
    heads = kernels.attention(q, k, v, place.bias, cap, sink, place.ramps)
    return project(observe("attn_heads", attention.merge_heads(heads)), weights, "o_proj")


def activate(x: Array, weights: Weights, place: Place, config: Config) -> Array:
    """Apply the MLP's activation, with the parameters that it has learned, if any."""
    learned = [weights[name] for name in LEARNED_ACTIVATION if name in weights]
    return place.kernels.activations[config.activation](x, *learned)


def mlp(x: Array, weights: Weights, place: Place, config: Config, of: str = "") -> Array:
    """Apply ``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` without a gate.

    Observed: `mlp_hidden` [..., F], the input of `down_proj`.

    Args:
        x: Normalised input, [..., D].
        weights: The block's weights by our names.
        place: Kernels and observer.
        config: The model's facts.
        of: Prefix of the linears and of the trace point, such as "experts.7.".

    Returns:
        The MLP's output, [..., D].
    """
    hidden = project(x, weights, f"{of}up_proj")
    if config.gated:
        gate = project(x, weights, f"{of}gate_proj")
        gate, hidden = ops.clamped_gate(gate, hidden, config.gate_limit)
        hidden = activate(gate, weights, place, config) * hidden
    else:
        hidden = activate(hidden, weights, place, config)
    return project(place.observe(f"{of}mlp_hidden", hidden), weights, f"{of}down_proj")


def mixture(x: Array, weights: Weights, place: Place, config: Config) -> Array:
    """Send each token through the experts that its router chooses: ``sum_e share_e mlp_e(x)``.

    In some models, the share multiplies what an expert reads: ``sum_e mlp_e(share_e x)``.

    An expert computes the tokens routed to it, and no others; the shared expert computes all.

    Observed: `experts.7.mlp_norm` [n, D] and `experts.7.mlp_hidden` [n, F], inputs of the linears
    of an expert that n tokens are routed to, if n > 0; the same of `shared_expert` [B, S, ...].
    Before them, `router.keep` [B, S, E]: which experts each token goes to.

    Args:
        x: Normalised input, [B, S, D].
        weights: The block's weights by our names, `router.weight` [E, D] among them.
        place: Kernels and observer.
        config: The model's facts.

    Returns:
        The mixture's output, [B, S, D].
    """
    assert config.experts is not None
    logits, correction = project(x, weights, "router"), weights.get("router.correction")
    chosen, share = route(logits, config.experts, correction, place.observe)
    out = np.zeros_like(x)
    for e in np.flatnonzero(np.any(chosen, axis=(0, 1))).tolist():
        name, routed = f"experts.{e}.", chosen[..., e]
        part = np.expand_dims(share[..., e][routed], -1)
        before, after = (part, 1) if config.experts.of_inputs else (1, part)
        y = mlp(place.observe(f"{name}mlp_norm", x[routed] * before), weights, place, config, name)
        out[routed] += y * after
    if config.experts.shared_size:
        name = "shared_expert."
        y = mlp(place.observe(f"{name}mlp_norm", x), weights, place, config, name)
        if f"{name}gate.weight" in weights:
            y = y * ops.sigmoid(project(x, weights, f"{name}gate"))
        out = ops.scaled(out + y, 0.5 if config.experts.averaged else 1.0)
    return out


def block(x: Array, weights: Weights, place: Place, config: Config) -> Array:
    """Run one decoder layer: attention and MLP, each added to the residual stream.

    m = x + attention(norm(x));  h = m + mlp(norm(m)), or m + mlp(norm(x)) with parallel residuals

    Observed: all of `TRACE_POINTS`; `q_rope` and `k_rope` only if the block rotates.

    Args:
        x: Residual stream before the block, h_{l-1}, [B, S, D].
        weights: The block's weights by our names (`q_proj.weight`, `attn_norm.weight`, ...).
        place: Bias and rotary tables for this block's kind, kernels and observer.
        config: The model's facts.

    Returns:
        Residual stream after the block, h_l, [B, S, D].
    """
    observe, kernels = place.observe, place.kernels
    x = observe("resid_pre", x)
    attn_in = observe("attn_norm", norm(x, weights, "attn_norm", config, kernels))
    attn_out = self_attention(attn_in, weights, place, config)
    attn_out = norm(attn_out, weights, "attn_post_norm", config, kernels)
    attn_out = observe("attn_out", ops.scaled(attn_out, config.residual_scale))
    mid = observe("resid_mid", x + attn_out)

    mlp_from = x if config.parallel_residual else mid
    mlp_in = observe("mlp_norm", norm(mlp_from, weights, "mlp_norm", config, kernels))
    mlp_out = (mixture if "router.weight" in weights else mlp)(mlp_in, weights, place, config)
    mlp_out = norm(mlp_out, weights, "mlp_post_norm", config, kernels)
    mlp_out = observe("mlp_out", ops.scaled(mlp_out, config.residual_scale))
    return observe("resid_post", mid + mlp_out)


def head(x: Array, weights: Weights, config: Config, observe: Observer = unobserved) -> Array:
    """Turn the last residual stream into logits: ``cap(scale (W norm(x) + b))``.

    Observed: `final_norm` [B, S, D] and `logits` [B, S, V].

    Args:
        x: Residual stream after the last block, h_L, [B, S, D].
        weights: `final_norm.*`, `lm_head.weight` (any rows of it) and any bias.
        config: The model's facts.
        observe: Receives both trace points.

    Returns:
        Logits, [B, S, rows of `lm_head.weight`].
    """
    x = observe("final_norm", norm(x, weights, "final_norm", config))
    logits = ops.scaled(project(x, weights, "lm_head"), config.logit_scale)
    return observe("logits", ops.soft_cap(logits, config.final_soft_cap))


def forward(
    model: Model,
    token_ids: npt.ArrayLike,
    trace: bool = False,
    dtype: npt.DTypeLike = np.float32,
    kernels: Kernels = PLAIN,
) -> Forward:
    """Run a model on token ids, one block in memory at a time.

    Args:
        model: From `read_model`.
        token_ids: Ids, [S] or [B, S], integers in [0, vocab_size).
        trace: Whether to keep every trace point.
        dtype: float32, or float64 to certify.
        kernels: How the costly steps are evaluated.

    Returns:
        Logits [B, S, V], and the trace.

    Raises:
        RefimplError: Ids outside the vocabulary or of the wrong dtype; a sequence longer than
            the model allows; NaN or Inf among the weights; activations beyond the dtype.

    Differs: transformers casts to float32 inside norms, softmax and rotary positions; here every
    step keeps `dtype`. The tests compare with transformers in float64 with those casts removed.

    Example:
        >>> from refimpl import read_model
        >>> model = read_model("fixtures/llama")
        >>> out = forward(model, [[1, 5, 7]], trace=True)
        >>> out.logits.shape, out.trace["blocks.0.q"].shape
        ((1, 3, 264), (1, 4, 3, 8))
    """
    config, points = model.config, dict[str, Array]()
    ids = checked_ids(token_ids, config)
    model.check_finite(dtype)
    positions = np.arange(ids.shape[-1])
    place_of = places(positions, config, dtype, kernels)

    def record(prefix: str, name: str, value: Array) -> Array:
        if trace and name not in INSIDE and "." not in name:  # an expert's
            points[prefix + name] = value
        return value

    with loud(dtype):
        x = record("", "embed", embed(ids, positions, model.embedding(), config, dtype))
        for i, kind in enumerate(config.blocks):
            place = replace(place_of[kind], observe=partial(record, f"blocks.{i}."))
            x = block(x, model.block(i, dtype), place, config)
        logits = head(x, model.head(dtype), config, partial(record, ""))
    return Forward(logits, points)
