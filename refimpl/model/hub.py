"""From `config.json` to a `Config`: old and new spellings, and a refusal of what is not understood."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from refimpl.errors import RefimplError
from refimpl.model.config import BlockKind, Config, Rope
from refimpl.model.families import FAMILIES, Family

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

# Keys that no inference-time number depends on.
IRRELEVANT = frozenset(
    ["architectures", "model_type", "transformers_version", "_name_or_path", "torch_dtype", "dtype", "auto_map", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "initializer_range", "init_std", "initializer_factor", "pretraining_tp", "attention_dropout", "hidden_dropout", "dropout", "activation_dropout", "classifier_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "layerdrop", "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "reorder_and_upcast_attn", "n_ctx", "prefix", "output_attentions", "output_hidden_states", "return_dict", "torchscript", "use_bfloat16", "pruned_heads", "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "id2label", "label2id", "problem_type", "finetuning_task", "tokenizer_class", "task_specific_params", "gradient_checkpointing", "cache_implementation", "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "num_return_sequences", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "remove_invalid_values", "exponential_decay_length_penalty", "diversity_penalty", "encoder_no_repeat_ngram_size", "num_beam_groups", "output_scores", "return_dict_in_generate", "tf_legacy_loss", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "is_llama_config", "original_max_position_embeddings", "unsloth_fixed", "unsloth_version"]
)


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


class Keys:
    """The keys of one `config.json`: remembers which were read, collects what is wrong."""

    def __init__(self, given: Mapping[str, Any], family: Family) -> None:
        self.given, self.family = given, family
        self.read: set[str] = set()
        self.problems: list[str] = []

    def get(self, key: str, *other_spellings: str) -> Any:
        """Value of a key under any of its spellings, else the family's default, else None."""
        spellings = (self.family.keys.get(key, key), *other_spellings)
        self.read.update(spellings)
        for spelling in spellings:
            if spelling in self.given:
                return self.given[spelling]
        if key not in self.family.defaults:
            return None
        return self.family.defaults[key]

    def number(self, key: str, *other_spellings: str, integer: bool = False) -> Any:
        """A positive number; anything else is noted as a problem and read as 1."""
        value = self.get(key, *other_spellings)
        kinds = (int,) if integer else (int, float)
        if isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < float("inf"):
            return value
        wanted = "a positive integer" if integer else "a positive number"
        name = self.family.keys.get(key, key)
        got = "it is missing" if value is None else f"got {value!r}"
        self.problems.append(f"{name}: expected {wanted}, {got}")
        return 1

    def unread(self) -> list[str]:
        """Problems with keys that nothing read and that are not known to be irrelevant."""
        return [
            f"{key}: not understood (value {value!r})"
            for key, value in self.given.items()
            if key not in self.read | IRRELEVANT and value not in (None, False, [], {})
        ]


