"""Mixtures of experts: Mixtral, Qwen, OLMoE, Granite, Phi, ERNIE, GLM, dots, gpt-oss, Llama 4."""

from dataclasses import replace

from refimpl.loading.families.family import (
    EXPERTS,
    MIXTURE,
    QK_NORM,
    STACKS,
    Location,
    biased,
    fused,
    separate,
    without,
)  # fmt: skip
from refimpl.loading.families.glm import ERNIE
from refimpl.loading.families.granite import GRANITE
from refimpl.loading.families.llama import LLAMA, MISTRAL, QWEN2

MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = without(LLAMA.names, *MLP)  # and norms


def shared(name: str) -> dict[str, Location]:
    """The linears of a shared expert."""
    return separate(**{f"shared_expert.{x}": f"layers.{{}}.mlp.{name}.{x}" for x in MLP})


MIXTRAL = replace(
    MISTRAL,
    model_type="mixtral",
    names=ATTENTION | separate(
        **{
            "router": "layers.{}.block_sparse_moe.gate",
            "experts.gate_proj": "layers.{}.block_sparse_moe.experts.{}.w1",
            "experts.up_proj": "layers.{}.block_sparse_moe.experts.{}.w3",
            "experts.down_proj": "layers.{}.block_sparse_moe.experts.{}.w2",
        }
    ),
    keys=LLAMA.keys | {"num_experts": "num_local_experts"},
    defaults=MISTRAL.defaults | MIXTURE | {
        "num_experts": 8, "num_experts_per_tok": 2, "norm_eps": 1e-5, "rope_theta": 1000000.0,
        "sliding_window": None,
    },
    scoring="softmax",
    stacks=STACKS | separate(router="layers.{}.mlp.gate"),
)  # fmt: skip

QWEN2_MOE = replace(
    QWEN2,
    model_type="qwen2_moe",
    names=LLAMA.names | EXPERTS | shared("shared_expert") | separate(
        **{"shared_expert.gate": "layers.{}.mlp.shared_expert_gate"}
    ),
    biased=biased("qkv_bias", "q", "k", "v"),
    defaults=QWEN2.defaults | MIXTURE | {
        "qkv_bias": True, "num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": False,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "num_key_value_heads": 16, "decoder_sparse_step": 1, "mlp_only_layers": None,
    },
    only=(*QWEN2.only, "use_sliding_window"),
    scoring="softmax",
    stacks=STACKS,
)  # fmt: skip

QWEN3_MOE = replace(
    QWEN2_MOE,
    model_type="qwen3_moe",
    names=LLAMA.names | QK_NORM | EXPERTS,
    biased=biased("attention_bias", "q", "k", "v", "o"),
    aliases={"num_local_experts": "num_experts"},
    defaults=QWEN2.defaults | MIXTURE | {
        "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": False,
        "moe_intermediate_size": 768, "num_key_value_heads": 4, "decoder_sparse_step": 1,
        "mlp_only_layers": None,
    },
)  # fmt: skip

OLMOE = replace(
    LLAMA,
    model_type="olmoe",
    names=ATTENTION | EXPERTS | separate(
        q_width_norm="layers.{}.self_attn.q_norm", k_width_norm="layers.{}.self_attn.k_norm"
    ),
    biased=biased("attention_bias", "q", "k", "v", "o"),
    keys=LLAMA.keys | {"qkv_limit": "clip_qkv"},
    defaults=LLAMA.defaults | MIXTURE | {
        "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False, "norm_eps": 1e-5,
        "qkv_limit": None, "max_position_embeddings": 4096,
    },
    scoring="softmax",
    stacks=STACKS,
)  # fmt: skip

GRANITE_MOE = replace(
    GRANITE,
    model_type="granitemoe",
    names=ATTENTION
    | separate(router="layers.{}.block_sparse_moe.router.layer")
    | fused(
        "layers.{}.block_sparse_moe.input_linear", "experts.gate_proj", "experts.up_proj",
        stacked=True,
    )
    | fused("layers.{}.block_sparse_moe.output_linear", "experts.down_proj", stacked=True),
    biased=biased("attention_bias", "q", "k", "v", "o"),
    keys=GRANITE.keys | {"num_experts": "num_local_experts"},
    defaults=GRANITE.defaults | MIXTURE | {"num_experts": 8, "num_experts_per_tok": 2},
    scoring="softmax",
)  # fmt: skip

PHIMOE = replace(
    MIXTRAL,
    model_type="phimoe",
    norm="layer",
    biased=biased("attention_bias", "q", "k", "v", "o") | {"lm_head": "lm_head_bias"},
    defaults=MIXTRAL.defaults | {
        "num_experts": 16, "router_jitter_noise": 0.01, "lm_head_bias": False,
    },
    scoring="sparsemixer",
)  # fmt: skip

ERNIE_MOE = replace(
    ERNIE,
    model_type="ernie4_5_moe",
    names=LLAMA.names | EXPERTS | shared("shared_experts") | fused(
        "layers.{}.mlp.moe_statics.e_score_correction_bias", "router.correction", stacked=True
    ),
    biased=ERNIE.biased | {"lm_head": "use_bias"}
    | dict.fromkeys((f"shared_expert.{x}" for x in MLP), "use_bias"),
    keys=ERNIE.keys | {
        "num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k",
        "n_shared_experts": "moe_num_shared_experts", "decoder_sparse_step": "moe_layer_interval",
        "first_k_dense_replace": "moe_layer_start_index",
    },
    defaults=ERNIE.defaults | MIXTURE | {
        "num_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2, "head_dim": None,
        "moe_intermediate_size": 1536, "first_k_dense_replace": 1, "moe_layer_end_index": -1,
        "decoder_sparse_step": 1, "moe_norm_min": 1e-12, "num_key_value_heads": 4,
    },
    scoring="softmax",
    stacks=STACKS,
)  # fmt: skip

