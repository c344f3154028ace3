"""The architectures of GGUF files: their families, what they call things, what they rearrange."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError

# Our roles, and llama.cpp's names of their tensors.
OUTSIDE = {
    "embed": "token_embd", "pos_embed": "position_embd", "final_norm": "output_norm",
    "lm_head": "output",
}  # fmt: skip
IN_BLOCK = {
    "attn_norm": "attn_norm", "attn_post_norm": "post_attention_norm", "mlp_norm": "ffn_norm",
    "mlp_post_norm": "post_ffw_norm", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
    "q_width_norm": "attn_q_norm", "k_width_norm": "attn_k_norm",
    "q_rope_norm": "attn_q_norm", "k_rope_norm": "attn_k_norm",
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    "sinks": "attn_sinks", "router.correction": "exp_probs_b", "router": "ffn_gate_inp",
    "shared_expert.gate": "ffn_gate_inp_shexp",
    "conv": "shortconv.conv", "in_proj": "shortconv.in_proj", "out_proj": "shortconv.out_proj",
}  # fmt: skip
IN_BLOCK |= {  # all experts of a block are one tensor, [E, out, in]
    f"{of}.{x}_proj": f"ffn_{x}_{theirs}"
    for of, theirs in (("experts", "exps"), ("shared_expert", "shexp"))
    for x in ("gate", "up", "down")
}
EXPERT_STACKS = [IN_BLOCK[f"experts.{x}_proj"] for x in ("gate", "up", "down")]
# By the first of the fused roles
FUSED = {"q_proj": "attn_qkv", "gate_proj": "ffn_up", "experts.gate_proj": "ffn_gate_up_exps"}


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp: its family, and what its files say and hold otherwise."""

    model_type: str
    hub_class: str  # transformers' class, for `architectures` in `config.json`
    # Beside `KEYS`, without a prefix; "": of no importance
    keys: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()  # those of `keys` that files may lack
    # By role (of fused ones the first), and of all norm gains: an `arrangement` of `GgufTensor`
    arranged: Mapping[str, str] = field(default_factory=dict)
    norms: str = ""
    names: Mapping[str, str] = field(default_factory=dict)  # of roles, where they differ from ours
    scaling: Mapping[str, Any] = field(default_factory=dict)  # beside the file's, which it needs
    # Entries of `config.json` that the file does not hold, as llama.cpp computes them
    fixed: Mapping[str, object] = field(default_factory=dict)
    lists_windows: bool = False  # whether a file with a window says which blocks slide


KEYS = {  # of every architecture
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
}
EPSILON = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
NEEDED = (
    "context_length", "embedding_length", "block_count", "feed_forward_length",
    "attention.head_count",
)  # fmt: skip
WINDOW, CAPS = "attention.sliding_window", ("attn_logit_softcapping", "final_logit_softcapping")
PAIRED = {"q_proj": "paired", "k_proj": "paired"}

