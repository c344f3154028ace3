"""From the metadata of a GGUF file to the `config.json` of its family."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refimpl.loading.families import FAMILIES, Family
from refimpl.model.position_tables import Rope

ATTENTION_CAP, FINAL_CAP = "attn_logit_softcapping", "final_logit_softcapping"

Facts = dict[str, Any]  # of a file's metadata


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp: its family, and what its files say beside `COMMON_KEYS`."""

    model_type: str
    hub_class: str  # in transformers
    keys: Mapping[str, str] = field(
        default_factory=dict
    )  # our names; "" if nothing needs one
    # Entries of `config.json` as llama.cpp computes them; of `keys`, if a file lacks them
    fixed: Mapping[str, object] = field(default_factory=dict)
    # whether channels of q and k that rotate together are neighbours
    paired: bool = False

    def like(self, model_type: str, hub_class: str, **changes: Any) -> "Architecture":
        """The same for another family, with some changes."""
        return replace(self, model_type=model_type, hub_class=hub_class, **changes)


COMMON_KEYS = {  # of every architecture
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "rope.freq_base": "rope_theta",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    # With padding or not; of norms that a model lacks
    "vocab_size": "",
    "attention.layer_norm_rms_epsilon": "",
    "attention.layer_norm_epsilon": "",
}
SLIDING = {"attention.sliding_window": "sliding_window"}
_LLAMA = Architecture("llama", "LlamaForCausalLM", paired=True)
_MIXTRAL = _LLAMA.like("mixtral", "MixtralForCausalLM")
_QWEN2 = Architecture("qwen2", "Qwen2ForCausalLM")
_QWEN3 = Architecture("qwen3", "Qwen3ForCausalLM")
_COHERE = Architecture("cohere", "CohereForCausalLM", {"logit_scale": "logit_scale"})
PARALLEL = {"use_parallel_residual": "use_parallel_residual"}
CAPS = {**SLIDING, ATTENTION_CAP: ATTENTION_CAP, FINAL_CAP: FINAL_CAP}
GRANITE_SCALES = {
    "embedding_scale": "embed_scale",
    "attention.scale": "attention_scale",
    "residual_scale": "residual_scale",
    "logit_scale": "logit_divisor",
}
_GRANITE = _LLAMA.like("granite", "GraniteForCausalLM", keys=GRANITE_SCALES)
ARCHITECTURES = {
    "llama": _LLAMA,
    "smollm3": _LLAMA.like("smollm3", "SmolLM3ForCausalLM"),
    "arcee": _LLAMA.like("arcee", "ArceeForCausalLM"),
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "qwen2moe": _QWEN2.like(
        "qwen2_moe", "Qwen2MoeForCausalLM", fixed={"norm_topk_prob": False}
    ),
    "qwen3moe": _QWEN3.like(
        "qwen3_moe", "Qwen3MoeForCausalLM", fixed={"norm_topk_prob": True}
    ),
    "gemma": Architecture("gemma", "GemmaForCausalLM"),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        CAPS,
        {"sliding_window": 4096, ATTENTION_CAP: 50.0, FINAL_CAP: 30.0},
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**CAPS, "rope.freq_base_swa": "rope_local_base_freq"},
        {
            "rope_local_base_freq": 10000.0,
            "_sliding_window_pattern": 6,
            ATTENTION_CAP: None,
            FINAL_CAP: None,
        },
    ),
    "granite": _GRANITE,
    "granitemoe": _GRANITE.like("granitemoe", "GraniteMoeForCausalLM"),
    "nemotron": Architecture("nemotron", "NemotronForCausalLM"),
    "command-r": _COHERE,
    "cohere2": _COHERE.like(
        "cohere2", "Cohere2ForCausalLM", keys={**_COHERE.keys, **SLIDING}
    ),
    "ernie4_5": Architecture("ernie4_5", "Ernie4_5ForCausalLM"),
    "exaone": Architecture("exaone", "ExaoneForCausalLM"),
    "glm4": Architecture("glm4", "Glm4ForCausalLM"),
    "gpt2": Architecture("gpt2", "GPT2LMHeadModel"),
    "gptneox": Architecture("gpt_neox", "GPTNeoXForCausalLM", PARALLEL),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM"),
    "olmoe": Architecture("olmoe", "OlmoeForCausalLM", fixed={"norm_topk_prob": False}),
    "phi2": Architecture("phi", "PhiForCausalLM"),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        {**SLIDING, "rope.scaling.original_context_length": ""},
        {"sliding_window": None},
    ),
    "stablelm": Architecture("stablelm", "StableLmForCausalLM", PARALLEL),
    "starcoder2": Architecture("starcoder2", "Starcoder2ForCausalLM"),
}


SKIPPED_KEYS = (
    "general.",
    "tokenizer.",
    "split.",
    "quantize.",
    "GGUF.",
)  # beginnings of keys
NEEDED = ("context_length", "embedding_length", "block_count", "attention.head_count")
EPSILON = {
    "rms": "attention.layer_norm_rms_epsilon",
    "layer": "attention.layer_norm_epsilon",
}
ROPE_FACTORS = "rope_freqs.weight"
LLAMA3_ROPE = dict(
    low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
NEUTRAL = {
    "rope.scaling.attn_factor": 1,
    "rope.scaling.finetuned": True,
}  # they change nothing
PRESENT = {  # keys that are true if there is such a tensor
    "attention_bias": "attn_q.bias",
    "use_qkv_bias": "attn_q.bias",
    "mlp_bias": "ffn_up.bias",
    "use_bias": "attn_output.bias",
    "attention_out_bias": "attn_output.bias",
    "use_qk_norm": "attn_q_norm.weight",
}
LARGEST_GEMMAS = (
    ("gemma2", 46),
    ("gemma3_text", 62),
)  # their attention scale is of D / H


def architecture_of(metadata: Facts) -> Architecture:
    """The architecture of a file; Mixtral's files call theirs llama."""
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"the architecture {name!r} is none of {', '.join(ARCHITECTURES)}"
        )
    return _MIXTRAL if metadata.get("llama.expert_count") else ARCHITECTURES[name]


