"""The architectures of GGUF files: their families, what they call things, what they rearrange."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.gguf.derived_facts import (
    CAPS,
    HEADS,
    KV_HEADS,
    LOCAL_BASE,
    NEXTN,
    STATE,
    WINDOW,
    XIELU,
    Facts,
    Tensors,
    by_head,
    deepseek,
    falcon,
    falcon_h1,
    gemma4,
    granite_hybrid,
    nemotron_h,
)

# llama.cpp's names of our roles' tensors: of some with all that follows, of most before a suffix.
NAMES = {
    "embed": "token_embd", "pos_embed": "position_embd", "embed_norm": "token_embd_norm",
    "final_norm": "output_norm", "lm_head": "output", "block_embed": "per_layer_token_embd",
    "attn_norm": "attn_norm", "attn_post_norm": "post_attention_norm", "mlp_norm": "ffn_norm",
    "mlp_post_norm": "post_ffw_norm", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
    "q_width_norm": "attn_q_norm", "k_width_norm": "attn_k_norm",
    "q_rope_norm": "attn_q_norm", "k_rope_norm": "attn_k_norm",
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    "router": "ffn_gate_inp", "shared_expert.gate": "ffn_gate_inp_shexp",
    "sinks": "attn_sinks.weight", "router.correction": "exp_probs_b.bias",
    "router.scale": "ffn_gate_inp.scale", "router.expert_scale": "ffn_down_exps.scale",
    "experts_norm": "pre_ffw_norm_2", "dense_norm": "post_ffw_norm_1",
    "routed_norm": "post_ffw_norm_2", "block_scale": "layer_output_scale.weight",
    "block_embed_stream": "per_layer_model_proj", "block_embed_stream_norm": "per_layer_proj_norm",
    "block_embed_gate": "inp_gate", "block_embed_proj": "proj",
    "block_embed_post_norm": "post_norm",
    "in_proj_z": "attn_gate", "in_proj_b": "ssm_beta", "in_proj_a": "ssm_alpha",
    "conv": "ssm_conv1d", "state_norm": "ssm_norm", "out_proj": "ssm_out",
    "A_log": "ssm_a", "D": "ssm_d", "dt_bias": "ssm_dt.bias",
    "q_a_proj": "attn_q_a", "q_a_norm": "attn_q_a_norm", "q_b_proj": "attn_q_b",
    "kv_a_proj": "attn_kv_a_mqa", "kv_a_norm": "attn_kv_a_norm", "kv_b_proj": "attn_kv_b",
}  # fmt: skip
NAMES |= {  # all experts of a block are one tensor, [E, out, in]
    f"{of}.{x}_proj": f"ffn_{x}_{theirs}"
    for of, theirs in (("experts", "exps"), ("shared_expert", "shexp"))
    for x in ("gate", "up", "down")
}
EXPERT_STACKS = [NAMES[f"experts.{x}_proj"] for x in ("gate", "up", "down")]
# Where several roles are one tensor in the file, too, or fewer than theirs, by the first of them
FUSED = {
    "q_proj": "attn_qkv", "gate_proj": "ffn_up", "experts.gate_proj": "ffn_gate_up_exps",
    "in_proj_q": "attn_qkv", "in_proj_z": "ssm_in", "in_proj_b": "ssm_ba",
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp: its family, and what its files say and hold otherwise."""

    model_type: str
    hub_class: str  # transformers' class, for `architectures` in `config.json`
    # Beside `KEYS`, without a prefix; "": of no importance
    keys: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()  # those of `keys` that files may lack
    # By role (of fused ones the first): an `arrangement` of `GgufTensor`
    arranged: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)  # of roles, where they differ from ours
    scaling: Mapping[str, Any] = field(default_factory=dict)  # beside the file's, which it needs
    # Entries of `config.json` that the file does not hold, as llama.cpp computes them
    fixed: Mapping[str, object] = field(default_factory=dict)
    multiplied: bool = False  # whether its weights contain the factors of the model's `config.json`
    lists_windows: bool = False  # whether a file with a window says which blocks slide
    # Entries that follow from several facts, which it may change, and tensors
    variant: Callable[[Facts, Tensors], dict[str, Any]] = lambda facts, tensors: {}

    def like(self, model_type: str, hub_class: str, **changes: Any) -> "Architecture":
        """The same for another family, with some changes."""
        return replace(self, model_type=model_type, hub_class=hub_class, **changes)


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
    "context_length", "embedding_length", "block_count", "attention.head_count",
)  # fmt: skip
PAIRED, IN_TURN = {"q_proj": "paired", "k_proj": "paired"}, {"q_proj": "in turn"}

