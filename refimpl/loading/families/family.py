"""What a family is, as data: how it spells its config, names its tensors, and stores them."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Location:
    """Where a role's weight (and bias) lies in the file.

    Args:
        name: The file's tensor, without its base prefix and `.weight`; `{}` is the block's number.
        fused: Roles that share the tensor, in the file's order of rows.
        per_head: The fused roles alternate head by head.
        transposed: The file holds [in, out].
    """

    name: str
    fused: tuple[str, ...] = ()
    per_head: bool = False
    transposed: bool = False


@dataclass(frozen=True)
class Family:
    """One family: spelling of its config, names of its tensors, and what is not in either.

    Args:
        model_type: `model_type` in `config.json`.
        bases: Prefixes of the tensors, the first that fits the file is taken.
        names: Our roles to their place in the file; a role that is absent does not exist.
        norm: Kind of every norm.
        norm_offset: Added to every stored norm gain.
        biased: Linears with a bias: True, or the config key that says so.
        keys: Our config keys to the file's, where they differ.
        defaults: Keys that `config.json` may omit, and what that means (as in the family's
            configuration class); a key neither here nor in `REQUIRED` is not understood.
        only: Keys of which no value but the default is supported.
        echoes: The file's second spellings of our keys: they may only repeat the first one.
        windows: Which blocks slide where `layer_types` is absent: "none", "all", "even" ones,
            those "above" max_window_layers, or all but the last of each "pattern".
        scaled_embedding: Embeddings are multiplied by sqrt(D).
        position_offset: First row of the learned positions in use, or None for rotary positions.
        buffers: Patterns of tensors that old files carry and nobody needs.
    """

    model_type: str
    bases: tuple[str, ...]
    names: dict[str, Location]
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    biased: dict[str, bool | str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ("is_causal",)
    echoes: dict[str, str] = field(default_factory=dict)
    windows: Literal["none", "all", "even", "above", "pattern"] = "none"
    scaled_embedding: bool = False
    position_offset: int | None = None
    buffers: tuple[str, ...] = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def parts(**names: str) -> dict[str, Location]:
    """Roles that have a tensor of their own."""
    return {role: Location(name) for role, name in names.items()}


def biased(value: bool | str, *roles: str) -> dict[str, bool | str]:
    """The same rule for the biases of several linears."""
    return dict.fromkeys((f"{role}_proj" for role in roles), value)


# Config keys without a default: every file must give them.
REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
ALL: dict[str, Any] = {"is_causal": True, "tie_word_embeddings": False}
ROPE: dict[str, Any] = {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}
ROPE |= {"rope_scaling": None, "rope_parameters": None, "original_max_position_embeddings": None}
QK_NORM = parts(q_norm="layers.{}.self_attn.q_norm", k_norm="layers.{}.self_attn.k_norm")
