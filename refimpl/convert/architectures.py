"""The architectures of GGUF files: their families, and what their metadata calls things."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

ATTENTION_CAP, FINAL_CAP = "attn_logit_softcapping", "final_logit_softcapping"

Facts = dict[str, Any]  # of a file's metadata


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp: its family, and what its files say beside `KEYS`."""

    model_type: str
    hub_class: str  # in transformers
    keys: Mapping[str, str] = field(default_factory=dict)  # our names; "" if nothing needs one
    # Entries of `config.json` as llama.cpp computes them; of `keys`, if a file lacks them
    fixed: Mapping[str, object] = field(default_factory=dict)
    paired: bool = False  # whether channels of q and k that rotate together are neighbours

    def like(self, model_type: str, hub_class: str, **changes: Any) -> "Architecture":
        """The same for another family, with some changes."""
        return replace(self, model_type=model_type, hub_class=hub_class, **changes)


KEYS = {  # of every architecture
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "rope.freq_base": "rope_theta",
    "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    # With padding or not; of norms that a model lacks
    "vocab_size": "", "attention.layer_norm_rms_epsilon": "", "attention.layer_norm_epsilon": "",
}  # fmt: skip
SLIDING = {"attention.sliding_window": "sliding_window"}
LLAMA = Architecture("llama", "LlamaForCausalLM", paired=True)
MIXTRAL = LLAMA.like("mixtral", "MixtralForCausalLM")
QWEN2 = Architecture("qwen2", "Qwen2ForCausalLM")
QWEN3 = Architecture("qwen3", "Qwen3ForCausalLM")
COHERE = Architecture("cohere", "CohereForCausalLM", {"logit_scale": "logit_scale"})
PARALLEL = {"use_parallel_residual": "use_parallel_residual"}
CAPS = {**SLIDING, ATTENTION_CAP: ATTENTION_CAP, FINAL_CAP: FINAL_CAP}
GRANITE_SCALES = {
    "embedding_scale": "embed_scale", "attention.scale": "attention_scale",
    "residual_scale": "residual_scale", "logit_scale": "logit_divisor",
}  # fmt: skip
GRANITE = LLAMA.like("granite", "GraniteForCausalLM", keys=GRANITE_SCALES)
ARCHITECTURES = {
    "llama": LLAMA,
    "smollm3": LLAMA.like("smollm3", "SmolLM3ForCausalLM"),
    "arcee": LLAMA.like("arcee", "ArceeForCausalLM"),
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "qwen2moe": QWEN2.like("qwen2_moe", "Qwen2MoeForCausalLM", fixed={"norm_topk_prob": False}),
    "qwen3moe": QWEN3.like("qwen3_moe", "Qwen3MoeForCausalLM", fixed={"norm_topk_prob": True}),
    "gemma": Architecture("gemma", "GemmaForCausalLM"),
    "gemma2": Architecture(
        "gemma2", "Gemma2ForCausalLM", CAPS,
        {"sliding_window": 4096, ATTENTION_CAP: 50.0, FINAL_CAP: 30.0},
    ),
    "gemma3": Architecture(
        "gemma3_text", "Gemma3ForCausalLM", {**CAPS, "rope.freq_base_swa": "rope_local_base_freq"},
        {"rope_local_base_freq": 10000.0, "_sliding_window_pattern": 6, ATTENTION_CAP: None,
         FINAL_CAP: None},
    ),
    "granite": GRANITE,
    "granitemoe": GRANITE.like("granitemoe", "GraniteMoeForCausalLM"),
    "nemotron": Architecture("nemotron", "NemotronForCausalLM"),
    "command-r": COHERE,
    "cohere2": COHERE.like("cohere2", "Cohere2ForCausalLM", keys={**COHERE.keys, **SLIDING}),
    "ernie4_5": Architecture("ernie4_5", "Ernie4_5ForCausalLM"),
    "exaone": Architecture("exaone", "ExaoneForCausalLM"),
    "glm4": Architecture("glm4", "Glm4ForCausalLM"),
    "gpt2": Architecture("gpt2", "GPT2LMHeadModel"),
    "gptneox": Architecture("gpt_neox", "GPTNeoXForCausalLM", PARALLEL),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM"),
    "olmoe": Architecture("olmoe", "OlmoeForCausalLM", fixed={"norm_topk_prob": False}),
    "phi2": Architecture("phi", "PhiForCausalLM"),
    "phi3": Architecture(
        "phi3", "Phi3ForCausalLM", {**SLIDING, "rope.scaling.original_context_length": ""},
        {"sliding_window": None},
    ),
    "stablelm": Architecture("stablelm", "StableLmForCausalLM", PARALLEL),
    "starcoder2": Architecture("starcoder2", "Starcoder2ForCausalLM"),
}  # fmt: skip
