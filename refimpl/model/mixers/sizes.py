"""The facts of the parts of a block: what mixes its tokens, with its weights, and its experts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

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

    def shapes(self, width: int) -> WeightShapes:
        """The shapes of its weights, in a stream of D channels."""
        return WeightShapes({})


NO_MIXER = Mixer()


@dataclass(frozen=True)
class Attention(Mixer):
    """Softmax attention: sizes in the words of `config.json`, and the gate of its heads.

    Args:
        num_attention_heads: H, query heads.
        num_key_value_heads: K, key and value heads; H is a multiple of it.
        head_dim: h, channels per head.
        gate_width: Factors of a gate per head: one for all its channels, or h; 0 without a gate.
        key_scale: Multiplies keys, before any norm and rotation.
        keys_as_values: Whether values are keys before their norm and rotation.
        kept: Whether later blocks read its keys, before their rotation, and its values.
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    gate_width: int = 0
    key_scale: float = 1.0
    keys_as_values: bool = False
    kept: bool = False

    name = "attention"
    points = ("q", "k", "v", "q_rope", "k_rope")
    reads: ClassVar[Mapping[str, str]] = {"attn_gate": "attn_norm"}
    attends = True

    def runs(self, fused: tuple[str, ...]) -> int:
        """As of `Mixer`: a gate is beside the queries of its head, others go by key-value head."""
        return self.num_attention_heads if "attn_gate" in fused else self.num_key_value_heads

    @property
    def kept_size(self) -> int:
        """Channels of the keys and values of a token."""
        return 2 * self.num_key_value_heads * self.head_dim

    @property
    def kv_head_of_head(self) -> npt.NDArray[np.intp]:
        """Which key-value head each query head reads: [H]."""
        return np.arange(self.num_attention_heads) // (
            self.num_attention_heads // self.num_key_value_heads
        )

    def shapes(self, width: int) -> WeightShapes:
        """As of `Mixer`."""
        heads, h = self.num_attention_heads, self.head_dim
        q, kv = heads * h, self.num_key_value_heads * h
        shapes = (q, width), (kv, width), (kv, width), (width, q)
        linears = dict(zip(("q_proj", "k_proj", "v_proj", "o_proj"), shapes, strict=True))
        if self.keys_as_values:
            del linears["v_proj"]
        gate = {"attn_gate": (heads * self.gate_width, width)} if self.gate_width else {}
        if self.gate_width > 1:  # as large as the queries
            linears, gate = linears | gate, {}
        norms = dict.fromkeys(("q_norm", "k_norm", "q_rope_norm", "k_rope_norm", "v_norm"), h)
        norms |= {"q_width_norm": q, "k_width_norm": kv}
        return WeightShapes(linears, gate, norms, {"sinks": (heads,)})


@dataclass(frozen=True)
class SharedAttention(Attention):
    """Softmax attention with the keys and values of an earlier block, which are not its weights'.

    Args:
        of: That block, whose attention has the same sizes and rotates its keys in the same way.
    """

    of: int = 0

    def shapes(self, width: int) -> WeightShapes:
        """As of `Mixer`."""
        every = super().shapes(width)
        linears = {name: x for name, x in every.linears.items() if name[0] not in "kv"}
        norms = {name: x for name, x in every.norms.items() if name[0] not in "kv"}
        return replace(every, linears=linears, norms=norms)


@dataclass(frozen=True)
class ShortConvolution(Mixer):
    """A gated convolution of a few taps along the tokens.

    Args:
        taps: K, tokens that each token sees, itself included.
    """

    taps: int

    name = "short_convolution"
    points = ("conv_in", "conv_out")
    reads: ClassVar[Mapping[str, str]] = {"in_proj": "attn_norm", "out_proj": "mixed"}

    def shapes(self, width: int) -> WeightShapes:
        """As of `Mixer`."""
        kernel = {"conv.weight": (width, 1, self.taps), "conv.bias": (width,)}
        linears = {"in_proj": (3 * width, width), "out_proj": (width, width)}
        return WeightShapes(linears, arrays=kernel)