GLM4_MOE = replace(
    LLAMA,
    model_type="glm4_moe",
    names=LLAMA.names | QK_NORM | EXPERTS | shared("shared_experts") | separate(
        **{"router.correction": "layers.{}.mlp.gate.e_score_correction_bias"}
    ),
    biased=biased("attention_bias", "q", "k", "v"),
    keys=LLAMA.keys | {"num_experts": "n_routed_experts"},
    defaults=LLAMA.defaults | MIXTURE | {
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1408,
        "n_shared_experts": 1, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "norm_topk_prob": True, "use_qk_norm": False,
        "partial_rotary_factor": 0.5, "num_key_value_heads": 8, "norm_eps": 1e-5,
        "max_position_embeddings": 131072,
    },
    only=("is_causal",),
    unread=("num_nextn_predict_layers", "num_mtp_layers"),
    optional=dict.fromkeys(("q_norm", "k_norm"), "use_qk_norm"),
    buffers=(r"layers\.(46|92)\..*",),  # blocks that only predict further tokens
    scoring="sigmoid",
    stacks=STACKS,
)  # fmt: skip

DOTS = replace(
    GLM4_MOE,
    model_type="dots1",
    biased=biased("attention_bias", "q", "k", "v", "o"),
    defaults=LLAMA.defaults | MIXTURE | {
        "moe_intermediate_size": 1408, "n_shared_experts": None, "routed_scaling_factor": 1.0,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "norm_topk_prob": False,
        "num_key_value_heads": 32, "use_sliding_window": True, "sliding_window": 4096,
        "max_window_layers": 62, "layer_types": None,
    },
    only=LLAMA.only,
    optional={},
    buffers=LLAMA.buffers,
    windows="above",
)  # fmt: skip

GPT_OSS = replace(
    LLAMA,
    model_type="gpt_oss",
    names=ATTENTION
    | separate(sinks="layers.{}.self_attn.sinks", router="layers.{}.mlp.router")
    | fused(
        "layers.{}.mlp.experts.gate_up_proj", "experts.gate_proj", "experts.up_proj",
        stacked=True, transposed=True, alternating=True, weight="", bias="_bias",
    )
    | fused(
        "layers.{}.mlp.experts.down_proj", "experts.down_proj",
        stacked=True, transposed=True, weight="", bias="_bias",
    ),
    biased=biased("attention_bias", "q", "k", "v", "o")
    | dict.fromkeys(("router", *(f"experts.{x}" for x in MLP)), True),
    keys=LLAMA.keys | {"num_experts": "num_local_experts", "gate_limit": "swiglu_limit"},
    defaults=LLAMA.defaults | MIXTURE | {
        "num_experts": 128, "num_experts_per_tok": 4, "num_key_value_heads": 8, "head_dim": 64,
        "norm_eps": 1e-5, "attention_bias": True, "gate_limit": 7.0, "swiglu_alpha": 1.702,
        "sliding_window": 128, "layer_types": None, "max_position_embeddings": 131072,
        "rope_theta": 150000.0,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096,
        },
    },
    only=(*LLAMA.only, "activation", "swiglu_alpha"),
    activations={"silu": "sigmoid_gelu"},
    echoes={
        "experts_per_token": "num_experts_per_tok",
        "initial_context_length": "original_max_position_embeddings",
    },
    windows="even",
    scoring="softmax",
)  # fmt: skip

LLAMA4 = replace(
    LLAMA,
    model_type="llama4_text",
    names=ATTENTION
    | separate(
        **{x: f"layers.{{}}.feed_forward.{x}" for x in MLP}
        | {f"shared_expert.{x}": f"layers.{{}}.feed_forward.shared_expert.{x}" for x in MLP}
        | {"router": "layers.{}.feed_forward.router"}
    )
    | fused(
        "layers.{}.feed_forward.experts.gate_up_proj", "experts.gate_proj", "experts.up_proj",
        stacked=True, transposed=True, weight="",
    )
    | fused(
        "layers.{}.feed_forward.experts.down_proj", "experts.down_proj",
        stacked=True, transposed=True, weight="",
    ),
    biased=biased("attention_bias", "q", "k", "v", "o"),
    keys=LLAMA.keys | {
        "intermediate_size": "intermediate_size_mlp", "moe_intermediate_size": "intermediate_size",
        "num_experts": "num_local_experts", "decoder_sparse_step": "interleave_moe_layer_step",
        "sliding_window": "attention_chunk_size",
    },
    defaults=LLAMA.defaults | MIXTURE | {
        "intermediate_size": 16384, "moe_intermediate_size": 8192, "num_experts": 16,
        "num_experts_per_tok": 1, "decoder_sparse_step": 1, "moe_layers": None,
        "n_shared_experts": 1, "norm_topk_prob": False, "num_key_value_heads": 8, "head_dim": 128,
        "norm_eps": 1e-5, "use_qk_norm": True, "no_rope_layers": None, "no_rope_layer_interval": 4,
        "sliding_window": 8192, "layer_types": None, "attn_temperature_tuning": True,
        "attn_scale": 0.1, "floor_scale": 8192, "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
    },
    only=(*LLAMA.only, "n_shared_experts", "norm_topk_prob"),
    optional=dict.fromkeys(("q_rope_norm", "k_rope_norm"), "use_qk_norm"),
    unread=("router_jitter_noise", "for_llm_compressor"),
    weightless_norms=("q_rope_norm", "k_rope_norm"),
    windows="rotated",
    unrotated="listed",
    interleaved=True,
    scoring="sigmoid",
    shares_of_inputs=True,
)  # fmt: skip