def config_entries(
    metadata: Facts, tensors: Mapping[str, Any], architecture: Architecture
) -> dict[str, Any]:
    """The entries of `config.json`, as the family spells them."""
    family, prefix = FAMILIES[architecture.model_type], metadata["general.architecture"]
    facts = {
        key.removeprefix(f"{prefix}."): float(str(np.float32(value)))
        if isinstance(value, float)  # its shortest decimals
        else value
        for key, value in metadata.items()
        if not key.startswith(SKIPPED_KEYS)
    }
    entries: dict[str, Any] = {"model_type": family.model_type}
    entries["architectures"] = [architecture.hub_class]
    own = (
        key
        for key, ours in architecture.keys.items()
        if ours not in ("", *architecture.fixed)
    )
    needed = {*NEEDED, EPSILON[family.norm], *own}
    if any("ffn_gate_inp" in name for name in tensors):
        needed |= {"expert_count", "expert_used_count"}
    problems = [f"{key}: missing" for key in sorted(needed - facts.keys())]
    values: dict[str, Any] = {**architecture.fixed}
    if "rope_theta" in family.keys:
        values["rope_theta"] = 10000.0  # llama.cpp's, whatever the family's
    for key, ours in {
        **COMMON_KEYS,
        **architecture.keys,
        EPSILON[family.norm]: "norm_eps",
    }.items():
        if (value := facts.pop(key, None)) is not None and ours:
            values[ours] = value
    if not values.get("sliding_window", 1):
        values["sliding_window"] = None
    values["vocab_size"] = tensors["token_embd.weight"].shape[0]
    values["tie_word_embeddings"] = "output.weight" not in tensors
    for key, part in PRESENT.items():
        if key in (*family.biased.values(), *family.optional.values()):
            values[key] = any(
                x.replace("_qkv.", "_q.").endswith(f".{part}") for x in tensors
            )
    entries |= {family.spelling(key): value for key, value in values.items()}
    for token in ("bos", "eos", "padding"):
        entries[f"{token[:3]}_token_id"] = metadata.get(
            f"tokenizer.ggml.{token}_token_id"
        )
    problems += _heads(entries, family, facts)
    problems += _scaling(entries, family, facts, tensors)
    unknown = {
        key: value for key, value in facts.items() if value != NEUTRAL.get(key, ...)
    }
    problems += [
        f"{key}: not understood (value {value!s:.80})" for key, value in unknown.items()
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return entries


def _heads(entries: dict[str, Any], family: Family, facts: Facts) -> Iterator[str]:
    """Enter what depends on the size of a head: channels, those that rotate, the scale."""
    key_length = facts.pop("attention.key_length", None)
    if facts.pop("attention.value_length", key_length) != key_length:
        yield "attention.value_length: differs from attention.key_length"
    rotary = facts.pop("rope.dimension_count", None)
    named = ("hidden_size", "num_attention_heads")
    hidden, heads = (entries.get(family.spelling(key)) for key in named)
    if not (isinstance(hidden, int) and isinstance(heads, int) and heads > 0):
        return  # which the family's reader refuses
    plain = hidden // heads
    fractions = family.keys.get("partial_rotary_factor")
    rotates_all = fractions is not None and bool(fractions.only)
    head_dim = key_length or (rotary if rotates_all else None) or plain
    if "head_dim" in family.keys:
        entries[family.spelling("head_dim")] = head_dim
    elif head_dim != plain:
        yield f"attention.key_length: expected {plain}, got {head_dim}"
    if rotary not in (None, head_dim):
        if fractions is None or rotates_all:
            yield f"rope.dimension_count: expected {head_dim}, got {rotary}"
        entries[family.spelling("partial_rotary_factor")] = rotary / head_dim
    if "query_pre_attn_scalar" in family.keys:
        largest = (
            family.model_type,
            entries.get("num_hidden_layers"),
        ) in LARGEST_GEMMAS
        entries["query_pre_attn_scalar"] = plain if largest else head_dim


def _scaling(
    entries: dict[str, Any], family: Family, facts: Facts, tensors: Mapping[str, Any]
) -> Iterator[str]:
    """Enter `rope_scaling`: linear, or Llama 3's if the file has its factors."""
    kind = facts.pop("rope.scaling.type", "linear")
    factor = facts.pop("rope.scaling.factor", 0) or 1.0  # as in llama.cpp
    if kind not in ("none", "linear"):
        yield f"rope.scaling.type: expected none or linear, got {kind}"
    if kind == "linear" and factor != 1:
        entries["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    if factors := tensors.get(ROPE_FACTORS):
        theta, channels = (
            entries[family.spelling(x)] for x in ("rope_theta", "head_dim")
        )
        stored = factors.array.astype(np.float64)
        llama3: dict[str, Any] = LLAMA3_ROPE | {"factor": float(stored.max())}
        right = (
            2 * stored.size == channels and 1 <= stored.min() <= stored.max() < np.inf
        )
        if right:
            plain, scaled = (
                Rope(theta, channels),
                Rope(theta, channels, "llama3", **llama3),
            )
            right = np.allclose(
                plain.inv_freq() / scaled.inv_freq(), stored, rtol=1e-5, atol=0
            )
        if "rope_scaling" in entries or not right:
            yield f"{ROPE_FACTORS}: not the factors of Llama 3's scaling alone"
        entries["rope_scaling"] = {"rope_type": "llama3"} | llama3
