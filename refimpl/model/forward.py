"""The forward pass, from token ids to logits, for every family.

Read from top to bottom: `embed`, then `block` (`self_attention` and `mlp`) once per block, then
`head`. What a family does differently is in its `Config`, or in which weights exist. Each step is
announced to `point`, which may record the array it is handed, or return another in its place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from refimpl.model import attention, ops
from refimpl.model.arithmetic import loud
from refimpl.model.config import BlockKind, Config
from refimpl.model.kernels import PLAIN, Kernels
from refimpl.model.model import Model
from refimpl.model.ops import Array, linear
from refimpl.model.token_ids import checked_ids

Weights = Mapping[str, Array]
Point = Callable[[str, Array], Array]

TRACE_POINTS = (
    "resid_pre", "attn_norm", "q", "k", "v", "q_rope", "k_rope", "attn_out",
    "resid_mid", "mlp_norm", "mlp_out", "resid_post",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where the tokens stand, as one kind of block sees it.

    Args:
        bias: Added to attention scores: 0 or -inf, [S, S].
        rope: Cosines and sines, each [S, h_rot / 2], or None where positions are learned.
    """

    bias: Array
    rope: tuple[Array, Array] | None


@dataclass(frozen=True)
class Forward:
    """What a forward pass found.

    Args:
        logits: Scores of the next token, [B, S, V].
        trace: Trace points by name (`embed`, `blocks.0.resid_pre`, ..., `logits`), in
            execution order; empty unless asked for.
    """

    logits: Array
    trace: Mapping[str, Array] = field(default_factory=dict)


def unobserved(name: str, value: Array) -> Array:
    """Pass a trace point on unchanged."""
    return value


def places(positions: Array, config: Config, dtype: npt.DTypeLike) -> dict[BlockKind, Place]:
    """Attention bias and rotary tables for each kind of block of a model.

    Args:
        positions: Token positions, [S], integers.
        config: The model's facts.
        dtype: Dtype of the computation.

    Returns:
        A `Place` per distinct `BlockKind`.
    """
    return {
        kind: Place(
            attention.causal_bias(positions, kind.window, dtype),
            None
            if kind.rope is None
            else attention.rope_tables(positions, kind.rope.inv_freq, dtype),
        )
        for kind in dict.fromkeys(config.blocks)
    }


def norm(x: Array, weights: Weights, role: str, config: Config, kernels: Kernels = PLAIN) -> Array:
    """Normalise over the last axis; a norm that the family lacks is the identity."""
    if f"{role}.weight" not in weights:
        return x
    if config.norm == "rms":
        return kernels.rms_norm(x, weights[f"{role}.weight"], config.norm_eps)
    return ops.layer_norm(x, weights[f"{role}.weight"], weights[f"{role}.bias"], config.norm_eps)


def project(x: Array, weights: Weights, name: str) -> Array:
    """Apply one linear of a block, with its bias where there is one."""
    return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def embed(
    token_ids: Array, positions: Array, weights: Weights, config: Config, dtype: npt.DTypeLike
) -> Array:
    """Look tokens (and learned positions) up: ``scale * E[id] + P[offset + position]``.

    Args:
        token_ids: Ids, [B, S], integers.
        positions: Token positions, [S], integers.
        weights: `embed.weight` [V, D] and, where learned, `pos_embed.weight`, as stored.
        config: The model's facts.
        dtype: Dtype of the computation.

    Returns:
        The residual stream before the first block, h_0, [B, S, D].
    """
    x = np.take(weights["embed.weight"], token_ids, axis=0).astype(dtype) * config.embed_scale
    if "pos_embed.weight" in weights:
        row = positions + config.position_offset
        x = x + np.take(weights["pos_embed.weight"], row, axis=0).astype(dtype)
    return x


