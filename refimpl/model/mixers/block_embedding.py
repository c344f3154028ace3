"""An embedding of tokens that a block has for itself, gated by the residual stream."""

from math import sqrt

import numpy as np

from refimpl.model.config import Config
from refimpl.model.mixers.parts import Place, Weights, affine, norm
from refimpl.model.ops import Array


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
    y = affine(first * config.embed_scale, weights, "block_embed_stream") * x.shape[-1] ** -0.5
    y = norm(y, weights, "block_embed_stream_norm", config, kernels)
    e = place.observe("block_embed", (y + own * sqrt(own.shape[-1])) * sqrt(0.5))
    gate = kernels.activations[config.activation](affine(x, weights, "block_embed_gate"))
    return affine(gate * e, weights, "block_embed_proj")
