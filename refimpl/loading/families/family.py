"""A family as a table: its config keys, the names of its tensors, and how they are stored."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

REQUIRED = object()  # in place of a default


@dataclass(frozen=True)
class Key:
    """How a family reads one key of `config.json`.

    Args:
        default: Its value in files without it, as in transformers; `REQUIRED` if there is none.
        file: Its spellings in the file, the usual one first; none: as we spell it.
        echoes: Second spellings in the file, which must agree with the value.
        only: The values that are supported; none: any.
        read: False if no computation needs it.
        otherwise: What the model has with another value than those supported.
    """

    default: Any = REQUIRED
    file: tuple[str, ...] = ()
    echoes: tuple[str, ...] = ()
    only: tuple[Any, ...] = ()
    read: bool = True
    otherwise: str = ""


@dataclass(frozen=True)
class Location:
    """The place of a role's weight (and bias) in the file.

    Args:
        name: The tensor without prefix and `.weight`; `{}` is the block, a second one the expert.
        fused: Roles that share the tensor, in the file's order of rows.
        grouped: Whether the fused roles alternate, one key-value head after another.
        transposed: Whether the file holds [in, out].
        stacked: Whether the tensor holds the weights of all experts.
        alternating: Whether the fused roles alternate row by row.
        weight, bias: What follows the name in those of the weight's and the bias's tensor.
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
        keys: How it reads the keys of `config.json`, under our names; any other key is an error.
        activations: Names of activations with a meaning of their own in this family.
        optional: Roles that exist only if a config key is true, with that key.
        weightless_norms: Norms without a tensor.
        windows: Which blocks slide if `layer_types` is absent: "none", "all", "even" ones, those
            "above" max_window_layers, all but the last of each "pattern", all "after first" of
            each, or "unrotated" ones; "rotated" ones see chunks.
        unrotated: Which blocks have no rotary positions: "none", "all", those "listed" with a 0 in
            `no_rope_layers`, in a model with a window those that are "full", or in any model the
            "unwindowed" ones.
        mixers: Words of `layer_types` for blocks without attention, and what mixes their tokens.
        gate: Whether the heads have a gate.
        scalings: Types of rotary scaling with a meaning of their own in this family.
        rope_extras: Keys beside the rotary parameters that are not about rotation.
        rounded_alibi: Whether ALiBi is rounded to bfloat16, and scaled as q k^T is.
        scaled_embedding: Whether embeddings are multiplied by sqrt(D).
        position_offset: First row in use of the learned positions; None for rotary positions.
        interleaved: Whether channels 2i and 2i + 1 of a head rotate together.
        buffers: Patterns of tensors that no computation needs: of old files, and of blocks that
            only predict further tokens; one that starts with ^ is not behind a base prefix.
        variant: The family and the entries of one `config.json`, if keys decide on the roles.
        scoring: Of routers, as in `Experts`; None without experts.
        shares_of_inputs: Whether an expert's share multiplies what it reads.
        stacks: Places of roles in files that stack experts, or are written by another version of
            transformers, in place of those in `names`.
        mixer_of: Roles that only blocks with one mixer have, with its name.
    """

    model_type: str
    bases: tuple[str, ...]
    names: dict[str, Location]
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True
    norm_offset: float = 0.0
    biased: dict[str, bool | str] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    activations: dict[str, str] = field(default_factory=dict)
    optional: dict[str, str] = field(default_factory=dict)
    weightless_norms: tuple[str, ...] = ()
    windows: Literal[
        "none", "all", "even", "above", "pattern", "after first", "unrotated", "rotated"
    ] = "none"
    unrotated: Literal["none", "all", "listed", "full", "unwindowed"] = "none"
    mixers: dict[str, str] = field(default_factory=dict)
    gate: bool = False
    scalings: dict[str, str] = field(default_factory=dict)
    rope_extras: tuple[str, ...] = ()
    rounded_alibi: bool = False
    scaled_embedding: bool = False
    position_offset: int | None = None
    interleaved: bool = False
    buffers: tuple[str, ...] = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    variant: Variant | None = None
    scoring: Literal["softmax", "sigmoid", "sparsemixer"] | None = None
    shares_of_inputs: bool = False
    stacks: dict[str, Location] = field(default_factory=dict)
    mixer_of: dict[str, str] = field(default_factory=dict)

    def spelling(self, key: str) -> str:
        """How the file usually spells one of our keys."""
        return self.keys[key].file[0] if key in self.keys and self.keys[key].file else key

    def like(
        self,
        model_type: str,
        without: Collection[str] = (),
        names: Mapping[str, Location | str] = MappingProxyType({}),
        keys: Mapping[str, Any] = MappingProxyType({}),
        **fields: Any,
    ) -> "Family":
        """A family that lacks roles and keys of this one, or has other ones, and other defaults."""
        places, table = dict(self.names), dict(self.keys)
        for role, place in names.items():
            places[role] = Location(place) if isinstance(place, str) else place
        for name, change in keys.items():
            if not isinstance(change, Key):
                old = self.keys.get(name, Key())
                change = Key(change, old.file, old.echoes, (change,) if old.only else ())
            table[name] = change
        for name in without:
            del (places if name in places else table)[name]
        return replace(self, model_type=model_type, names=places, keys=table, **fields)


def fused(name: str, *roles: str, **layout: Any) -> dict[str, Any]:
    """Roles that share a tensor, in the file's order of rows."""
    return dict.fromkeys(roles, Location(name, roles, **layout))


def placed(place: str, *names: str, **others: str) -> dict[str, str]:
    """Roles whose tensors are in one place, by names that are the roles' own, or others."""
    named = dict(zip(names, names, strict=True)) | others
    return {role: f"{place}{name}" for role, name in named.items()}


def biased(value: bool | str, *roles: str) -> dict[str, bool | str]:
    """The same rule for the biases of several linears."""
    return dict.fromkeys((f"{role}_proj" for role in roles), value)


def key(default: Any, *file: str, echoes: tuple[str, ...] = ()) -> Key:
    """A key with its default and its spellings in the file."""
    return Key(default, file, echoes)


def only(value: Any, *file: str) -> Key:
    """A key of which no other value is supported."""
    return Key(value, file, only=(value,))


def unread(*names: str) -> dict[str, Key]:
    """Keys of old files that no computation needs."""
    return dict.fromkeys(names, Key(None, read=False))


MOST_LISTED = 10_000  # blocks of which a list is made
LEGACY = {"mamba": "linear_attention", "attention": "full_attention"}  # words of old files


def with_kinds(
    entries: Entries, attends: Callable[[int], bool], other: str = "linear_attention"
) -> dict[str, Any]:
    """The entries with the kind of every block: as listed, or full attention in some, by number."""
    types, count = entries.get("layer_types"), entries.get("num_hidden_layers")
    if types is None and type(count) is int and count <= MOST_LISTED:
        types = ["full_attention" if attends(i) else other for i in range(count)]
    kinds = [LEGACY.get(str(x), x) for x in types] if isinstance(types, list) else types
    return {**entries, "layer_types": kinds}


SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip
BASE = Family(  # what all families share
    model_type="",
    bases=("model.", ""),
    names={},
    keys=dict.fromkeys(SIZES, Key()) | {"is_causal": only(True), "tie_word_embeddings": key(False)},
)
ROPE = {
    "rope_theta": key(10000.0), "partial_rotary_factor": key(1.0), "rope_scaling": key(None),
    "rope_parameters": key(None), "original_max_position_embeddings": key(None),
}  # fmt: skip
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
QK_NORM = placed("layers.{}.self_attn.", "q_norm", "k_norm")