@dataclass(frozen=True)
class GatedDeltaRule(Mixer):
    """Linear attention whose state forgets, and corrects what it holds for a key.

    Args:
        key_heads: Heads of queries and keys; value_heads is a multiple of it.
        value_heads: H, heads of values, decays and gates.
        key_dim: Channels of a query and of a key.
        value_dim: Channels of a value.
        taps: Tokens that the convolution before it sees.
        most: Largest share of an error that is corrected: 1, or 2.
        norm_eps: Added under the root of its norm; None: as in the other norms.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    most: float = 1.0
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
        kept = {"in_proj_b": (self.value_heads, width), "in_proj_a": (self.value_heads, width)}
        arrays: dict[str, tuple[int, ...]] = {"conv.weight": (q + k + v, 1, self.taps)}
        arrays |= dict.fromkeys(("A_log", "dt_bias"), (self.value_heads,))
        for name, channels in zip("qkv", self.channels, strict=True):  # in files that split it
            arrays[f"conv_{name}.weight"] = (channels, 1, self.taps)
        arrays["state_norm.weight"] = (self.value_dim,)
        return WeightShapes(linears | {"out_proj": (width, v)}, kept, arrays=arrays)


@dataclass(frozen=True)
class LatentAttention(Mixer):
    """Softmax attention whose keys and values come from one small vector per token.

    Args:
        num_attention_heads: H.
        query_rank: Channels of the vector that queries come from; None: from the stream.
        rank: Channels of the vector that keys and values come from.
        plain_dim: Channels of a query and a key that do not rotate.
        rotary_dim: Channels that rotate, of a key the same for all heads.
        value_dim: Channels of a value.
        scale: Multiplies q k^T.
    """

    num_attention_heads: int
    query_rank: int | None
    rank: int
    plain_dim: int
    rotary_dim: int
    value_dim: int
    scale: float

    name = "latent_attention"
    points = ("q", "latent", "v", "q_rope", "k_rope")
    reads: ClassVar[Mapping[str, str]] = {
        "q_a_proj": "attn_norm", "q_b_proj": "q_latent", "kv_a_proj": "attn_norm",
        "kv_b_proj": "latent",
    }  # fmt: skip
    attends = True

    def shapes(self, width: int) -> WeightShapes:
        """As of `Mixer`."""
        heads, rank = self.num_attention_heads, self.query_rank
        q = heads * (self.plain_dim + self.rotary_dim)
        queries: Matrices = {"q_proj": (q, width)}
        if rank is not None:
            queries = {"q_a_proj": (rank, width), "q_b_proj": (q, rank)}
        linears = queries | {
            "kv_a_proj": (self.rank + self.rotary_dim, width),
            "kv_b_proj": (heads * (self.plain_dim + self.value_dim), self.rank),
            "o_proj": (width, heads * self.value_dim),
        }
        gains: dict[str, tuple[int, ...]] = {"kv_a_norm.weight": (self.rank,)}
        gains |= {"q_a_norm.weight": (rank,)} if rank else {}
        return WeightShapes(linears, arrays=gains)


@dataclass(frozen=True)
class Mamba2(Mixer):
    """A state space whose decay, input and output depend on the token.

    Args:
        heads: H.
        head_dim: p, channels per head.
        groups: Groups of heads that share b and c.
        state: n, numbers that each channel keeps.
        taps: Tokens that the convolution before it sees.
        steps: Smallest and largest time step.
        factors: Multiply the inputs of the gate, x, b, c and the time step.
        norm: Whether the output is normalised before the gate, after it, or not ("").
    """

    heads: int
    head_dim: int
    groups: int
    state: int
    taps: int
    steps: tuple[float, float]
    factors: tuple[float, ...] = (1.0,) * 5
    norm: Literal["", "before", "after"] = "after"

    name = "mamba2"
    points = ("conv_in", "conv_out", "state_out")
    reads: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("in_proj_z", "in_proj_x", "in_proj_bc"), "attn_norm"
    ) | {"out_proj": "mixed"}
    in_a_row = False

    def shapes(self, width: int) -> WeightShapes:
        """As of `Mixer`."""
        inner, both = self.heads * self.head_dim, 2 * self.groups * self.state
        linears = {
            "in_proj_z": (inner, width), "in_proj_x": (inner, width), "in_proj_bc": (both, width),
            "out_proj": (width, inner),
        }  # fmt: skip
        arrays: dict[str, tuple[int, ...]] = {
            "conv.weight": (inner + both, 1, self.taps), "conv.bias": (inner + both,),
            "state_norm.weight": (inner,),
        }  # fmt: skip
        arrays |= dict.fromkeys(("A_log", "D", "dt_bias"), (self.heads,))
        return WeightShapes(linears, {"in_proj_dt": (self.heads, width)}, arrays=arrays)


@dataclass(frozen=True)
class Beside(Mixer):
    """Softmax attention and Mamba 2 that read the same, and whose outputs are added.

    Args:
        mamba2: Sizes of the one.
        attention: Sizes of the other.
        before: Multiply the inputs of Mamba 2 and attention.
        after: Multiply their outputs.
    """

    mamba2: Mamba2
    attention: Attention
    before: tuple[float, float]
    after: tuple[float, float]

    name = "attention_beside_mamba2"
    points = (*Mamba2.points, *Attention.points)
    in_a_row = False
    attends = True

    def shapes(self, width: int) -> WeightShapes:
        """As of `Mixer`."""
        one, other = self.mamba2.shapes(width), self.attention.shapes(width)
        linears = other.linears | one.linears
        return WeightShapes(linears, one.matrices, other.norms, one.arrays | other.arrays)


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP.

    Args:
        num_experts: E.
        top_k: Experts per token.
        intermediate_size: Channels inside an expert.
        shared_size: Channels inside the shared expert, which every token passes; 0 without one.
        scoring: How the router turns its logits into scores, see `experts.route`.
        normalised: Whether the shares of a token's experts sum to 1, before scaling.
        least_sum: Smallest sum that shares are divided by.
        sum_eps: Added to the sum that shares are divided by.
        scaling: Multiplies the shares.
        groups: Groups of experts, of equal size.
        group_by: How many of a group's largest preferences it is ranked by, as a sum.
        groups_kept: Groups that a token may choose from.
        jitter: sparsemixer: half the relative distance of logits that count as near.
        of_inputs: Whether shares multiply an expert's input, not its output.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    shared_size: int = 0
    scoring: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    normalised: bool = True
    least_sum: float = 0.0
    sum_eps: float = 0.0
    scaling: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    group_by: int = 2
    jitter: float = 0.0
    of_inputs: bool = False