def read_config(given: Mapping[str, Any]) -> HubModel:
    """Turn a parsed `config.json` into a `Config`, and what the file's tensors must be.

    Args:
        given: The parsed file.

    Returns:
        The configuration, its family, and which optional tensors exist.

    Raises:
        RefimplError: Multimodal, quantised or unknown families; keys that are missing, wrong or
            not understood, all of them at once.
    """
    family = _family(given)
    keys = Keys(given, family)
    hidden = keys.number("hidden_size", integer=True)
    heads = keys.number("num_attention_heads", integer=True)
    kv_heads = (
        heads
        if keys.get("num_key_value_heads") is None
        else keys.number("num_key_value_heads", integer=True)
    )
    if heads % kv_heads:
        keys.problems.append(
            f"num_key_value_heads: {kv_heads} does not divide num_attention_heads {heads}"
        )
    if keys.get("head_dim") is not None:
        head_dim = keys.number("head_dim", integer=True)
    else:
        head_dim = max(hidden // heads, 1)
        if hidden % heads:
            keys.problems.append(
                f"num_attention_heads: {heads} does not divide hidden_size {hidden}"
            )
    inner = keys.get("intermediate_size")
    inner = (
        4 * hidden
        if inner is None and family.model_type == "gpt2"
        else keys.number("intermediate_size", integer=True)
    )
    if keys.get("word_embed_proj_dim") not in (None, hidden):
        keys.problems.append("word_embed_proj_dim: projected embeddings are not supported")
    activation = keys.get("activation", "hidden_act")
    if activation not in ACTIVATION_NAMES:
        keys.problems.append(
            f"{family.keys['activation']}: {activation!r} is not one of "
            f"{', '.join(ACTIVATION_NAMES)}"
        )
    for key, value in family.only.items():
        if keys.get(key) != value:
            keys.problems.append(f"{key}: only {value!r} is supported, got {keys.get(key)!r}")
    for key in {value for value in family.biased.values() if isinstance(value, str)}:
        if not isinstance(keys.get(key), bool):
            keys.problems.append(f"{key}: expected true or false, got {keys.get(key)!r}")
    tied = keys.get("tie_word_embeddings")
    if not isinstance(tied, bool):
        keys.problems.append(f"tie_word_embeddings: expected true or false, got {tied!r}")
    scalar = (
        keys.number("query_pre_attn_scalar")
        if "query_pre_attn_scalar" in (family.defaults)
        else head_dim
    )

    def cap(key: str) -> float | None:
        return None if keys.get(key) is None else float(keys.number(key))

    config = Config(
        family=family.model_type,
        vocab_size=keys.number("vocab_size", integer=True),
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=keys.number("max_position_embeddings", integer=True),
        norm=family.norm,
        norm_eps=keys.number("norm_eps"),
        activation=ACTIVATION_NAMES.get(activation, "relu"),
        gated="gate_proj" in family.names,
        attention_scale=scalar**-0.5,
        blocks=_block_kinds(keys, head_dim),
        parallel_residual=bool(keys.get("use_parallel_residual")),
        attn_soft_cap=cap("attn_logit_softcapping"),
        final_soft_cap=cap("final_logit_softcapping"),
        embed_scale=sqrt(hidden) if family.scaled_embedding else 1.0,
        position_offset=family.position_offset or 0,
    )
    if problems := keys.problems + keys.unread():
        raise RefimplError(
            "config.json does not describe a model that can be computed exactly:\n  "
            + "\n  ".join(problems),
            f"the keys of transformers' {family.model_type} configuration",
            "correct the keys above, or open an issue naming the model if a key matters to it",
        )
    biased = frozenset(
        role
        for role, rule in family.biased.items()
        if (keys.get(rule) if isinstance(rule, str) else rule)
    )
    return HubModel(config, family, tied, biased)


def _family(given: Mapping[str, Any]) -> Family:
    """The family of a config, or the reason why there is none."""
    if "quantization_config" in given or "quantization" in given:
        raise RefimplError(
            "config.json describes a quantised checkpoint",
            "weights in F32, F16, BF16 or F64",
            "de-quantise it (transformers: model.dequantize().save_pretrained(DIR)) or use the "
            "original checkpoint",
        )
    model_type = given.get("model_type")
    if {"text_config", "vision_config", "audio_config"} & given.keys():
        raise RefimplError(
            f"config.json describes a multimodal model ({model_type})",
            "a text-only decoder",
            "save its language model alone (transformers: model.language_model.save_pretrained(DIR))",
        )
    if model_type is None:
        raise RefimplError(
            "config.json has no model_type",
            f"one of {', '.join(FAMILIES)}",
            "add model_type to config.json; it is never guessed from names",
        )
    if model_type not in FAMILIES:
        raise RefimplError(
            f"unknown model family {model_type!r}",
            f"one of {', '.join(FAMILIES)}",
            "use a model of one of these families, or add the family (a few lines in "
            "refimpl/model/families.py)",
        )
    return FAMILIES[model_type]


def _block_kinds(keys: Keys, head_dim: int) -> tuple[BlockKind, ...]:
    """Window and rotary positions of every block."""
    num_blocks = keys.number("num_hidden_layers", integer=True)
    slides = _slides(keys, num_blocks)
    window = keys.number("sliding_window", integer=True) if any(slides) else None
    rope = {sliding: _rope(keys, sliding, head_dim) for sliding in (False, True)}
    return tuple(BlockKind(window if sliding else None, rope[sliding]) for sliding in slides)


def _slides(keys: Keys, num_blocks: int) -> list[bool]:
    """Whether each block sees a window only, from `layer_types` or the family's older rule."""
    rule = keys.family.windows
    pattern = keys.get("sliding_window_pattern", "_sliding_window_pattern")
    lowest, used = keys.get("max_window_layers"), keys.get("use_sliding_window")
    types = keys.get("layer_types")
    if rule == "none" or keys.get("sliding_window") is None or (rule == "above" and not used):
        return [False] * num_blocks
    if types is not None and rule != "all":
        known = {"sliding_attention": True, "full_attention": False}
        if len(types) != num_blocks or not set(types) <= known.keys():
            keys.problems.append(
                f"layer_types: expected {num_blocks} entries out of {', '.join(known)}, got {types}"
            )
            return [False] * num_blocks
        return [known[name] for name in types]
    if rule == "all":
        return [True] * num_blocks
    if rule == "even":
        return [i % 2 == 0 for i in range(num_blocks)]
    if rule == "above":
        return [i >= lowest for i in range(num_blocks)]
    return [(i + 1) % pattern != 0 for i in range(num_blocks)]


def _rope(keys: Keys, sliding: bool, head_dim: int) -> Rope | None:
    """Rotary positions of the sliding or the full blocks; None where positions are learned."""
    if keys.family.position_offset is not None:
        return None
    theta = keys.get("rope_theta", "rotary_emb_base")
    partial = keys.get("partial_rotary_factor", "rotary_pct")
    local = keys.get("rope_local_base_freq")
    scaling = dict(keys.get("rope_scaling") or {})
    given = dict(keys.get("rope_parameters") or {})
    kind = "sliding_attention" if sliding else "full_attention"
    if isinstance(given.get(kind), Mapping):
        scaling, given = dict(given[kind]), {}
    elif given:
        scaling = given
    elif sliding and local is not None:
        scaling = {}
    theta = scaling.pop("rope_theta", local if sliding and local is not None else theta)
    rotary_dim = int(head_dim * scaling.pop("partial_rotary_factor", partial))
    name = scaling.pop("rope_type", scaling.pop("type", "default"))
    scaling.pop("type", None)
    wanted = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor")
        + ("original_max_position_embeddings",),
    }
    where = "rope_parameters" if "rope_parameters" in keys.given else "rope_scaling"
    if name not in wanted:
        keys.problems.append(f"{where}: type {name!r} is not one of {', '.join(wanted)}")
        return None
    values = {key: scaling.pop(key, None) for key in wanted[name]}
    for key, value in values.items():
        if not isinstance(value, int | float) or value <= 0:
            keys.problems.append(
                f"{where}: {key} of {name} must be a positive number, got {value!r}"
            )
            return None
    if extra := {key: value for key, value in scaling.items() if value is not None}:
        keys.problems.append(f"{where}: not understood: {extra}")
    if not isinstance(theta, int | float) or theta <= 0 or rotary_dim < 2 or rotary_dim % 2:
        keys.problems.append(f"{where}: theta {theta!r} or rotary channels {rotary_dim} unusable")
        return None
    return Rope(float(theta), rotary_dim, name, **values)
