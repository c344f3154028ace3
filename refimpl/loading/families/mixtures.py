"""Mixtures of experts: Mixtral, Qwen, OLMoE, Granite, Phi, ERNIE, GLM, dots, gpt-oss, others."""

from collections.abc import Sequence
from typing import Any

from refimpl.loading.families.family import (
    ATTENTION_BIAS,
    MLP,
    MTP,
    Entries,
    Family,
    Location,
    biased,
    fused,
    key,
    only,
    unread,
)  # fmt: skip
from refimpl.loading.families.llama import (
    ERNIE,
    HUNYUAN,
    LLAMA,
    MISTRAL,
    OLMO2,
    QWEN2,
    QWEN3,
    WIDTH_NORM,
)  # fmt: skip


def linears(of: str, place: str, names: Sequence[str] = MLP) -> dict[str, str]:
    """The linears of an MLP that are `of` the experts, the shared expert, or ("") a dense block."""
    return {f"{of}{role}": f"{place}.{name}" for role, name in zip(MLP, names, strict=True)}


def stacked(place: str, alternating: bool = False, **layout: Any) -> dict[str, Any]:
    """The linears of all experts: gate and up in one tensor, down in another."""
    gate_up, gate, up, down = f"{place}.gate_up_proj", *(f"experts.{name}" for name in MLP)
    return fused(gate_up, gate, up, stacked=True, alternating=alternating, **layout) | fused(
        f"{place}.down_proj", down, stacked=True, **layout
    )


EXPERTS = linears("experts.", "layers.{}.mlp.experts.{}") | {"router": "layers.{}.mlp.gate"}
STACKS = stacked("layers.{}.mlp.experts", weight="")
NUMBERED = ("w1", "w3", "w2")  # other names of an MLP's linears

MIXTRAL = MISTRAL.like(
    "mixtral", without=MLP, scoring="softmax",
    stacks=STACKS | {"router": Location("layers.{}.mlp.gate")},
    names=linears("experts.", "layers.{}.block_sparse_moe.experts.{}", NUMBERED)
    | {"router": "layers.{}.block_sparse_moe.gate"},
    num_experts=key(8, "num_local_experts"), num_experts_per_tok=2, norm_eps=1e-5,
    rope_theta=1000000.0, sliding_window=None,
)  # fmt: skip

QWEN2_MOE = QWEN2.like(
    "qwen2_moe", biased=biased("qkv_bias", "q", "k", "v"), scoring="softmax", stacks=STACKS,
    names=EXPERTS | linears("shared_expert.", "layers.{}.mlp.shared_expert")
    | {"shared_expert.gate": "layers.{}.mlp.shared_expert_gate"},
    qkv_bias=True, num_experts=60, num_experts_per_tok=4, norm_topk_prob=False,
    moe_intermediate_size=1408, shared_expert_intermediate_size=5632, num_key_value_heads=16,
    decoder_sparse_step=1, mlp_only_layers=None, use_sliding_window=only(False),
)  # fmt: skip

QWEN3_MOE = QWEN3.like(
    "qwen3_moe", names=EXPERTS, scoring="softmax", stacks=STACKS,
    num_experts=key(128, "num_experts", "num_local_experts"), num_experts_per_tok=8,
    norm_topk_prob=False, moe_intermediate_size=768, num_key_value_heads=4, head_dim=None,
    decoder_sparse_step=1, mlp_only_layers=None, use_sliding_window=only(False),
    use_qk_norm=only(True),
)  # fmt: skip

OLMOE = LLAMA.like(
    "olmoe", without=MLP, names=EXPERTS | WIDTH_NORM, biased=ATTENTION_BIAS, scoring="softmax",
    stacks=STACKS, num_experts=64, num_experts_per_tok=8, norm_topk_prob=False, norm_eps=1e-5,
    qkv_limit=key(None, "clip_qkv"), max_position_embeddings=4096,
)  # fmt: skip

FLEX_OLMO = OLMO2.like(
    "flex_olmo", without=MLP, names=EXPERTS, scoring="softmax", stacks=STACKS, num_experts=7,
    num_experts_per_tok=5, norm_topk_prob=False, norm_eps=1e-6, rope_theta=500000.0,
    max_position_embeddings=4096,
)  # fmt: skip


