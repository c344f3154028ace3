"""The forward pass, from token ids to logits, for every family.

Read from the bottom: `forward` calls `embed`, then `block` (a mixer, such as `self_attention`, and
`mlp`) once per block, then `head`. What a family does differently is in its `Config`, or in which
weights exist. Each step passes its result to an observer, which may record the array or return
another one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.model import ops, position_tables
from refimpl.model.config import LEARNED_ACTIVATION, BlockKind, Config, Mixer
from refimpl.model.experts import Observer, inputs_of_experts, route, unobserved
from refimpl.model.kernels import PLAIN, Kernels
from refimpl.model.mixers.gated_delta_rule import GatedDeltaRule, gated_delta_rule
from refimpl.model.mixers.latent_attention import LatentAttention, latent_attention
from refimpl.model.mixers.mamba2 import Beside, Mamba2, attention_beside_mamba2, mamba2
from refimpl.model.mixers.parts import (
    Part,
    Place,
    Weights,
    affine,
    block_embedding,
    norm,
)
from refimpl.model.mixers.short_convolution import ShortConvolution, short_convolution
from refimpl.model.mixers.softmax_attention import (
    Attention,
    SharedAttention,
    self_attention,
)
from refimpl.model.model import Model
from refimpl.model.ops import Array, within_range
from refimpl.model.state import State, checked_ids

MIXERS: dict[type[Mixer], Part] = {
    Attention: self_attention,
    SharedAttention: self_attention,
    ShortConvolution: short_convolution,
    GatedDeltaRule: gated_delta_rule,
    LatentAttention: latent_attention,
    Mamba2: mamba2,
    Beside: attention_beside_mamba2,
}
# Observed, but not in a trace: inputs of linears
INSIDE = ("attn_heads", "q_latent", "mixed", "mlp_hidden")


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
    ramps = (
        position_tables.alibi_ramps(positions, config.alibi) if config.alibi else None
    )

    def place(kind: BlockKind) -> Place:
        scale: Array | float = getattr(kind.mixer, "scale", config.attention_scale)
        if kind.temperature is not None:
            scale = (
                scale * position_tables.query_scale(positions, kind.temperature)
            ).astype(dtype)
        seen = position_tables.tokens_seen(positions, kind.window, kind.chunked)
        bias = position_tables.causal_bias(positions, seen, dtype)
        tables = (
            position_tables.rotation(positions, kind.rope, dtype) if kind.rope else None
        )
        return Place(positions, bias, tables, kind, ramps, scale, kind.mixer, kernels)

    return {kind: place(kind) for kind in dict.fromkeys(config.blocks)}


def embed(
    token_ids: Array,
    positions: Array,
    weights: Weights,
    config: Config,
    dtype: npt.DTypeLike,
) -> State:
    """Look up tokens (and learned positions): ``norm(scale * E[id] + P[offset + position])``.

    Args:
        token_ids: Ids, [B, S], integers.
        positions: Token positions, [S], integers.
        weights: `embed.weight` [V, D]; `pos_embed.weight` [P, D], if positions are learned;
            `embed_norm.*` [D], if embeddings are normalised.
        config: The model's facts.
        dtype: Dtype of the computation.

    Returns:
        The state before the first block, whose residual stream is h_0, [B, S, D].
    """
    x = (
        np.take(weights["embed.weight"], token_ids, axis=0).astype(dtype)
        * config.embed_scale
    )
    if "pos_embed.weight" in weights:
        row = positions + config.position_offset
        x = x + np.take(weights["pos_embed.weight"], row, axis=0).astype(dtype)
    return State(norm(x, weights, "embed_norm", config).astype(dtype), token_ids)


def mlp(
    x: Array, weights: Weights, place: Place, config: Config, path: str = ""
) -> Array:
    """Apply ``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` without a gate.

    Observed: `mlp_hidden` [..., F], the input of `down_proj`. Names of linears, and of this point,
    begin with `path`, such as "experts.7.".

    Args:
        x: Input after its norm, [..., D].
        weights: The block's weights: `up_proj` [F, D], `down_proj` [D, F], any `gate_proj` [F, D].
        place: The block's `Place`: kernels and observer.
        config: The model's facts: the activation (some have learned weights), the gate, its limit.
        path: Beginning of the linears' names, "" of the block's own MLP.

    Returns:
        [..., D].

    Source: gated MLPs: Shazeer, arXiv:2002.05202, section 2.
    """
    hidden, act = (
        affine(x, weights, f"{path}up_proj"),
        place.kernels.activations[config.activation],
    )
    learned = [weights[name] for name in LEARNED_ACTIVATION if name in weights]
    if config.gated:
        gate = ops.scaled(affine(x, weights, f"{path}gate_proj"), config.gate_scale)
        gate, hidden = ops.clamped_gate(gate, hidden, config.gate_limit)
        hidden = act(gate, *learned) * hidden
    else:
        hidden = act(hidden, *learned)
    y = affine(place.observe(f"{path}mlp_hidden", hidden), weights, f"{path}down_proj")
    return ops.scaled(y, config.mlp_scale)


def mixture(x: Array, weights: Weights, place: Place, config: Config) -> Array:
    """Send each token through the experts that its router chooses: ``sum_e share_e mlp_e(x)``.

    In some models, the share multiplies an expert's input: ``sum_e mlp_e(share_e x)``.

    An expert computes the tokens routed to it, and no others; the shared expert computes all.
    Experts beside an MLP read the stream, x, under a norm of their own.

    Observed: `experts.7.mlp_norm` [n, D] and `experts.7.mlp_hidden` [n, F], inputs of the linears
    of an expert that n tokens are routed to, if n > 0; the same of `shared_expert` [B, S, ...].
    Before them, `router.keep` [B, S, E]: which experts each token goes to.

    Args:
        x: Input after its norm, [B, S, D]; the residual stream if the experts are beside an MLP.
        weights: The block's weights: `router` [E, D] and the linears of each expert.
        place: The block's `Place`: kernels and observer.
        config: The model's facts; `Config.experts` are those of the mixture.

    Returns:
        [B, S, D].

    Source: Shazeer et al., arXiv:1701.06538, equation 1; the shares: `experts.route`.
    """
    assert config.experts is not None
    x, read = inputs_of_experts(
        x, weights, place.kernels, config.norm_eps, place.observe
    )
    chosen, share = route(
        affine(read, weights, "router"), config.experts, weights, place.observe
    )
    out = np.zeros_like(x)
    for e in np.flatnonzero(np.any(chosen, axis=(0, 1))).tolist():
        name, routed = f"experts.{e}.", chosen[..., e]
        part = np.expand_dims(share[..., e][routed], -1)
        before, after = (part, 1) if config.experts.of_inputs else (1, part)
        y = mlp(
            place.observe(f"{name}mlp_norm", x[routed] * before),
            weights,
            place,
            config,
            name,
        )
        out[routed] += y * after
    if config.experts.shared_size:
        name = "shared_expert."
        y = mlp(place.observe(f"{name}mlp_norm", x), weights, place, config, name)
        if f"{name}gate.weight" in weights:
            y = y * ops.sigmoid(affine(x, weights, f"{name}gate"))
        out = out + y
    return out


def halves(weights: Weights, place: Place) -> dict[str, Part | None]:
    """The parts of a block, if it has them: the mixer, `attn`, its `mlp`, its `block_embed`."""
    feed = (
        mlp
        if "up_proj.weight" in weights
        else mixture
        if "router.weight" in weights
        else None
    )
    own = block_embedding if "block_embed.weight" in weights else None
    return {"attn": MIXERS.get(type(place.mixer)), "mlp": feed, "block_embed": own}


def block(state: State, weights: Weights, place: Place, config: Config) -> State:
    """Run one decoder layer: a mixer of tokens and an MLP, each added to the residual stream.

    m = x + mixer(norm(x));  h = m + mlp(norm(m)), or m + mlp(norm(x)) with parallel residuals

    In some models, a block is a mixer or an MLP alone: m = x, or h = m. In some, a number, its
    `block_scale`, multiplies h. In some, experts are beside the MLP, and each has a norm after it.
    In some, a block adds an embedding of its own, or reads keys and values of an earlier one.

    Observed: all of `BlockKind.points`.

    Args:
        state: State before the block, whose residual stream is h_{l-1}, [B, S, D].
        weights: The block's weights by our names (`q_proj.weight`, `attn_norm.weight`, ...).
        place: Bias and rotary tables for this block's kind, kernels and observer.
        config: The model's facts.

    Returns:
        State after the block, whose residual stream is h_l.
    """
    place = replace(place, token_ids=state.token_ids, shared_kv=dict(state.shared_kv))
    observe, parts = place.observe, halves(weights, place)

    def added(h: Array, start: Array, name: str) -> Array:
        """The stream h plus the output of half a block for the input `start`."""
        if (part := parts[name]) is None:
            return h
        y = observe(
            f"{name}_norm", norm(start, weights, f"{name}_norm", config, place.kernels)
        )
        y = part(y, weights, place, config)
        if name == "mlp" and "router.scale" in weights:
            z = mixture(start, weights, place, config)
            y = norm(y, weights, "dense_norm", config) + norm(
                z, weights, "routed_norm", config
            )
        y = norm(y, weights, f"{name}_post_norm", config, place.kernels)
        return h + observe(f"{name}_out", ops.scaled(y, config.residual_scale))

    x = observe("resid_pre", state.stream)
    mid = observe("resid_mid", added(x, x, "attn"))
    post = added(mid, x if config.parallel_residual else mid, "mlp")
    post = added(post, post, "block_embed")
    post = post * weights["block_scale"] if "block_scale" in weights else post
    return State(observe("resid_post", post), state.token_ids, place.shared_kv)


def final_state(
    h: Array, weights: Weights, config: Config, observe: Observer = unobserved
) -> Array:
    """Normalise the last residual stream, [B, S, D]: every logit is a product of ``norm(h_L)``.

    Observed: `final_norm` [B, S, D].
    """
    return observe("final_norm", norm(h, weights, "final_norm", config))


def logits(
    h: Array, weights: Weights, config: Config, observe: Observer = unobserved
) -> Array:
    """Compute the scores of the ids whose rows `lm_head.weight` has: ``cap(scale (W h + b))``.

    Observed: `logits` [B, S, V], of `final_state`'s h, [B, S, D].
    """
    scores = ops.scaled(affine(h, weights, "lm_head"), config.logit_scale)
    return observe("logits", ops.soft_cap(scores, config.final_soft_cap))


def head(
    state: State, weights: Weights, config: Config, observe: Observer = unobserved
) -> Array:
    """Turn the last residual stream into logits: ``cap(scale (W norm(x) + b))``, [B, S, V]."""
    return logits(
        final_state(state.stream, weights, config, observe), weights, config, observe
    )


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

    with within_range(dtype):
        state = embed(ids, positions, model.embedding(), config, dtype)
        record("", "embed", state.stream)
        for i, kind in enumerate(config.blocks):
            place = replace(place_of[kind], observe=partial(record, f"blocks.{i}."))
            state = block(state, model.block(i, dtype), place, config)
        scores = head(state, model.head(dtype), config, partial(record, ""))
    return Forward(scores, points)
