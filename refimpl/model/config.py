"""Everything the forward pass needs to know about a model besides its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from refimpl.model.experts import Experts
from refimpl.model.ops import Array
from refimpl.model.position_tables import Alibi, Rope, Temperature

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Linears = Sequence[Mapping[str, tuple[int, int]]]
"""Per block, the shape [out, in] of every linear by its name, in order."""
NORMS = (
    "attn_norm",
    "attn_post_norm",
    "mlp_norm",
    "mlp_post_norm",
    "q_norm",
    "k_norm",
    "q_width_norm",
    "k_width_norm",
    "q_rope_norm",
    "k_rope_norm",
    "v_norm",
)
BESIDE_NORMS = (
    "experts_norm",
    "dense_norm",
    "routed_norm",
)  # norms where experts are beside an MLP
BLOCK_EMBED = (
    "block_embed_norm",
    "block_embed",
    "block_embed_out",
)  # points of a block's embedding
# Parameters of xIELU, in the order of its arguments, with their shapes
LEARNED_ACTIVATION: dict[str, tuple[int, ...]] = {
    "act.alpha_p": (1,),
    "act.alpha_n": (1,),
    "act.beta": (),
    "act.eps": (),
}
Matrices = dict[str, tuple[int, int]]  # [out, in]


@dataclass(frozen=True)
class WeightShapes:
    """The shapes of a mixer's weights, by our names.

    `linears` are pruned, in this order, and `matrices` never; `norms` have a width by their role.
    """

    linears: Matrices
    matrices: Matrices = field(default_factory=dict)
    norms: dict[str, int] = field(default_factory=dict)
    arrays: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Mixer:
    """What all mixers tell: their name, their trace points in order, and their weights.

    This one is that of a block which is an MLP alone: it has none of them.

    `reads` maps linears that attention does not have to the trace point that they read. A mixer
    `in_a_row` takes sequences of equal length one after another; one that `attends` has a mask and
    positions. `not_recorded` says why it cannot become part of a graph.
    """

    name: ClassVar[str] = "no_mixer"
    points: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[Mapping[str, str]] = {}
    in_a_row: ClassVar[bool] = True
    attends: ClassVar[bool] = False
    not_recorded: ClassVar[str] = ""

    def runs(self, fused: tuple[str, ...]) -> int:
        """How many runs of rows weights are cut into that alternate in one tensor of a file."""
        return 1

    @property
    def shared_kv_size(self) -> int:
        """Numbers of a token that later blocks read of it."""
        return 0

    def shapes(self, width: int) -> WeightShapes:
        """The shapes of its weights, in a stream of D channels."""
        return WeightShapes({})


NO_MIXER = Mixer()


@dataclass(frozen=True)
class BlockKind:
    """What differs between the blocks of one model."""

    # Number of tokens that a token sees, itself included; None for all earlier ones
    window: int | None
    rope: (
        Rope | None
    )  # Rotary positions; None if the block does not rotate queries and keys
    # Whether experts take the place of the MLP, or are beside it; None in a block of a mixer alone
    mixture: bool | Literal["beside"] | None = False
    # How queries grow with their position; None if they do not
    temperature: Temperature | None = None
    # Whether a text is cut into chunks of `window` tokens, and a token sees its own chunk only
    chunked: bool = False
    mixer: Mixer = NO_MIXER
    # P, channels of an embedding of tokens that is the block's own; 0 without
    embed_size: int = 0
    mlp_size: int = 0  # Channels inside its MLP; 0: as in the model

    @property
    def points(self) -> tuple[str, ...]:
        """Trace points of a block, without a prefix; `q_rope` and `k_rope` only if it rotates."""
        mixed = ("attn_norm", *x, "attn_out") if (x := self.mixer.points) else ()
        fed = () if self.mixture is None else (*self.mlp_reads, "mlp_out")
        own = BLOCK_EMBED if self.embed_size else ()
        points = ("resid_pre", *mixed, "resid_mid", *fed, *own, "resid_post")
        return tuple(
            point for point in points if self.rope or not point.endswith("_rope")
        )

    def shapes(self, width: int) -> WeightShapes:
        """The shapes of what is beside its mixer and its MLP, in streams of D channels."""
        p = self.embed_size
        matrices = {"block_embed_gate": (p, width), "block_embed_proj": (width, p)}
        norms = {"block_embed_post_norm": width, "block_embed_stream_norm": p}
        return WeightShapes({}, matrices if p else {}, norms, {"block_scale": (1,)})

    @property
    def mlp_reads(self) -> tuple[str, ...]:
        """The trace points that an MLP, experts beside it, and, last, a router read."""
        return "mlp_norm", *(
            ("experts_norm", "router_norm") if self.mixture == "beside" else ()
        )


@dataclass(frozen=True)
class Config:
    """A model's facts, in the words of `config.json`."""

    family: str  # Name of the family, for people; no computation looks at it
    vocab_size: int  # V, number of token ids
    hidden_size: int  # D, channels of the residual stream
    intermediate_size: int  # F, channels inside the MLP
    num_attention_heads: int  # H, query heads
    num_key_value_heads: int  # K, key and value heads; H is a multiple of it
    head_dim: int  # h, channels per head
    max_position_embeddings: int  # Longest sequence, in tokens
    norm: Literal["rms", "layer"]
    norm_eps: float  # Added under the root of every norm
    activation: str  # Key of `ops.ACTIVATIONS`
    gated: bool  # Whether the MLP has a `gate_proj`
    attention_scale: float  # Multiplies q k^T
    blocks: tuple[BlockKind, ...]  # One `BlockKind` per block, first block first
    # The MLP reads the block's input, not the stream after attention
    parallel_residual: bool = False
    attn_soft_cap: float | None = None  # Soft cap on attention scores
    final_soft_cap: float | None = None  # Soft cap on logits
    embed_scale: float = 1.0  # Multiplies token embeddings
    residual_scale: float = 1.0  # Multiplies the outputs of attention and MLP
    logit_scale: float = 1.0  # Multiplies logits, before their cap
    # Largest size of an element of q, k and v, after a norm over all heads, or None
    qkv_limit: float | None = None
    weightless_norms: tuple[
        str, ...
    ] = ()  # Roles of norms that have no gain and no offset
    position_offset: int = 0  # Row of the learned position table that position 0 uses
    # The mixture of the blocks that have one; None if no block has
    experts: Experts | None = None
    gate_scale: float = 1.0  # Multiplies the gate, before its activation
    mlp_scale: float = 1.0  # Multiplies the MLP's output
    # Clamps the gate from above and the other half to both sides, before 1 is added to that one;
    # None for neither
    gate_limit: float | None = None
    alibi: Alibi | None = None  # Attention biases by distance

    @property
    def num_blocks(self) -> int:
        """Number of blocks, L."""
        return len(self.blocks)

    def mixer(self, block: int) -> Mixer:
        """The mixer of tokens of a block."""
        return self.blocks[block].mixer

    @property
    def state_size(self) -> int:
        """Numbers of a token in a state between two blocks, at most: D, and `State.shared_kv`."""
        return self.hidden_size + sum(kind.mixer.shared_kv_size for kind in self.blocks)

    def norm_sizes(self, block: int) -> dict[str, int]:
        """Width of what every norm of a block normalises together, by its role."""
        mixer, fed = self.mixer(block), self.blocks[block].mixture is not None
        around = (NORMS[:2] if mixer.points else ()) + (NORMS[2:4] if fed else ())
        around += BESIDE_NORMS if self.blocks[block].mixture == "beside" else ()
        own = (x.shapes(self.hidden_size).norms for x in (mixer, self.blocks[block]))
        return dict.fromkeys(around, self.hidden_size) | next(own) | next(own)

    @cached_property
    def linears(self) -> Linears:
        """Per block, the shape [out, in] of every linear, in the order of `LINEARS`.

        An expert's are `experts.7.gate_proj` and so on; those of `shared_expert` follow.
        """
        d, e, inner = self.hidden_size, self.experts, self.intermediate_size

        def mlp(size: int, of: str = "") -> dict[str, tuple[int, int]]:
            shapes = dict(
                zip(LINEARS[4:], ((size, d), (size, d), (d, size)), strict=True)
            )
            return {
                of + name: x
                for name, x in shapes.items()
                if self.gated or name != "gate_proj"
            }

        mixture = dict[str, tuple[int, int]]()
        if e is not None:
            for i in range(e.num_experts):
                mixture |= mlp(e.intermediate_size, f"experts.{i}.")
            mixture |= mlp(e.shared_size, "shared_expert.") if e.shared_size else {}

        def every(kind: BlockKind) -> dict[str, tuple[int, int]]:
            linears = kind.mixer.shapes(d).linears
            dense = {} if kind.mixture in (True, None) else mlp(kind.mlp_size or inner)
            return linears | dense | (mixture if kind.mixture else {})

        return tuple(map(every, self.blocks))

    @cached_property
    def linear_sizes(self) -> Array:
        """Weights of every linear, [L, linears], as of `linear_sizes`."""
        return linear_sizes(self.linears)

    @cached_property
    def block_sizes(self) -> Array:
        """Prunable weights of every block, N_l: [L]."""
        return self.linear_sizes.sum(axis=1)


def without_number(linear: str) -> str:
    """Name of a linear without the number of its expert.

    Example:
        >>> without_number("experts.7.up_proj"), without_number("q_proj")
        ('experts.up_proj', 'q_proj')
    """
    return ".".join(part for part in linear.split(".") if not part.isdigit())


def linear_sizes(linears: Linears) -> Array:
    """Weights of every linear, [L, linears]; a block with fewer linears than another ends in zeros.

    Example:
        >>> linear_sizes([{"up_proj": (3, 2)}, {"gate_proj": (3, 2), "up_proj": (3, 2)}])
        array([[6, 0],
               [6, 6]])
    """
    sizes = np.zeros((len(linears), max(map(len, linears), default=0)), np.int64)
    for row, block in zip(sizes, linears, strict=True):
        row[: len(block)] = [out * width for out, width in block.values()]
    return sizes