LLAMA = Architecture("llama", "LlamaForCausalLM", arranged=PAIRED)
GEMMA2 = Architecture(
    "gemma2",
    "Gemma2ForCausalLM",
    {WINDOW: "sliding_window", **{cap: cap for cap in CAPS}},
    optional=(WINDOW, *CAPS),
)  # fmt: skip
GRANITE = LLAMA.like(
    "granite",
    "GraniteForCausalLM",
    keys={
        "embedding_scale": "embed_scale", "attention.scale": "attention_scale",
        "residual_scale": "residual_scale", "logit_scale": "logit_divisor",
    },
)  # fmt: skip
COHERE = Architecture("cohere", "CohereForCausalLM", {"logit_scale": "logit_scale"})
EXPERTS_ONLY = {"expert_feed_forward_length": "intermediate_size"}
POST_NORM = {"mlp_norm": "post_attention_norm"}
MIXTRAL = LLAMA.like("mixtral", "MixtralForCausalLM")
QWEN2, QWEN3 = (Architecture(f"qwen{i}", f"Qwen{i}ForCausalLM") for i in (2, 3))
# Of positions in pictures: a token of text has the same position in each
SECTIONS = {"rope.dimension_sections": "", "n_deepstack_layers": ""}
NORMALISED, PLAIN = ({"norm_topk_prob": flag} for flag in (True, False))
SHORT = {
    "conv": "shortconv.conv", "in_proj": "shortconv.in_proj", "out_proj": "shortconv.out_proj",
    "final_norm": "token_embd_norm",
}  # fmt: skip
ROUTING = {  # optional, with llama.cpp's values of what a file lacks
    "expert_weights_norm": "norm_topk_prob", "expert_weights_scale": "routed_scaling_factor",
    "expert_group_count": "n_group", "expert_group_used_count": "topk_group", NEXTN: "",
}  # fmt: skip
LEADING = {"leading_dense_block_count": "first_k_dense_replace"}
UNROUTED = {"norm_topk_prob": False, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1}
DELTA = Architecture(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    {
        "ssm.conv_kernel": "linear_conv_kernel_dim", "ssm.state_size": "linear_key_head_dim",
        "ssm.group_count": "linear_num_key_heads", HEADS: "linear_num_value_heads",
        STATE: "linear_value_head_dim", "full_attention_interval": "full_attention_interval",
        NEXTN: "", **SECTIONS,
    },
    optional=("full_attention_interval", NEXTN, *SECTIONS),
    arranged=dict.fromkeys(("in_proj_q", "in_proj_z", "in_proj_b", "in_proj_a"), "tiled")
    | dict.fromkeys(("conv", "dt_bias", "A_log"), "tiled") | {"out_proj": "tiled columns"},
    names=POST_NORM | {"q_proj": "attn_q"},
    variant=by_head,
)  # fmt: skip
SPACE = {
    "ssm.conv_kernel": "mamba_d_conv", "ssm.state_size": "mamba_d_state",
    "ssm.group_count": "mamba_n_groups", HEADS: "mamba_n_heads", STATE: "mamba_d_head",
}  # fmt: skip
GLM4_MOE = Architecture(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    {"expert_shared_count": "n_shared_experts", **LEADING, **ROUTING, **SECTIONS},
    optional=(*LEADING, *ROUTING, *SECTIONS),
    names=POST_NORM,
    fixed={"first_k_dense_replace": 0, **UNROUTED},
)
DEEPSEEK2 = GLM4_MOE.like(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    keys={
        **GLM4_MOE.keys, "rope.dimension_count": "",
        "attention.kv_lora_rank": "kv_lora_rank", "attention.q_lora_rank": "q_lora_rank",
    },
    optional=(*GLM4_MOE.optional, "attention.q_lora_rank"),
    names={},
    fixed={**GLM4_MOE.fixed, "q_lora_rank": None, "topk_method": "group_limited_greedy"},
    variant=deepseek,
)  # fmt: skip
DEEPSEEK3 = DEEPSEEK2.like(
    "deepseek_v3", "DeepseekV3ForCausalLM", fixed={**GLM4_MOE.fixed, "q_lora_rank": None}
)
SHARED = {
    WINDOW: "sliding_window", "final_logit_softcapping": "final_logit_softcapping",
    "embedding_length_per_layer_input": "hidden_size_per_layer_input",
    "attention.shared_kv_layers": "num_kv_shared_layers",
}  # fmt: skip
NEMOTRON_H = Architecture(
    "nemotron_h",
    "NemotronHForCausalLM",
    {**SPACE, "expert_shared_count": "n_shared_expert", **ROUTING},
    optional=("expert_count", "expert_used_count", "expert_shared_count", *ROUTING),
    names={"mlp_norm": "attn_norm"},
    fixed={**UNROUTED, "time_step_min": 0.0},  # llama.cpp has no lower limit
    variant=nemotron_h,
)
ARCHITECTURES = {
    "qwen35": DELTA,
    "qwen35moe": DELTA.like("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM"),
    "qwen3next": DELTA.like(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        arranged={},
        names={**DELTA.names, "in_proj_q": "attn_qkv attn_gate"},
        fixed=NORMALISED,
    ),
    "glm4moe": GLM4_MOE,
    "deepseek2": DEEPSEEK2,
    "gemma4": Architecture(
        "gemma4_text",
        "Gemma4ForCausalLM",
        {
            **SHARED, "rope.freq_base": "", LOCAL_BASE: "", "expert_used_count": "top_k_experts",
            "attention.key_length_swa": "", "attention.value_length_swa": "",
        },
        optional=("final_logit_softcapping", "attention.shared_kv_layers", "expert_used_count"),
        fixed={"final_logit_softcapping": None, "num_kv_shared_layers": 0},
        lists_windows=True,
        variant=gemma4,
    ),
    "apertus": Architecture("apertus", "ApertusForCausalLM", dict.fromkeys(XIELU, "")),
    "granitehybrid": GRANITE.like(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        keys={**GRANITE.keys, **SPACE},
        optional=("expert_count", "expert_used_count"),
        fixed={"shared_intermediate_size": 0},
        variant=granite_hybrid,
    ),
    "nemotron_h": NEMOTRON_H,
    "nemotron_h_moe": NEMOTRON_H,
    "falcon-h1": Architecture(
        "falcon_h1",
        "FalconH1ForCausalLM",
        SPACE,
        names={"mlp_norm.weight": "ffn_norm"},
        fixed={"mamba_norm_before_gate": False},
        multiplied=True,
        variant=falcon_h1,
    ),
    "falcon": Architecture(
        "falcon",
        "FalconForCausalLM",
        {"tensor_data_layout": ""},
        optional=("tensor_data_layout",),
        arranged=IN_TURN,
        names={"attn_norm": "attn_norm_2", "mlp_norm": "attn_norm"},
        variant=falcon,
    ),
    "bloom": Architecture("bloom", "BloomForCausalLM", {KV_HEADS: ""}, arranged=IN_TURN),
    "mpt": Architecture(
        "mpt",
        "MptForCausalLM",
        {"attention.clamp_kqv": "qkv_limit", "attention.max_alibi_bias": "alibi_bias_max"},
        optional=("attention.clamp_kqv",),
    ),
    "lfm2moe": Architecture(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        {"shortconv.l_cache": "conv_taps", **LEADING},
        names=SHORT,
        fixed=NORMALISED,
    ),
    "llama": LLAMA,
    "qwen2moe": Architecture("qwen2_moe", "Qwen2MoeForCausalLM", fixed=PLAIN),
    "qwen3moe": Architecture("qwen3_moe", "Qwen3MoeForCausalLM", fixed=NORMALISED),
    "olmoe": Architecture("olmoe", "OlmoeForCausalLM", fixed=PLAIN),
    "granitemoe": GRANITE.like("granitemoe", "GraniteMoeForCausalLM"),
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "qwen2vl": replace(QWEN2, keys=SECTIONS, optional=(*SECTIONS,)),
    "qwen3vl": replace(QWEN3, keys=SECTIONS, optional=(*SECTIONS,)),
    "smollm3": LLAMA.like("smollm3", "SmolLM3ForCausalLM"),
    "granite": GRANITE,
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM"),
    "olmo": LLAMA.like(
        "olmo",
        "OlmoForCausalLM",
        keys={"attention.clamp_kqv": "qkv_limit"},
        optional=("attention.clamp_kqv",),
    ),
    "arcee": LLAMA.like("arcee", "ArceeForCausalLM"),
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
        fixed={"sliding_window": None},
        lists_windows=True,
    ),
    "glm4": Architecture("glm4", "Glm4ForCausalLM"),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM"),
    "lfm2": Architecture(
        "lfm2",
        "Lfm2ForCausalLM",
        {"shortconv.l_cache": "conv_taps"},
        names=SHORT,
        fixed={"block_auto_adjust_ff_dim": False},
    ),
    "starcoder2": Architecture("starcoder2", "Starcoder2ForCausalLM"),
    "command-r": COHERE,
    "cohere2": COHERE.like(
        "cohere2", "Cohere2ForCausalLM", keys={**COHERE.keys, WINDOW: "sliding_window"}
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
    "nemotron": Architecture("nemotron", "NemotronForCausalLM"),
    "phi2": Architecture("phi", "PhiForCausalLM"),
    "gemma": Architecture("gemma", "GemmaForCausalLM"),
    "gemma2": GEMMA2,
    "gemma3": GEMMA2.like(
        "gemma3_text",
        "Gemma3ForCausalLM",
        keys={**GEMMA2.keys, LOCAL_BASE: "rope_local_base_freq"},
        optional=(LOCAL_BASE, *CAPS),
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
        arranged=IN_TURN,
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
    if metadata.get("llama.expert_count"):
        return MIXTRAL
    if name == "deepseek2":  # as in llama.cpp: what says nothing is V2, but for two sizes of GLM
        blocks, rows = (metadata.get(f"{name}.{x}") for x in ("block_count", "vocab_size"))
        glm = blocks in (47, 48) and rows == 154880
        if metadata.get(f"{name}.expert_gating_func", 1 + glm) == 2:  # by sigmoid
            return DEEPSEEK3
    return ARCHITECTURES[name]