def _minimax(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The channels that rotate as a fraction of a head's; softmax attention in every block."""
    own, head = dict(entries), entries.get("head_dim", 128)
    if isinstance(kinds := own.get("attn_type_list"), list) and {*map(str, kinds)} == {"1"}:
        del own["attn_type_list"]
    channels = own.get("rotary_dim")
    if type(channels) is int and type(head) is int and 0 < channels <= head:
        del own["rotary_dim"]
        own.setdefault("partial_rotary_factor", channels / head)
    return family, own


MINIMAX_M2 = MIXTRAL.like(
    "minimax_m2",
    names=WIDTH_NORM | {"router.correction": "layers.{}.block_sparse_moe.e_score_correction_bias"},
    windows="none", scoring="sigmoid", variant=_minimax,
    stacks=MIXTRAL.stacks
    | {"router.correction": Location("layers.{}.mlp.e_score_correction_bias")},
    num_experts=256, num_experts_per_tok=8, head_dim=128, norm_eps=1e-6, rope_theta=5000000.0,
    partial_rotary_factor=key(1.0), sliding_window=only(None), max_position_embeddings=196608,
    scoring_func=only("sigmoid"), use_qk_norm=only(True), use_routing_bias=only(True),
    qk_norm_type=only("per_layer"), **unread("router_jitter_noise"),
)  # fmt: skip

PHIMOE = MIXTRAL.like(
    "phimoe", norm="layer", biased=ATTENTION_BIAS | {"lm_head": "lm_head_bias"},
    scoring="sparsemixer", num_experts=16, router_jitter_noise=0.01, lm_head_bias=False,
)  # fmt: skip

ERNIE_MOE = ERNIE.like(
    "ernie4_5_moe", scoring="softmax", stacks=STACKS,
    names=EXPERTS | linears("shared_expert.", "layers.{}.mlp.shared_experts") | fused(
        "layers.{}.mlp.moe_statics.e_score_correction_bias", "router.correction", stacked=True
    ),
    biased=ERNIE.biased | {"lm_head": "use_bias"}
    | dict.fromkeys((f"shared_expert.{x}" for x in MLP), "use_bias"),
    num_experts=key(64, "moe_num_experts"), num_experts_per_tok=key(6, "moe_k"),
    n_shared_experts=key(2, "moe_num_shared_experts"), moe_intermediate_size=1536,
    first_k_dense_replace=key(1, "moe_layer_start_index"), moe_layer_end_index=-1,
    decoder_sparse_step=key(1, "moe_layer_interval"), moe_norm_min=1e-12, head_dim=None,
    num_key_value_heads=4,
)  # fmt: skip

MELLUM = QWEN3_MOE.like(
    "mellum", without=("max_window_layers", "decoder_sparse_step", "mlp_only_layers"),
    buffers=(MTP, *LLAMA.buffers), windows="pattern",
    num_experts=key(64, "num_local_experts", "num_experts"), norm_topk_prob=True,
    moe_intermediate_size=896, head_dim=128, max_position_embeddings=131072, sliding_window=1024,
    sliding_window_pattern=only(1), mlp_layer_types=None, rope_theta=500000.0,
    rope_local_base_freq=10000.0, **unread("use_sliding_window"),
)  # fmt: skip


def _hunyuan(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """Numbers for lists that hold one number for each block, all equal."""

    def one(value: Any) -> Any:
        same = isinstance(value, list) and value and all(x == value[0] for x in value)
        return value[0] if same else value

    return family, {
        name: one(entries[name]) if name in PER_BLOCK else entries[name] for name in entries
    }


PER_BLOCK = ("num_experts", "moe_topk", "moe_intermediate_size", "num_shared_expert")
HUNYUAN_MOE = HUNYUAN.like(
    "hunyuan_v1_moe", without=MLP, scoring="softmax", stacks=STACKS, variant=_hunyuan,
    names=EXPERTS | linears("shared_expert.", "layers.{}.mlp.shared_mlp")
    | {"router": "layers.{}.mlp.gate.wg"},
    num_experts=1, num_experts_per_tok=key(1, "moe_topk", "num_experts_per_tok"),
    n_shared_experts=only(1, "num_shared_expert"),
    intermediate_size=key(11008, echoes=("moe_intermediate_size",)), use_mla=only(False),
    norm_topk_prob=only(True),
    **unread("use_mixed_mlp_moe", "routed_scaling_factor", "group_limited_greedy"),
)  # fmt: skip


GPT_OSS = LLAMA.like(
    "gpt_oss", without=MLP,
    biased=ATTENTION_BIAS | dict.fromkeys(("router", *(f"experts.{x}" for x in MLP)), True),
    activations={"silu": "sigmoid_gelu"}, windows="even", scoring="softmax",
    names={"sinks": "layers.{}.self_attn.sinks", "router": "layers.{}.mlp.router"} | stacked(
        "layers.{}.mlp.experts", alternating=True, transposed=True, weight="", bias="_bias"
    ),
    num_experts=key(128, "num_local_experts"),
    num_experts_per_tok=key(4, echoes=("experts_per_token",)), num_key_value_heads=8, head_dim=64,
    norm_eps=1e-5, attention_bias=True, activation=only("silu", "hidden_act"),
    gate_limit=key(7.0, "swiglu_limit"), swiglu_alpha=only(1.702), sliding_window=128,
    layer_types=None, max_position_embeddings=131072, rope_theta=150000.0,
    original_max_position_embeddings=key(None, echoes=("initial_context_length",)),
    rope_parameters={
        "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0,
        "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096,
    },
)  # fmt: skip

LLAMA4 = LLAMA.like(
    "llama4_text", biased=ATTENTION_BIAS,
    optional=dict.fromkeys(("q_rope_norm", "k_rope_norm"), "use_qk_norm"),
    weightless_norms=("q_rope_norm", "k_rope_norm"), windows="rotated", unrotated="listed",
    interleaved=True, scoring="sigmoid", shares_of_inputs=True,
    names=linears("", "layers.{}.feed_forward")
    | linears("shared_expert.", "layers.{}.feed_forward.shared_expert")
    | {"router": "layers.{}.feed_forward.router"}
    | stacked("layers.{}.feed_forward.experts", transposed=True, weight=""),
    intermediate_size=key(16384, "intermediate_size_mlp"),
    moe_intermediate_size=key(8192, "intermediate_size"), num_experts=key(16, "num_local_experts"),
    num_experts_per_tok=1, decoder_sparse_step=key(1, "interleave_moe_layer_step"), moe_layers=None,
    n_shared_experts=only(1), norm_topk_prob=only(False), num_key_value_heads=8, head_dim=128,
    norm_eps=1e-5, use_qk_norm=True, no_rope_layers=None, no_rope_layer_interval=4,
    sliding_window=key(8192, "attention_chunk_size"), layer_types=None,
    attn_temperature_tuning=True, attn_scale=0.1, floor_scale=8192, max_position_embeddings=131072,
    rope_theta=500000.0, **unread("router_jitter_noise"),
)  # fmt: skip
