"""Everything the forward pass needs to know about a model besides its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import pi
from typing import Literal

import numpy as np

from refimpl.model.ops import Array

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Linears = Sequence[Mapping[str, tuple[int, int]]]
"""Per block, the shape [out, in] of every linear by its name, in order."""

NORMS = (
    "attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm", "q_norm", "k_norm",
    "q_width_norm", "k_width_norm", "q_rope_norm", "k_rope_norm",
)  # fmt: skip
# Parameters of xIELU, in the order of its arguments, with their shapes
LEARNED_ACTIVATION: dict[str, tuple[int, ...]] = {
    "act.alpha_p": (1,), "act.alpha_n": (1,), "act.beta": (), "act.eps": (),
}  # fmt: skip


@dataclass(frozen=True)
class Rope:
    """Rotary positions of one kind of block.

    Args:
        theta: Base of the wavelengths.
        rotary_dim: Channels of a head that rotate; an even number.
        scaling: "default", "linear" (all positions divided by factor) or "llama3".
        factor: Stretch of the context.
        low_freq_factor: llama3: waves longer than original / low are stretched by factor.
        high_freq_factor: llama3: waves shorter than original / high are not stretched.
        original_max_position_embeddings: llama3: context length before stretching, in tokens.
        interleaved: Channels 2i and 2i + 1 rotate together, not i and i + rotary_dim / 2.
    """

    theta: float
    rotary_dim: int
    scaling: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    interleaved: bool = False

    @property
    def inv_freq(self) -> Array:
        """Radians per position, ``theta^(-2i / rotary_dim)`` and then scaled: [rotary_dim / 2].

        Source: Su et al., arXiv:2104.09864, section 3.2; for llama3, transformers'
        `modeling_rope_utils`.

        Example:
            >>> Rope(theta=100.0, rotary_dim=4).inv_freq.tolist()
            [1.0, 0.1]
        """
        plain = self.theta ** -(
            np.arange(0, self.rotary_dim, 2, dtype=np.float64) / self.rotary_dim
        )
        if self.scaling == "default":
            return plain
        if self.scaling == "linear":
            return plain / self.factor
        low, high = self.low_freq_factor, self.high_freq_factor
        periods = self.original_max_position_embeddings * plain / (2 * pi)
        short = np.clip((periods - low) / (high - low), 0, 1)  # 1: a short wave, not stretched
        return (1 - short) * plain / self.factor + short * plain


@dataclass(frozen=True)
class BlockKind:
    """What differs between the blocks of one model.

    Args:
        window: Number of tokens that a token sees, itself included; None for all earlier ones.
        rope: Rotary positions; None if the block does not rotate queries and keys.
    """

    window: int | None
    rope: Rope | None


@dataclass(frozen=True)
class Config:
    """A model's facts, in the words of `config.json`.

    Args:
        family: Name of the family, for people; no computation looks at it.
        vocab_size: V, number of token ids.
        hidden_size: D, channels of the residual stream.
        intermediate_size: F, channels inside the MLP.
        num_attention_heads: H, query heads.
        num_key_value_heads: K, key and value heads; H is a multiple of it.
        head_dim: h, channels per head.
        max_position_embeddings: Longest sequence, in tokens.
        norm: "rms" or "layer".
        norm_eps: Added under the root of every norm.
        weightless_norms: Roles of norms that have no gain and no offset.
        activation: Key of `ops.ACTIVATIONS`.
        gated: Whether the MLP has a `gate_proj`.
        attention_scale: Multiplies q k^T.
        blocks: One `BlockKind` per block, first block first.
        parallel_residual: The MLP reads the block's input, not the stream after attention.
        attn_soft_cap: Soft cap on attention scores, or None.
        final_soft_cap: Soft cap on logits, or None.
        embed_scale: Multiplies token embeddings.
        residual_scale: Multiplies what attention and MLP add to the stream.
        logit_scale: Multiplies logits, before their cap.
        qkv_limit: Largest size of an element of q, k and v as projected, or None.
        position_offset: Row of the learned position table that position 0 uses.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: str
    gated: bool
    attention_scale: float
    blocks: tuple[BlockKind, ...]
    parallel_residual: bool = False
    attn_soft_cap: float | None = None
    final_soft_cap: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    qkv_limit: float | None = None
    weightless_norms: tuple[str, ...] = ()
    position_offset: int = 0

    @property
    def num_blocks(self) -> int:
        """Number of blocks, L."""
        return len(self.blocks)

    @property
    def kv_head_of_head(self) -> Array:
        """Which key-value head each query head reads: [H]."""
        return np.arange(self.num_attention_heads) // (
            self.num_attention_heads // self.num_key_value_heads
        )

    @property
    def norm_sizes(self) -> dict[str, int]:
        """Width of what every norm of a block normalises together, by its role."""
        h = self.head_dim
        each_head = dict.fromkeys(("q_norm", "k_norm", "q_rope_norm", "k_rope_norm"), h)
        all_heads = {
            "q_width_norm": self.num_attention_heads * h,
            "k_width_norm": self.num_key_value_heads * h,
        }
        return dict.fromkeys(NORMS, self.hidden_size) | each_head | all_heads

    @cached_property
    def linears(self) -> Linears:
        """Per block, the shape [out, in] of every linear, in the order of `LINEARS`."""
        d, f = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes = ((q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f))
        linears = {
            name: shape
            for name, shape in zip(LINEARS, shapes, strict=True)
            if self.gated or name != "gate_proj"
        }
        return (linears,) * self.num_blocks

    @cached_property
    def linear_sizes(self) -> Array:
        """Weights of every linear, [L, linears], as of `linear_sizes`."""
        return linear_sizes(self.linears)

    @cached_property
    def block_sizes(self) -> Array:
        """Prunable weights of every block, N_l: [L]."""
        return self.linear_sizes.sum(axis=1)


def linear_sizes(linears: Linears) -> Array:
    """Weights of every linear, block by block.

    Args:
        linears: Per block, the shape [out, in] of every linear.

    Returns:
        Weights, [L, linears], int64; a block with fewer linears than another ends in zeros.

    Example:
        >>> linear_sizes([{"up_proj": (3, 2)}, {"gate_proj": (3, 2), "up_proj": (3, 2)}])
        array([[6, 0],
               [6, 6]])
    """
    sizes = np.zeros((len(linears), max(map(len, linears), default=0)), np.int64)
    for row, block in zip(sizes, linears, strict=True):
        row[: len(block)] = [out * width for out, width in block.values()]
    return sizes
