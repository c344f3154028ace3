"""A family as a table: its config keys, the names of its tensors, and how they are stored."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

REQUIRED = object()  # in place of a default


@dataclass(frozen=True)
class Key:
    """How a family reads one key of `config.json`."""

    # in files without it, as in transformers; `REQUIRED`: there is none
    default: Any = REQUIRED
    file: tuple[
        str, ...
    ] = ()  # its spellings in the file, the usual one first; none: ours
    echoes: tuple[str, ...] = ()  # second spellings, which must agree with the value
    only: tuple[Any, ...] = ()  # the values that are supported; none: any
    read: bool = True  # False if no computation needs it


@dataclass(frozen=True)
class Location:
    """The place of a role's weight (and bias) in the file."""

    # without prefix and `.weight`; `{}` is the block, a second one the expert
    name: str
    fused: tuple[
        str, ...
    ] = ()  # roles that share the tensor, in the file's order of rows
    # whether fused roles alternate, one key-value head after another
    grouped: bool = False
    transposed: bool = False  # whether the file holds [in, out]
    stacked: bool = False  # whether the tensor holds the weights of all experts
    alternating: bool = False  # whether fused roles alternate row by row
    weight: str = ".weight"  # what follows the name in that of the weight's tensor
    bias: str = ".bias"


Entries = Mapping[str, Any]
Variant = Callable[["Family", Entries], tuple["Family", Entries]]


@dataclass(frozen=True)
class Family:
    """One family: its config keys, its tensors, and the facts that are in neither."""

    model_type: str
    bases: tuple[
        str, ...
    ]  # possible prefixes of the tensors; the first that fits is used
    names: dict[
        str, Location
    ]  # our roles and their place in the file; there are no others
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True  # whether a LayerNorm has an offset
    norm_offset: float = 0.0  # added to every stored gain of a norm
    # Linears (and the head) with a bias: True, or the config key that decides
    biased: dict[str, bool | str] = field(default_factory=dict)
    keys: dict[str, Key] = field(
        default_factory=dict
    )  # under our names; others are errors
    activations: dict[str, str] = field(
        default_factory=dict
    )  # names with a meaning of its own
    optional: dict[str, str] = field(
        default_factory=dict
    )  # roles that a true config key adds
    weightless_norms: tuple[str, ...] = ()  # norms without a tensor
    # Which blocks slide if `layer_types` is absent: "even" ones, those "above" max_window_layers,
    # all but the last of each "pattern", all "after first" of each, ...; "rotated" ones see chunks
    windows: Literal[
        "none", "all", "even", "above", "pattern", "after first", "unrotated", "rotated"
    ] = "none"
    # Which blocks have no rotary positions: those "listed" with a 0 in `no_rope_layers`, in a model
    # with a window those that are "full", in any model the "unwindowed" ones, ...
    unrotated: Literal["none", "all", "listed", "full", "unwindowed"] = "none"
    # Words of `layer_types` for blocks without attention, and what mixes their tokens
    mixers: dict[str, str] = field(default_factory=dict)
    gate: bool = False  # whether the heads have a gate
    scalings: dict[str, str] = field(
        default_factory=dict
    )  # of rotary types, as `activations`
    rope_extras: tuple[
        str, ...
    ] = ()  # keys beside the rotary ones that are not about rotation
    # whether ALiBi is rounded to bfloat16, and scaled as q k^T is
    rounded_alibi: bool = False
    scaled_embedding: bool | str = False  # whether, or by which key, by sqrt(D)
    # first row in use of learned positions; None: rotary ones
    position_offset: int | None = None
    # whether channels 2i and 2i + 1 of a head rotate together
    interleaved: bool = False
    # Patterns of tensors that no computation needs: of old files, and of blocks that only predict
    # further tokens; one that starts with ^ is not behind a base prefix
    buffers: tuple[str, ...] = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    # its form for one `config.json`, if keys decide on the roles
    variant: Variant | None = None
    # None without experts
    scoring: Literal["softmax", "sigmoid", "sparsemixer"] | None = None
    shares_of_inputs: bool = False  # whether an expert's share multiplies what it reads
    # Places of roles in files that stack experts, or are of another version of transformers
    stacks: dict[str, Location] = field(default_factory=dict)
    mixer_of: dict[str, str] = field(
        default_factory=dict
    )  # roles of blocks with one mixer alone

    def spelling(self, key: str) -> str:
        """How the file usually spells one of our keys."""
        return (
            self.keys[key].file[0] if key in self.keys and self.keys[key].file else key
        )

    def like(
        self,
        model_type: str,
        without: Collection[str] = (),
        names: Mapping[str, Location | str] = MappingProxyType({}),
        keys: Mapping[str, Any] = MappingProxyType({}),
        **others: Any,
    ) -> "Family":
        """A family without some roles and keys of this one; `others` are its fields, or more keys.

        A key is a `Key`, or another default.
        """
        places, table = dict(self.names), dict(self.keys)
        fields = {
            x: others.pop(x) for x in self.__dataclass_fields__.keys() & others.keys()
        }
        for role, place in names.items():
            places[role] = Location(place) if isinstance(place, str) else place
        for name, change in {**keys, **others}.items():
            if not isinstance(change, Key):
                old = self.keys.get(name, Key())
                change = Key(
                    change, old.file, old.echoes, (change,) if old.only else ()
                )
            table[name] = change
        for name in without:
            del (places if name in places else table)[name]
        return replace(self, model_type=model_type, names=places, keys=table, **fields)


def fused(name: str, *roles: str, **layout: Any) -> dict[str, Any]:
    """Roles that share a tensor, in the file's order of rows."""
    return dict.fromkeys(roles, Location(name, roles, **layout))


def placed(place: str, *names: str, **others: str) -> dict[str, Any]:
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


def unread(*names: str) -> dict[str, Any]:
    """Keys of old files that no computation needs."""
    return dict.fromkeys(names, Key(None, read=False))


MOST_LISTED = 10_000  # blocks of which a list is made
LEGACY = {
    "mamba": "linear_attention",
    "attention": "full_attention",
}  # words of old files


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
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
BASE = Family(  # what all families share
    model_type="",
    bases=("model.", ""),
    names={},
    keys=dict.fromkeys(SIZES, Key())
    | {"is_causal": only(True), "tie_word_embeddings": key(False)},
)
ROPE = {
    "rope_theta": key(10000.0),
    "partial_rotary_factor": key(1.0),
    "rope_scaling": key(None),
    "rope_parameters": key(None),
    "original_max_position_embeddings": key(None),
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION_BIAS = biased("attention_bias", "q", "k", "v", "o")
MTP = r"^(model\.)?mtp\..*"  # tensors of blocks that only predict further tokens
QK_NORM = placed("layers.{}.self_attn.", "q_norm", "k_norm")
