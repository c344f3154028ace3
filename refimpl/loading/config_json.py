"""From `config.json` to a `Config`, also of a text model among others; unknown keys are errors."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.block_kinds import read_block_kinds
from refimpl.loading.block_mixers import read_experts
from refimpl.loading.config_keys import LARGEST_SIZE, Keys, shown
from refimpl.loading.families import ALIASES, FAMILIES, REFUSED, Family, Location
from refimpl.loading.families.family import SIZES
from refimpl.loading.files.safetensors_file import refusal
from refimpl.model.config import Config
from refimpl.model.mixers.softmax_attention import Attention
from refimpl.model.position_tables import Alibi

# `model_type` of checkpoints that compute from text alone what their text model computes, each as
# compared with transformers; some of their text models have a type of their own. Their heads
# neither scale nor cap logits, so text models that do (Cohere's, Granite's) are not among these.
COMPOSITES = (
    "gemma3",
    "mistral3",
    "llava",
    "llava_next",
    "idefics3",
    "smolvlm",
    "internvl",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llama4",
    "qwen3_vl_moe",
    "lfm2_vl",
    "exaone4_5",
    "kimi_k25",
    "qwen3_5",
    "qwen3_5_moe",
    "gemma4",
    "gemma4_unified",
    "internvl_chat",
    "llava_next_video",
    "llava_onevision",
    "vipllava",
    "video_llava",
    "lighton_ocr",
    "got_ocr2",
    "ovis2",
    "deepseek_vl",
    "janus",
    "video_llama_3",
)
CAPPED = ("gemma4", "gemma4_unified")  # whose heads cap logits as their text models do
TEXT_FAMILIES = (
    "gemma3_text",
    "llama",
    "mistral",
    "ministral3",
    "qwen2",
    "qwen3",
    "llama4_text",
    "qwen3_moe",
    "lfm2",
    "exaone4",
    "deepseek_v3",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "gemma4_text",
    "gemma4_unified_text",
)
# Kinds whose files may hold the keys of the text model among those of images, and its type
FLAT = {"qwen2_vl": "qwen2_vl_text", "qwen2_5_vl": "qwen2_5_vl_text", "llava": "llama"}
OF_IMAGES = re.compile("(un)?(freeze|tune|use)?_?mm_|image_")
OTHERS = (
    "vision_config",
    "audio_config",
    "perceiver_config",
    "pixel_shuffle_factor",
)  # not text
# Sizes that published files omit: defaults of the configuration classes in transformers.
DEFAULTS: dict[str, dict[str, int]] = {
    family: dict(zip(SIZES, sizes, strict=True))
    for family, sizes in {
        "gemma3_text": (262208, 2304, 9216, 26, 8),
        "llama": (32000, 4096, 11008, 32, 32),
        "mistral": (32000, 4096, 14336, 32, 32),
    }.items()
}
OTHER_PARTS = (
    "vision_tower",
    "vision_model",
    "visual",
    "multi_modal_projector",
    "connector",
    "image_newline",
    "audio_tower",
    "embed_vision",
    "embed_audio",
    "vision_embedder",
    "mm_projector",
    "mlp1",
    "projector",
    "aligner",
    "image_tower",
    "video_tower",
    "vqmodel",
    "generation_head",
    "generation_aligner",
    "generation_embeddings",
    "visual_embeddings_table",
    "vision_encoder",
    "vision_projection",
)
# Where the text model's tensors and its head may be
TEXT_NAMES = (
    ("model.language_model.", "lm_head"),
    ("language_model.model.", "language_model.lm_head"),
    ("model.text_model.", "lm_head"),
    ("model.", "lm_head"),
)
TIED = "tie_word_embeddings"
OUTER = (
    TIED,
    "quantization_config",
    "quantization",
    "compression_config",
)  # hold for the text
SECTIONS = (
    "mrope_section",
    "mrope_interleaved",
)  # three positions per token: equal ones in a text


def text_entries(entries: Mapping[str, Any], source: str) -> Mapping[str, Any] | None:
    """The `config.json` of the text model of a composite checkpoint; None if it is not one."""
    kind, inner = (
        entries.get("model_type"),
        entries.get("text_config", entries.get("llm_config")),
    )
    if kind not in COMPOSITES and not any(
        entries.get(key) for key in ("text_config", *OTHERS)
    ):
        return None
    flat = inner is None and kind in FLAT and "hidden_size" in entries
    if kind not in COMPOSITES or not (flat or isinstance(inner, dict)):
        raise refusal(
            "multimodal", f"{source} describes a multimodal model ({shown(kind)})"
        )
    ours = dict(entries if flat else inner or {})
    if flat:
        ours = {k: v for k, v in ours.items() if not OF_IMAGES.match(k)}
        ours["model_type"] = FLAT[kind]
    ours = {
        k: v for k, v in ours.items() if k not in OTHERS and not k.endswith("_token_id")
    }
    name = shown(ours.get("model_type")).strip('"')
    family = (FAMILIES | ALIASES).get(name)
    capped = ours.get("final_logit_softcapping") and kind not in CAPPED
    if family is None or family.model_type not in TEXT_FAMILIES or capped:
        raise refusal(
            "multimodal", f"{source} describes a multimodal model ({kind} of {name})"
        )
    text = {**DEFAULTS.get(name, {}), **ours}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(rope := text.get(key), dict) and SECTIONS[0] in rope:
            plain = {k: v for k, v in rope.items() if k not in SECTIONS}
            text[key] = {k: "default" if v == "mrope" else v for k, v in plain.items()}
    outer = {key: entries[key] for key in OUTER if entries.get(key) is not None}
    if (kind in FLAT and text.get(TIED) is True) or kind == "internvl_chat":
        outer.pop(
            TIED, None
        )  # one of both is enough; InternVL's own class has no head to tie
    return text | outer


def part(name: str) -> str:
    """The part of a checkpoint that has a tensor."""
    return name.removeprefix("model.").split(".")[0]


def counted_parts(names: Iterable[str]) -> list[str]:
    """Parts of a checkpoint with their number of tensors, such as "vision_tower (2 tensors)"."""
    count = Counter(map(part, names))
    return [f"{name} ({n} tensor{'' if n == 1 else 's'})" for name, n in count.items()]


ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


@dataclass(frozen=True)
class ConfigFacts:
    """What a `config.json` says of a model and of its tensors."""

    config: Config
    family: Family
    tied: bool  # whether the head is the embedding
    biased: frozenset[str]
    names: Mapping[str, Location]  # of those of the family's roles that the model has
    composite: bool  # whether the checkpoint has other parts than this text model


def read_config(entries: Mapping[str, Any], source: str = "config.json") -> ConfigFacts:
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
    ropes = [
        kind.rope for kind in blocks if kind.rope and kind.rope.scaling == "dynamic"
    ]
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
        max_position_embeddings=min(int(stretch * longest), LARGEST_SIZE),
        norm=family.norm,
        norm_eps=keys.number("norm_eps"),
        activation=_activation(keys),
        gated=bool({"gate_proj", "experts.gate_proj"} & family.names.keys()),
        attention_scale=keys.number(
            "attention_scale",
            otherwise=keys.number("query_pre_attn_scalar", otherwise=head_dim) ** -0.5,
        ),
        blocks=blocks,
        parallel_residual=keys.has("use_parallel_residual")
        and keys.flag("use_parallel_residual"),
        attn_soft_cap=keys.number_or_none("attn_logit_softcapping"),
        final_soft_cap=keys.number_or_none("final_logit_softcapping"),
        embed_scale=keys.number(
            "embed_scale", otherwise=sqrt(hidden) if scaled is True else 1.0
        ),
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
        keys.wrong(
            "word_embed_proj_dim: embeddings projected to hidden_size are not supported"
        )
    for name, key in family.keys.items():
        if not key.read:
            keys.ignore(name)
        elif key.only:
            keys.get(name)  # notes any other value
    keys.refuse(source)
    biased = frozenset(role for role in has_bias if has_bias[role])
    return ConfigFacts(config, family, tied, biased, names, text is not None)


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
        keys.wrong(
            f"num_key_value_heads: {kv_heads} does not divide {heads} attention heads"
        )
    if not divides:
        keys.wrong(
            f"{keys.spelling('num_attention_heads')}: {heads} does not divide {hidden}"
        )
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
    keys.wrong(
        f"{keys.spelling('activation')}: {shown(name)} is not one of {', '.join(known)}"
    )
    return "relu"
