"""A family as a table: its config keys, the names of its tensors, and how they are stored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Location:
    """The place of a role's weight (and bias) in the file.

    Args:
        name: The file's tensor, without its base prefix and `.weight`; `{}` is the block's number,
            and a second one the expert's.
        fused: Roles that share the tensor, in the file's order of rows.
        grouped: Whether the fused roles alternate, one key-value head after another.
        transposed: Whether the file holds [in, out].
        stacked: Whether the tensor holds the weights of all experts.
        alternating: Whether the fused roles alternate row by row.
        weight: What follows the name of the weight's tensor.
        bias: What follows the name of the bias's tensor.
    """

    name: str
    fused: tuple[str, ...] = ()
    grouped: bool = False
    transposed: bool = False
    stacked: bool = False
    alternating: bool = False
    weight: str = ".weight"
    bias: str = ".bias"


Entries = Mapping[str, Any]
Variant = Callable[["Family", Entries], tuple["Family", Entries]]


@dataclass(frozen=True)
class Family:
    """One family: its config keys, its tensors, and the facts that are in neither.

    Args:
        model_type: `model_type` in `config.json`.
        bases: Possible prefixes of the tensors; the first that fits the file is used.
        names: Our roles and their place in the file; the family has no other roles.
        norm: Kind of every norm.
        norm_bias: Whether a LayerNorm has an offset.
        norm_offset: Number added to every stored norm gain.
        biased: Linears (and the head) with a bias: True, or the config key that decides.
        keys: Our config keys and the file's, if they differ.
        defaults: Keys that `config.json` may omit, with the default of the family's configuration
            class in transformers; a key neither here nor in `REQUIRED` is an error.
        only: Keys for which only the default is supported.
        aliases: Other spellings of our keys in the file, which may replace the first.
        echoes: Second spellings of our keys in the file, which must agree with the first.
        unread: Keys of old files that no computation needs.
        activations: Names of activations with a meaning of their own in this family.
        optional: Roles that exist only if a config key is true, with that key.
        weightless_norms: Norms without a tensor.
        windows: Which blocks slide if `layer_types` is absent: "none", "all", "even" ones, those
            "above" max_window_layers, all but the last of each "pattern", all "after first" of
            each, or "unrotated" ones; "rotated" ones see chunks.
        unrotated: Which blocks have no rotary positions: "none", those "listed" with a 0 in
            `no_rope_layers`, in a model with a window those that are "full", or in any model the
            "unwindowed" ones.
        scalings: Types of rotary scaling with a meaning of their own in this family.
        rope_extras: Keys beside the rotary parameters that are not about rotation.
        rounded_alibi: Whether ALiBi is rounded to bfloat16, and scaled as q k^T is.
        scaled_embedding: Whether embeddings are multiplied by sqrt(D).
        position_offset: First row in use of the learned positions; None for rotary positions.
        interleaved: Whether channels 2i and 2i + 1 of a head rotate together.
        buffers: Patterns of tensors in old files that no computation needs.
        flags: Keys that are true or false and decide which `variant` it is.
        variant: The family and the entries of one `config.json`, if keys decide on the roles.
        scoring: Of routers, as in `Experts`; None without experts.
        shares_of_inputs: Whether an expert's share multiplies what it reads.
        stacks: Places of roles in files that stack experts, in place of those in `names`.
    """

    model_type: str
    bases: tuple[str, ...]
    names: dict[str, Location]
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True
    norm_offset: float = 0.0
    biased: dict[str, bool | str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ("is_causal",)
    aliases: dict[str, str] = field(default_factory=dict)
    echoes: dict[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    activations: dict[str, str] = field(default_factory=dict)
    optional: dict[str, str] = field(default_factory=dict)
    weightless_norms: tuple[str, ...] = ()
    windows: Literal[
        "none", "all", "even", "above", "pattern", "after first", "unrotated", "rotated"
    ] = "none"
    unrotated: Literal["none", "listed", "full", "unwindowed"] = "none"
    scalings: dict[str, str] = field(default_factory=dict)
    rope_extras: tuple[str, ...] = ()
    rounded_alibi: bool = False
    scaled_embedding: bool = False
    position_offset: int | None = None
    interleaved: bool = False
    buffers: tuple[str, ...] = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    flags: tuple[str, ...] = ()
    variant: Variant | None = None
    scoring: Literal["softmax", "sigmoid", "sparsemixer"] | None = None
    shares_of_inputs: bool = False
    stacks: dict[str, Location] = field(default_factory=dict)


def separate(**names: str) -> dict[str, Location]:
    """Roles that have a tensor of their own."""
    return {role: Location(name) for role, name in names.items()}


def fused(name: str, *roles: str, **layout: Any) -> dict[str, Location]:
    """Roles that share a tensor, in the file's order of rows."""
    return dict.fromkeys(roles, Location(name, roles, **layout))


def without(names: dict[str, Location], *roles: str) -> dict[str, Location]:
    """The names of other roles than these."""
    return {role: location for role, location in names.items() if role not in roles}


def biased(value: bool | str, *roles: str) -> dict[str, bool | str]:
    """The same rule for the biases of several linears."""
    return dict.fromkeys((f"{role}_proj" for role in roles), value)


# Config keys without a default
REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip
ALL: dict[str, Any] = {"is_causal": True, "tie_word_embeddings": False}
ROPE: dict[str, Any] = {
    "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "rope_scaling": None,
    "rope_parameters": None, "original_max_position_embeddings": None,
}  # fmt: skip
EXPERTS = separate(
    **{"router": "layers.{}.mlp.gate"}
    | {
        f"experts.{x}_proj": f"layers.{{}}.mlp.experts.{{}}.{x}_proj"
        for x in ("gate", "up", "down")
    }
)
STACKS = fused(
    "layers.{}.mlp.experts.gate_up_proj", "experts.gate_proj", "experts.up_proj",
    stacked=True, weight="",
)  # fmt: skip
STACKS |= fused("layers.{}.mlp.experts.down_proj", "experts.down_proj", stacked=True, weight="")
# Config keys of most mixtures
MIXTURE: dict[str, Any] = {
    "num_experts": None, "num_experts_per_tok": None,
}  # fmt: skip
QK_NORM = separate(q_norm="layers.{}.self_attn.q_norm", k_norm="layers.{}.self_attn.k_norm")
