"""What every mixer works with: the place of its tokens, norms, linears; a block's own embedding."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt

import numpy as np

from refimpl.model import ops
from refimpl.model.config import NO_MIXER, BlockKind, Config, Mixer
from refimpl.model.experts import Observer, unobserved
from refimpl.model.kernels import PLAIN, Kernels
from refimpl.model.ops import Array, linear
from refimpl.model.state import KeysAndValues

Weights = Mapping[str, Array]  # of a block, by our names without its prefix


@dataclass(frozen=True)
class Place:
    """What a block needs besides its weights: token positions, kernels and an observer."""

    positions: Array  # Of the tokens, [S], from 0
    bias: Array  # Added to attention scores: 0 or -inf, [S, S]
    # Cosines and sines, each [S, h_rot / 2]; None if the block does not rotate
    rope: tuple[Array, Array] | None
    kind: BlockKind  # The facts of the block
    ramps: Array | None = None  # From `alibi_ramps`, [H, S], or None
    # Multiplies queries; a number, or one for each position, [S, 1]
    query_scale: Array | float = 1.0
    mixer: Mixer = NO_MIXER  # The facts of the block's mixer
    # How the costly steps are evaluated; results differ in rounding only
    kernels: Kernels = PLAIN
    # Receives the name and value of every trace point; the block continues with the array that it
    # returns
    observe: Observer = unobserved
    token_ids: Array | None = None  # [B, S], as of `State`; None until a block runs
    # As of `State`: a block adds its own to those of earlier ones
    shared_kv: dict[int, KeysAndValues] = field(default_factory=dict)

    @property
    def interleaved(self) -> bool:
        """As in `attention.rotate`."""
        return self.kind.rope is not None and self.kind.rope.interleaved


Part = Callable[[Array, Weights, Place, Config], Array]
"""A part of a block, such as a mixer or an MLP: of its normalised input, [B, S, D], the output."""


def norm(
    x: Array, weights: Weights, role: str, config: Config, kernels: Kernels = PLAIN
) -> Array:
    """Normalise over the last axis: `ops.rms_norm` or `ops.layer_norm`, as the model does.

    A norm that the model does not have is the identity. A norm in `weightless_norms` has no weights
    and divides only.

    Args:
        x: Input, [..., n].
        weights: The block's weights; of this norm, a gain `ROLE.weight` and an offset `ROLE.bias`,
            both [n].
        role: Which norm of the block, such as "attn_norm".
        config: The model's facts: the kind of norm and its eps.
        kernels: How the norm is evaluated.

    Returns:
        [..., n].
    """
    if f"{role}.weight" not in weights and role not in config.weightless_norms:
        return x
    gain = weights.get(f"{role}.weight", 1.0)
    if config.norm == "rms":
        return kernels.rms_norm(x, gain, config.norm_eps)
    return ops.layer_norm(x, gain, weights.get(f"{role}.bias", 0.0), config.norm_eps)


def affine(x: Array, weights: Weights, name: str) -> Array:
    """Apply one linear: ``W x + b``, without b if the model has none.

    Args:
        x: Input, [..., in].
        weights: The block's weights, with `NAME.weight` [out, in] and any `NAME.bias` [out].
        name: The linear, such as "q_proj".

    Returns:
        [..., out].

    Example:
        >>> import numpy as np
        >>> w = {"q_proj.weight": np.array([[1.0, 2.0]]), "q_proj.bias": np.array([10.0])}
        >>> affine(np.array([3.0, 4.0]), w, "q_proj").tolist()
        [21.0]
    """
    return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def block_embedding(x: Array, weights: Weights, place: Place, config: Config) -> Array:
    """Look a token up in the block's own table, and let the stream gate what is found.

    e = (norm(W_s h_0 / sqrt(D)) + sqrt(P) E_l[id]) / sqrt(2);  y = W_p (act(W_g x) * e)

    The embedding e depends on the id alone: a perturbation of the stream changes the gate, not e.

    Observed: `block_embed`, e, [B, S, P].

    x is the residual stream after the MLP. The tables `embed.weight` and `block_embed.weight` are
    among the weights.

    Source: transformers' `Gemma4TextModel.project_per_layer_inputs` and `Gemma4TextDecoderLayer`.
    """
    assert place.token_ids is not None
    kernels = place.kernels
    first, own = (
        np.take(weights[f"{table}.weight"], place.token_ids, axis=0).astype(x.dtype)
        for table in ("embed", "block_embed")
    )
    y = (
        affine(first * config.embed_scale, weights, "block_embed_stream")
        * x.shape[-1] ** -0.5
    )
    y = norm(y, weights, "block_embed_stream_norm", config, kernels)
    e = place.observe("block_embed", (y + own * sqrt(own.shape[-1])) * sqrt(0.5))
    gate = kernels.activations[config.activation](
        affine(x, weights, "block_embed_gate")
    )
    return affine(gate * e, weights, "block_embed_proj")