LLAMA = Architecture("llama", "LlamaForCausalLM", arranged=PAIRED)
GEMMA2 = Architecture(
    "gemma2",
    "Gemma2ForCausalLM",
    {WINDOW: "sliding_window", **{cap: cap for cap in CAPS}},
    optional=(WINDOW, *CAPS),
    norms="minus one",
)  # fmt: skip
GRANITE = replace(
    LLAMA,
    model_type="granite",
    hub_class="GraniteForCausalLM",
    keys={
        "embedding_scale": "embed_scale", "attention.scale": "attention_scale",
        "residual_scale": "residual_scale", "logit_scale": "logit_divisor",
    },
)  # fmt: skip
COHERE = Architecture("cohere", "CohereForCausalLM", {"logit_scale": "logit_scale"})
EXPERTS_ONLY = {"expert_feed_forward_length": "intermediate_size"}
POST_NORM = {"mlp_norm": "post_attention_norm"}
MIXTRAL = replace(LLAMA, model_type="mixtral", hub_class="MixtralForCausalLM")
QWEN2, QWEN3 = (Architecture(f"qwen{i}", f"Qwen{i}ForCausalLM") for i in (2, 3))
# Of positions in pictures: a token of text has the same position in each
SECTIONS = {"rope.dimension_sections": "", "n_deepstack_layers": ""}
NORMALISED, PLAIN = ({"norm_topk_prob": flag} for flag in (True, False))
ARCHITECTURES = {
    "llama": LLAMA,
    "qwen2moe": Architecture("qwen2_moe", "Qwen2MoeForCausalLM", fixed=PLAIN),
    "qwen3moe": Architecture("qwen3_moe", "Qwen3MoeForCausalLM", fixed=NORMALISED),
    "olmoe": Architecture("olmoe", "OlmoeForCausalLM", fixed=PLAIN),
    "granitemoe": replace(GRANITE, model_type="granitemoe", hub_class="GraniteMoeForCausalLM"),
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "qwen2vl": replace(QWEN2, keys=SECTIONS, optional=(*SECTIONS,)),
    "qwen3vl": replace(QWEN3, keys=SECTIONS, optional=(*SECTIONS,)),
    "smollm3": replace(LLAMA, model_type="smollm3", hub_class="SmolLM3ForCausalLM"),
    "granite": GRANITE,
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM"),
    "olmo": replace(
        LLAMA,
        model_type="olmo",
        hub_class="OlmoForCausalLM",
        keys={"attention.clamp_kqv": "qkv_limit"},
        optional=("attention.clamp_kqv",),
    ),
    "arcee": replace(LLAMA, model_type="arcee", hub_class="ArceeForCausalLM"),
    "seed_oss": Architecture("seed_oss", "SeedOssForCausalLM", names=POST_NORM),
    "ernie4_5": Architecture("ernie4_5", "Ernie4_5ForCausalLM"),
    "ernie4_5-moe": Architecture(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        {
            "leading_dense_block_count": "first_k_dense_replace",
            "interleave_moe_layer_step": "decoder_sparse_step",
            "expert_shared_count": "n_shared_experts",
            "expert_shared_feed_forward_length": "",  # the converter's is of other sizes
        },
        optional=("expert_shared_feed_forward_length",),
    ),
    "exaone": Architecture("exaone", "ExaoneForCausalLM"),
    "exaone4": Architecture(
        "exaone4",
        "Exaone4ForCausalLM",
        {WINDOW: "sliding_window"},
        optional=(WINDOW,),
        fixed={"sliding_window": None, "sliding_window_pattern": 1},  # none slides
        lists_windows=True,
    ),
    "glm4": Architecture("glm4", "Glm4ForCausalLM"),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM"),
    "lfm2": Architecture(
        "lfm2",
        "Lfm2ForCausalLM",
        {"shortconv.l_cache": "conv_taps"},
        names={"final_norm": "token_embd_norm"},
        fixed={"block_auto_adjust_ff_dim": False},
    ),
    "starcoder2": Architecture("starcoder2", "Starcoder2ForCausalLM"),
    "command-r": COHERE,
    "cohere2": replace(
        COHERE,
        model_type="cohere2",
        hub_class="Cohere2ForCausalLM",
        keys={**COHERE.keys, WINDOW: "sliding_window"},
    ),
    "stablelm": Architecture(
        "stablelm", "StableLmForCausalLM", {"use_parallel_residual": "use_parallel_residual"}
    ),
    "gpt-oss": Architecture(
        "gpt_oss",
        "GptOssForCausalLM",
        {WINDOW: "sliding_window", **EXPERTS_ONLY},
        names=POST_NORM,
        scaling={"truncate": False},
    ),
    "minimax-m2": Architecture("minimax_m2", "MiniMaxM2ForCausalLM", EXPERTS_ONLY),
    "nemotron": Architecture("nemotron", "NemotronForCausalLM", norms="minus one"),
    "phi2": Architecture("phi", "PhiForCausalLM"),
    "gemma": Architecture("gemma", "GemmaForCausalLM", norms="minus one"),
    "gemma2": GEMMA2,
    "gemma3": replace(
        GEMMA2,
        model_type="gemma3_text",
        hub_class="Gemma3ForCausalLM",
        keys={**GEMMA2.keys, "rope.freq_base_swa": "rope_local_base_freq"},
        optional=("rope.freq_base_swa", *CAPS),
        fixed={"rope_local_base_freq": 10000.0, "_sliding_window_pattern": 6},
    ),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        {
            WINDOW: "sliding_window",
            "rope.scaling.original_context_length": "original_max_position_embeddings",
        },
        optional=(WINDOW, "rope.scaling.original_context_length"),
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        arranged=dict.fromkeys(("q_proj", "o_proj", "up_proj", "down_proj"), "transposed"),
    ),
    "gptneox": Architecture(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        {"use_parallel_residual": "use_parallel_residual"},
        arranged={"q_proj": "by head"},
    ),
}  # fmt: skip


def architecture_of(metadata: Mapping[str, Any], path: Path) -> Architecture:
    """The architecture of a file; Mixtral's files call theirs llama."""
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise RefimplError(
            f"{path} has the architecture {name!r}",
            f"one of {', '.join(ARCHITECTURES)}",
            "use the original checkpoint in safetensors, if refimpl reads its family",
        )
    return MIXTRAL if metadata.get("llama.expert_count") else ARCHITECTURES[name]
