"""From `config.json` to a `Config`, in old and new spellings; an unknown key is an error."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.block_kinds import read_block_kinds
from refimpl.loading.block_mixers import read_experts
from refimpl.loading.composites import text_entries
from refimpl.loading.config_keys import LARGEST, Keys, shown
from refimpl.loading.families import ALIASES, FAMILIES, REFUSED, Family, Location
from refimpl.loading.files.refused_formats import refusal
from refimpl.model.config import Config
from refimpl.model.mixers.softmax_attention import Attention
from refimpl.model.position_tables import Alibi

ACTIVATION_NAMES = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu2",
}  # fmt: skip


@dataclass(frozen=True)
class HubModel:
    """What a `config.json` says of a model and of its tensors."""

    config: Config
    family: Family
    tied: bool  # whether the head is the embedding
    biased: frozenset[str]
    names: Mapping[str, Location]  # of those of the family's roles that the model has
    composite: bool  # whether the checkpoint has other parts than this text model


def read_config(entries: Mapping[str, Any], source: str = "config.json") -> HubModel:
    """Read a parsed `config.json`; refuse unknown keys, and spellings of a key that disagree."""
    if (model_type := str(entries.get("model_type"))) in REFUSED:
        raise RefimplError(
            f"{source} is of a {model_type} model with {REFUSED[model_type]}",
            f"one of {', '.join(FAMILIES)}",
            "compute it with transformers, or use a model of a family such as qwen3",
        )
    text = text_entries(entries, source)
    entries = entries if text is None else text
    family = _family(entries, source)
    if family.variant is not None:
        family, entries = family.variant(family, entries)
    keys = Keys(entries, family)
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    kv_heads = keys.size("num_key_value_heads", otherwise=heads)
    head_dim = _head_dim(keys, hidden, heads, kv_heads)
    inner = 4 * hidden if family.keys["intermediate_size"].default is None else None
    intermediate = keys.size("intermediate_size", otherwise=inner)
    blocks = read_block_kinds(keys, Attention(heads, kv_heads, head_dim))
    longest = keys.size("max_position_embeddings")  # which dynamic scaling stretches
    ropes = [kind.rope for kind in blocks if kind.rope and kind.rope.scaling == "dynamic"]
    stretch = max((rope.factor for rope in ropes), default=1.0)
    scaled = family.scaled_embedding
    scaled = keys.flag(scaled) if isinstance(scaled, str) else scaled
    gate_scale, mlp_scale = keys.factors("mlp_multipliers", 2)
    absent = {role for role, key in family.optional.items() if not keys.flag(key)}
    config = Config(
        family=family.model_type,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=min(int(stretch * longest), LARGEST),
        norm=family.norm,
        norm_eps=keys.number("norm_eps"),
        activation=_activation(keys),
        gated=bool({"gate_proj", "experts.gate_proj"} & family.names.keys()),
        attention_scale=keys.number(
            "attention_scale",
            otherwise=keys.number("query_pre_attn_scalar", otherwise=head_dim) ** -0.5,
        ),
        blocks=blocks,
        parallel_residual=keys.has("use_parallel_residual") and keys.flag("use_parallel_residual"),
        attn_soft_cap=keys.number_or_none("attn_logit_softcapping"),
        final_soft_cap=keys.number_or_none("final_logit_softcapping"),
        embed_scale=keys.number("embed_scale", otherwise=sqrt(hidden) if scaled is True else 1.0),
        position_offset=family.position_offset or 0,
        residual_scale=keys.number("residual_scale", otherwise=1.0),
        logit_scale=keys.number("logit_scale", otherwise=1.0)
        / keys.number("logit_divisor", otherwise=1.0),
        qkv_limit=keys.number_or_none("qkv_limit"),
        weightless_norms=tuple(x for x in family.weightless_norms if x not in absent),
        experts=read_experts(keys, intermediate, blocks),
        gate_scale=gate_scale,
        mlp_scale=mlp_scale,
        gate_limit=keys.number_or_none("gate_limit"),
        alibi=_alibi(keys, heads, head_dim),
    )
    tied = keys.flag("tie_word_embeddings")
    has_bias = {
        role: keys.flag(rule) if isinstance(rule, str) else rule
        for role, rule in family.biased.items()
    }
    names = {role: place for role, place in family.names.items() if role not in absent}
    if keys.get("word_embed_proj_dim") not in (None, keys.get("hidden_size")):
        keys.wrong("word_embed_proj_dim: embeddings projected to hidden_size are not supported")
    for name, key in family.keys.items():
        if not key.read:
            keys.ignore(name)
        elif key.only:
            keys.get(name)  # notes any other value
    keys.refuse(source)
    biased = frozenset(role for role in has_bias if has_bias[role])
    return HubModel(config, family, tied, biased, names, text is not None)


def _family(entries: Mapping[str, Any], source: str) -> Family:
    """The family of a config, or the error why it has none."""
    model_type = entries.get("model_type")
    quantised_keys = ("quantization_config", "quantization", "compression_config")
    if any(entries.get(key) for key in quantised_keys):
        raise refusal("quantised", f"{source} describes a quantised checkpoint")
    if isinstance(model_type, str) and model_type in (known := FAMILIES | ALIASES):
        return known[model_type]
    raise RefimplError(
        f"{source}: unknown model family {shown(model_type)}",
        f"one of {', '.join(FAMILIES)}",
        "use a model of one of these families, or add a file to refimpl/loading/families",
    )


def _head_dim(keys: Keys, hidden: int, heads: int, kv_heads: int) -> int:
    """Channels per head; 2, which any rotary position accepts, if the sizes are wrong."""
    divides = keys.get("head_dim") is not None or hidden % heads == 0
    if keys.problems:
        return 2
    if heads % kv_heads:
        keys.wrong(f"num_key_value_heads: {kv_heads} does not divide {heads} attention heads")
    if not divides:
        keys.wrong(f"{keys.spelling('num_attention_heads')}: {heads} does not divide {hidden}")
        return 2
    return keys.size("head_dim", otherwise=hidden // heads)


def _alibi(keys: Keys, heads: int, head_dim: int) -> Alibi | None:
    """ALiBi's slopes: for the next smaller power of 2, then every other of the next larger one."""
    if not (keys.has("alibi") and keys.flag("alibi")):
        return None
    power = 1 << (heads.bit_length() - 1)
    exponents = [(i + 1) / power for i in range(power)]
    exponents += [(2 * i + 1) / (2 * power) for i in range(heads - power)]
    slopes = tuple(2.0 ** (-8 * x) for x in exponents)
    rounded = keys.family.rounded_alibi
    return Alibi(slopes, head_dim**-0.5 if rounded else 1.0, rounded)


def _activation(keys: Keys) -> str:
    """Our name of the activation."""
    name, known = keys.get("activation"), ACTIVATION_NAMES | keys.family.activations
    if isinstance(name, str) and name in known:
        return known[name]
    keys.wrong(f"{keys.spelling('activation')}: {shown(name)} is not one of {', '.join(known)}")
    return "relu"
