"""From `config.json` to a `Config`, in old and new spellings; what is not understood is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.block_kinds import read_block_kinds
from refimpl.loading.config_keys import Keys, shown
from refimpl.loading.families import FAMILIES, Family
from refimpl.model.config import Config

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class HubModel:
    """What a `config.json` says.

    Args:
        config: What the forward needs.
        family: The family it belongs to.
        tied: The head is the embedding.
        biased: Linears that have a bias.
    """

    config: Config
    family: Family
    tied: bool
    biased: frozenset[str]


def read_config(given: Mapping[str, Any], where: str = "config.json") -> HubModel:
    """Turn a parsed `config.json` into a `Config`, and what the file's tensors must be.

    Args:
        given: The parsed file.
        where: The file, for messages.

    Returns:
        The configuration, its family, and which optional tensors exist.

    Raises:
        RefimplError: A multimodal, quantised or unknown family; otherwise keys that are missing,
            wrong, contradictory or not understood, all of them at once.

    Source:
        transformers' configuration classes (a peer): keys, defaults, and what they mean.

    Differs:
        transformers ignores keys it does not know, and lets one spelling win where two disagree;
        here both are refused.

    Example:
        >>> sizes = {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}
        >>> read_config({"model_type": "gpt2"} | sizes).config.intermediate_size
        3072
    """
    family = _family(given, where)
    keys = Keys(given, family)
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    kv_heads = keys.size("num_key_value_heads", otherwise=heads)
    head_dim = _head_dim(keys, hidden, heads, kv_heads)
    config = Config(
        family=family.model_type,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size", otherwise=_inner(family, hidden)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=keys.size("max_position_embeddings"),
        norm=family.norm,
        norm_eps=keys.number("norm_eps"),
        activation=_activation(keys),
        gated="gate_proj" in family.names,
        attention_scale=keys.number("query_pre_attn_scalar", otherwise=head_dim) ** -0.5,
        blocks=read_block_kinds(keys, head_dim),
        parallel_residual=keys.has("use_parallel_residual") and keys.flag("use_parallel_residual"),
        attn_soft_cap=keys.number_or_none("attn_logit_softcapping"),
        final_soft_cap=keys.number_or_none("final_logit_softcapping"),
        embed_scale=sqrt(hidden) if family.scaled_embedding else 1.0,
        position_offset=family.position_offset or 0,
    )
    tied = keys.flag("tie_word_embeddings")
    biased = frozenset(
        role
        for role, rule in family.biased.items()
        if (keys.flag(rule) if isinstance(rule, str) else rule)
    )
    if keys.get("word_embed_proj_dim") not in (None, keys.get("hidden_size")):
        keys.wrong("word_embed_proj_dim: embeddings projected to hidden_size are not supported")
    for key in family.only:
        keys.get(key)
    keys.refuse(where)
    return HubModel(config, family, tied, biased)


def _family(given: Mapping[str, Any], where: str) -> Family:
    """The family of a config, or the reason why there is none."""
    model_type = given.get("model_type")
    if any(given.get(key) for key in ("text_config", "vision_config", "audio_config")):
        raise RefimplError(
            f"{where} describes a multimodal model ({shown(model_type)})",
            "a text-only decoder",
            "save its language model alone (transformers: "
            "model.language_model.save_pretrained(DIR))",
        )
    if any(given.get(key) for key in ("quantization_config", "quantization", "compression_config")):
        raise RefimplError(
            f"{where} describes a quantised checkpoint",
            "weights in F32, F16, BF16 or F64",
            "de-quantise it (transformers: model.dequantize().save_pretrained(DIR)) or use the "
            "original checkpoint",
        )
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    missing = "model_type" not in given
    raise RefimplError(
        f"{where} has no model_type" if missing else f"unknown model family {shown(model_type)}",
        f"one of {', '.join(FAMILIES)}",
        "add model_type to config.json; it is never guessed from names"
        if missing
        else "use a model of one of these families, or add the family (a few lines in "
        "refimpl/loading/families.py)",
    )


def _head_dim(keys: Keys, hidden: int, heads: int, kv_heads: int) -> int:
    """Channels per head, once the counts fit together."""
    divides = keys.get("head_dim") is not None or hidden % heads == 0
    if keys.problems:
        return 2  # keeps the rotary positions from being wrong because a size is
    if heads % kv_heads:
        keys.wrong(f"num_key_value_heads: {kv_heads} does not divide {heads} attention heads")
    if not divides:
        keys.wrong(f"{keys.spelling('num_attention_heads')}: {heads} does not divide {hidden}")
        return 2
    return keys.size("head_dim", otherwise=hidden // heads)


def _inner(family: Family, hidden: int) -> int | None:
    """Channels inside the MLP where the file does not say; None where it must."""
    return 4 * hidden if "intermediate_size" in family.defaults else None


def _activation(keys: Keys) -> str:
    """Our name of the activation."""
    name = keys.get("activation")
    if isinstance(name, str) and name in ACTIVATION_NAMES:
        return ACTIVATION_NAMES[name]
    spelling = keys.spelling("activation")
    keys.wrong(f"{spelling}: {shown(name)} is not one of {', '.join(ACTIVATION_NAMES)}")
    return "relu"