def self_attention(
    x: Array,
    weights: Weights,
    place: Place,
    config: Config,
    point: Point = unobserved,
    kernels: Kernels = PLAIN,
) -> Array:
    """Attend: ``softmax(cap((scale q) k^T) + bias) v``, heads merged, then `o_proj`.

    Args:
        x: Normalised input, [B, S, D].
        weights: The block's weights by our names.
        place: Bias and rotary tables.
        config: The model's facts.
        point: Receives `q`, `k`, `v` [B, heads, S, h], `q_rope`, `k_rope`, and `attn_heads`
            [B, S, H h], the input of `o_proj`.
        kernels: How norms, rotation and attention are evaluated.

    Returns:
        Attention's output, [B, S, D].
    """
    q, k, v = (
        attention.split_heads(project(x, weights, name), config.head_dim)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    q = point("q", norm(q, weights, "q_norm", config, kernels))
    k = point("k", norm(k, weights, "k_norm", config, kernels))
    v = point("v", v)
    if place.rope is not None:
        q, k = (
            point("q_rope", kernels.rotate(q, *place.rope)),
            point("k_rope", kernels.rotate(k, *place.rope)),
        )

    k, v = (np.take(kv, config.kv_head_of_head, axis=1) for kv in (k, v))
    q = q * config.attention_scale
    heads = attention.merge_heads(kernels.attention(q, k, v, place.bias, config.attn_soft_cap))
    return project(point("attn_heads", heads), weights, "o_proj")


def mlp(
    x: Array,
    weights: Weights,
    config: Config,
    point: Point = unobserved,
    kernels: Kernels = PLAIN,
) -> Array:
    """Apply ``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` where there is no gate.

    Args:
        x: Normalised input, [B, S, D].
        weights: The block's weights by our names.
        config: The model's facts.
        point: Receives `mlp_hidden` [B, S, F], the input of `down_proj`.
        kernels: How the activation is evaluated.

    Returns:
        The MLP's output, [B, S, D].
    """
    activation = kernels.activations[config.activation]
    hidden = project(x, weights, "up_proj")
    if config.gated:
        hidden = activation(project(x, weights, "gate_proj")) * hidden
    else:
        hidden = activation(hidden)
    return project(point("mlp_hidden", hidden), weights, "down_proj")


def block(
    x: Array,
    weights: Weights,
    place: Place,
    config: Config,
    point: Point = unobserved,
    kernels: Kernels = PLAIN,
) -> Array:
    """Run one decoder layer: attention and MLP, each added to the residual stream.

    Args:
        x: Residual stream before the block, h_{l-1}, [B, S, D].
        weights: The block's weights by our names (`q_proj.weight`, `attn_norm.weight`, ...).
        place: Bias and rotary tables for this block's kind.
        config: The model's facts.
        point: Receives every per-block trace point.
        kernels: How its steps are evaluated; the result is the same to rounding.

    Returns:
        Residual stream after the block, h_l, [B, S, D].
    """
    x = point("resid_pre", x)
    attn_in = point("attn_norm", norm(x, weights, "attn_norm", config, kernels))
    attn_out = self_attention(attn_in, weights, place, config, point, kernels)
    attn_out = point("attn_out", norm(attn_out, weights, "attn_post_norm", config, kernels))
    mid = point("resid_mid", x + attn_out)

    mlp_from = x if config.parallel_residual else mid
    mlp_in = point("mlp_norm", norm(mlp_from, weights, "mlp_norm", config, kernels))
    mlp_out = mlp(mlp_in, weights, config, point, kernels)
    mlp_out = point("mlp_out", norm(mlp_out, weights, "mlp_post_norm", config, kernels))
    return point("resid_post", mid + mlp_out)


def head(
    x: Array,
    weights: Weights,
    config: Config,
    point: Point = unobserved,
    kernels: Kernels = PLAIN,
) -> Array:
    """Turn the last residual stream into logits: ``cap(W norm(x) + b)``.

    Args:
        x: Residual stream after the last block, h_L, [B, S, D].
        weights: `final_norm.*` and `lm_head.weight` (any rows of it).
        config: The model's facts.
        point: Receives `final_norm` [B, S, D] and `logits` [B, S, V].
        kernels: How the norm is evaluated.

    Returns:
        Logits, [B, S, rows of `lm_head.weight`].
    """
    x = point("final_norm", norm(x, weights, "final_norm", config, kernels))
    return point("logits", ops.soft_cap(project(x, weights, "lm_head"), config.final_soft_cap))


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
        kernels: How its steps are evaluated.

    Returns:
        Logits [B, S, V], and the trace.

    Raises:
        RefimplError: Ids outside the vocabulary or of the wrong dtype; a sequence longer than
            the model allows; NaN or Inf among the weights; activations beyond the dtype.

    Source:
        The authority is transformers in float64 with its float32 casts lifted.

    Example:
        >>> from refimpl import read_model
        >>> model = read_model("fixtures/llama")
        >>> out = forward(model, [[1, 5, 7]], trace=True)
        >>> out.logits.shape, out.trace["blocks.0.q"].shape
        ((1, 3, 264), (1, 4, 3, 8))
    """
    config, found = model.config, dict[str, Array]()
    ids = checked_ids(token_ids, config)
    model.check_finite(dtype)
    positions = np.arange(ids.shape[-1])
    where = places(positions, config, dtype)

    def keep(prefix: str) -> Point:
        def point(name: str, value: Array) -> Array:
            if trace and name not in ("attn_heads", "mlp_hidden"):
                found[prefix + name] = value
            return value

        return point

    with loud(dtype):
        x = keep("")("embed", embed(ids, positions, model.embedding(), config, dtype))
        for i, kind in enumerate(config.blocks):
            x = block(x, model.block(i, dtype), where[kind], config, keep(f"blocks.{i}."), kernels)
        logits = head(x, model.head(dtype), config, keep(""), kernels)
    return Forward(logits, found)
