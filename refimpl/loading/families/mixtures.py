"""Mixtures of experts, by softmax or by sigmoids as DeepSeek; latent attention."""

from collections.abc import Sequence
from typing import Any

from refimpl.loading.families.family import (
    ATTENTION_BIAS,
    MLP,
    MTP,
    QK_NORM,
    Entries,
    Family,
    Key,
    Location,
    biased,
    fused,
    key,
    only,
    placed,
    unread,
)
from refimpl.loading.families.llama import (
    ERNIE,
    HUNYUAN,
    LLAMA,
    MISTRAL,
    OLMO2,
    QWEN2,
    QWEN3,
    WIDTH_NORM,
)


def linears(of: str, place: str, names: Sequence[str] = MLP) -> dict[str, str]:
    """The linears of an MLP that are `of` the experts, the shared expert, or ("") a dense block."""
    return {
        f"{of}{role}": f"{place}.{name}" for role, name in zip(MLP, names, strict=True)
    }


def stacked(place: str, alternating: bool = False, **layout: Any) -> dict[str, Any]:
    """The linears of all experts: gate and up in one tensor, down in another."""
    gate_up, gate, up, down = (
        f"{place}.gate_up_proj",
        *(f"experts.{name}" for name in MLP),
    )
    return fused(
        gate_up, gate, up, stacked=True, alternating=alternating, **layout
    ) | fused(f"{place}.down_proj", down, stacked=True, **layout)


EXPERTS = linears("experts.", "layers.{}.mlp.experts.{}") | {
    "router": "layers.{}.mlp.gate"
}
STACKS = stacked("layers.{}.mlp.experts", weight="")
NUMBERED = ("w1", "w3", "w2")  # other names of an MLP's linears

MIXTRAL = MISTRAL.like(
    "mixtral",
    without=MLP,
    scoring="softmax",
    stacks=STACKS | {"router": Location("layers.{}.mlp.gate")},
    names=linears("experts.", "layers.{}.block_sparse_moe.experts.{}", NUMBERED)
    | {"router": "layers.{}.block_sparse_moe.gate"},
    num_experts=key(8, "num_local_experts"),
    num_experts_per_tok=2,
    norm_eps=1e-5,
    rope_theta=1000000.0,
    sliding_window=None,
)

QWEN2_MOE = QWEN2.like(
    "qwen2_moe",
    biased=biased("qkv_bias", "q", "k", "v"),
    scoring="softmax",
    stacks=STACKS,
    names=EXPERTS
    | linears("shared_expert.", "layers.{}.mlp.shared_expert")
    | {"shared_expert.gate": "layers.{}.mlp.shared_expert_gate"},
    qkv_bias=True,
    num_experts=60,
    num_experts_per_tok=4,
    norm_topk_prob=False,
    moe_intermediate_size=1408,
    shared_expert_intermediate_size=5632,
    num_key_value_heads=16,
    decoder_sparse_step=1,
    mlp_only_layers=None,
    use_sliding_window=only(False),
)

QWEN3_MOE = QWEN3.like(
    "qwen3_moe",
    names=EXPERTS,
    scoring="softmax",
    stacks=STACKS,
    num_experts=key(128, "num_experts", "num_local_experts"),
    num_experts_per_tok=8,
    norm_topk_prob=False,
    moe_intermediate_size=768,
    num_key_value_heads=4,
    head_dim=None,
    decoder_sparse_step=1,
    mlp_only_layers=None,
    use_sliding_window=only(False),
    use_qk_norm=only(True),
)

OLMOE = LLAMA.like(
    "olmoe",
    without=MLP,
    names=EXPERTS | WIDTH_NORM,
    biased=ATTENTION_BIAS,
    scoring="softmax",
    stacks=STACKS,
    num_experts=64,
    num_experts_per_tok=8,
    norm_topk_prob=False,
    norm_eps=1e-5,
    qkv_limit=key(None, "clip_qkv"),
    max_position_embeddings=4096,
)

FLEX_OLMO = OLMO2.like(
    "flex_olmo",
    without=MLP,
    names=EXPERTS,
    scoring="softmax",
    stacks=STACKS,
    num_experts=7,
    num_experts_per_tok=5,
    norm_topk_prob=False,
    norm_eps=1e-6,
    rope_theta=500000.0,
    max_position_embeddings=4096,
)


def _minimax(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The channels that rotate as a fraction of a head's; softmax attention in every block."""
    own, head = dict(entries), entries.get("head_dim", 128)
    if isinstance(kinds := own.get("attn_type_list"), list) and {*map(str, kinds)} == {
        "1"
    }:
        del own["attn_type_list"]
    channels = own.get("rotary_dim")
    if type(channels) is int and type(head) is int and 0 < channels <= head:
        del own["rotary_dim"]
        own.setdefault("partial_rotary_factor", channels / head)
    return family, own


MINIMAX_M2 = MIXTRAL.like(
    "minimax_m2",
    names=WIDTH_NORM
    | {"router.correction": "layers.{}.block_sparse_moe.e_score_correction_bias"},
    windows="none",
    scoring="sigmoid",
    variant=_minimax,
    stacks=MIXTRAL.stacks
    | {"router.correction": Location("layers.{}.mlp.e_score_correction_bias")},
    num_experts=256,
    num_experts_per_tok=8,
    head_dim=128,
    norm_eps=1e-6,
    rope_theta=5000000.0,
    partial_rotary_factor=key(1.0),
    sliding_window=only(None),
    max_position_embeddings=196608,
    scoring_func=only("sigmoid"),
    use_qk_norm=only(True),
    use_routing_bias=only(True),
    qk_norm_type=only("per_layer"),
    **unread("router_jitter_noise"),
)

PHIMOE = MIXTRAL.like(
    "phimoe",
    norm="layer",
    biased=ATTENTION_BIAS | {"lm_head": "lm_head_bias"},
    scoring="sparsemixer",
    num_experts=16,
    router_jitter_noise=0.01,
    lm_head_bias=False,
)

ERNIE_MOE = ERNIE.like(
    "ernie4_5_moe",
    scoring="softmax",
    stacks=STACKS,
    names=EXPERTS
    | linears("shared_expert.", "layers.{}.mlp.shared_experts")
    | fused(
        "layers.{}.mlp.moe_statics.e_score_correction_bias",
        "router.correction",
        stacked=True,
    ),
    biased=ERNIE.biased
    | {"lm_head": "use_bias"}
    | dict.fromkeys((f"shared_expert.{x}" for x in MLP), "use_bias"),
    num_experts=key(64, "moe_num_experts"),
    num_experts_per_tok=key(6, "moe_k"),
    n_shared_experts=key(2, "moe_num_shared_experts"),
    moe_intermediate_size=1536,
    first_k_dense_replace=key(1, "moe_layer_start_index"),
    moe_layer_end_index=-1,
    decoder_sparse_step=key(1, "moe_layer_interval"),
    moe_norm_min=1e-12,
    head_dim=None,
    num_key_value_heads=4,
)

MELLUM = QWEN3_MOE.like(
    "mellum",
    without=("max_window_layers", "decoder_sparse_step", "mlp_only_layers"),
    buffers=(MTP, *LLAMA.buffers),
    windows="pattern",
    num_experts=key(64, "num_local_experts", "num_experts"),
    norm_topk_prob=True,
    moe_intermediate_size=896,
    head_dim=128,
    max_position_embeddings=131072,
    sliding_window=1024,
    sliding_window_pattern=only(1),
    mlp_layer_types=None,
    rope_theta=500000.0,
    rope_local_base_freq=10000.0,
    **unread("use_sliding_window"),
)


def _hunyuan(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """Numbers for lists that hold one number for each block, all equal."""
    own = dict(entries)
    for name in PER_BLOCK:
        if isinstance(x := own.get(name), list) and x and x.count(x[0]) == len(x):
            own[name] = x[0]
    return family, own


PER_BLOCK = ("num_experts", "moe_topk", "moe_intermediate_size", "num_shared_expert")
HUNYUAN_MOE = HUNYUAN.like(
    "hunyuan_v1_moe",
    without=MLP,
    scoring="softmax",
    stacks=STACKS,
    variant=_hunyuan,
    names=EXPERTS
    | linears("shared_expert.", "layers.{}.mlp.shared_mlp")
    | {"router": "layers.{}.mlp.gate.wg"},
    num_experts=1,
    num_experts_per_tok=key(1, "moe_topk", "num_experts_per_tok"),
    n_shared_experts=only(1, "num_shared_expert"),
    intermediate_size=key(11008, echoes=("moe_intermediate_size",)),
    use_mla=only(False),
    norm_topk_prob=only(True),
    **unread("use_mixed_mlp_moe", "routed_scaling_factor", "group_limited_greedy"),
)


GPT_OSS = LLAMA.like(
    "gpt_oss",
    without=MLP,
    biased=ATTENTION_BIAS
    | dict.fromkeys(("router", *(f"experts.{x}" for x in MLP)), True),
    activations={"silu": "sigmoid_gelu"},
    windows="even",
    scoring="softmax",
    names={"sinks": "layers.{}.self_attn.sinks", "router": "layers.{}.mlp.router"}
    | stacked(
        "layers.{}.mlp.experts",
        alternating=True,
        transposed=True,
        weight="",
        bias="_bias",
    ),
    num_experts=key(128, "num_local_experts"),
    num_experts_per_tok=key(4, echoes=("experts_per_token",)),
    num_key_value_heads=8,
    head_dim=64,
    norm_eps=1e-5,
    attention_bias=True,
    activation=only("silu", "hidden_act"),
    gate_limit=key(7.0, "swiglu_limit"),
    swiglu_alpha=only(1.702),
    sliding_window=128,
    layer_types=None,
    max_position_embeddings=131072,
    rope_theta=150000.0,
    original_max_position_embeddings=key(None, echoes=("initial_context_length",)),
    rope_parameters={
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
)

LLAMA4 = LLAMA.like(
    "llama4_text",
    biased=ATTENTION_BIAS,
    optional=dict.fromkeys(("q_rope_norm", "k_rope_norm"), "use_qk_norm"),
    weightless_norms=("q_rope_norm", "k_rope_norm"),
    windows="rotated",
    unrotated="listed",
    interleaved=True,
    scoring="sigmoid",
    shares_of_inputs=True,
    names=linears("", "layers.{}.feed_forward")
    | linears("shared_expert.", "layers.{}.feed_forward.shared_expert")
    | {"router": "layers.{}.feed_forward.router"}
    | stacked("layers.{}.feed_forward.experts", transposed=True, weight=""),
    intermediate_size=key(16384, "intermediate_size_mlp"),
    moe_intermediate_size=key(8192, "intermediate_size"),
    num_experts=key(16, "num_local_experts"),
    num_experts_per_tok=1,
    decoder_sparse_step=key(1, "interleave_moe_layer_step"),
    moe_layers=None,
    n_shared_experts=only(1),
    norm_topk_prob=only(False),
    num_key_value_heads=8,
    head_dim=128,
    norm_eps=1e-5,
    use_qk_norm=True,
    no_rope_layers=None,
    no_rope_layer_interval=4,
    sliding_window=key(8192, "attention_chunk_size"),
    layer_types=None,
    attn_temperature_tuning=True,
    attn_scale=0.1,
    floor_scale=8192,
    max_position_embeddings=131072,
    rope_theta=500000.0,
    **unread("router_jitter_noise"),
)

SIGMOID = LLAMA.like(  # what the others have in common
    "",
    biased=ATTENTION_BIAS,
    scoring="sigmoid",
    stacks=STACKS,
    names=QK_NORM
    | EXPERTS
    | linears("shared_expert.", "layers.{}.mlp.shared_experts")
    | {"router.correction": "layers.{}.mlp.gate.e_score_correction_bias"},
    num_experts=key(128, "n_routed_experts"),
    num_experts_per_tok=8,
    moe_intermediate_size=1408,
    n_shared_experts=1,
    routed_scaling_factor=1.0,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
    norm_topk_prob=True,
    num_key_value_heads=8,
    norm_eps=1e-5,
    max_position_embeddings=131072,
)

GLM4_MOE = SIGMOID.like(
    "glm4_moe",
    biased=biased("attention_bias", "q", "k", "v"),
    optional=dict.fromkeys(("q_norm", "k_norm"), "use_qk_norm"),
    buffers=(r"layers\.(46|92)\..*",),  # blocks that only predict further tokens
    use_qk_norm=False,
    partial_rotary_factor=key(0.5),
)

DOTS = SIGMOID.like(
    "dots1",
    windows="above",
    num_experts=None,
    num_experts_per_tok=None,
    n_shared_experts=None,
    first_k_dense_replace=0,
    norm_topk_prob=False,
    norm_eps=1e-6,
    num_key_value_heads=32,
    max_position_embeddings=2048,
    use_sliding_window=True,
    sliding_window=4096,
    max_window_layers=62,
    layer_types=None,
    scoring_func=Key("sigmoid", only=("sigmoid", "noaux_tc")),
)

SOLAR_OPEN = SIGMOID.like(
    "solar_open",
    biased=biased("attention_bias", "q", "k", "v"),
    without=("q_norm", "k_norm", *MLP),
    intermediate_size=None,
    first_k_dense_replace=only(0),
    moe_intermediate_size=1280,
    rope_theta=1000000.0,
    head_dim=128,
)

EXAONE_MOE = SIGMOID.like(
    "exaone_moe",
    names={"router.correction": "layers.{}.mlp.e_score_correction_bias"},
    biased={},
    without=("attention_bias",),
    buffers=(MTP, *LLAMA.buffers),
    windows="pattern",
    unrotated="full",
    num_experts=key(64, "num_experts"),
    num_key_value_heads=32,
    moe_intermediate_size=1024,
    n_shared_experts=key(1, "num_shared_experts"),
    routed_scaling_factor=2.5,
    mlp_layer_types=None,
    max_position_embeddings=2048,
    sliding_window=4096,
    sliding_window_pattern=4,
    layer_types=None,
    scoring_func=only("sigmoid"),
    topk_method=only("noaux_tc"),
    **unread("is_moe_layer", "first_last_k_dense_replace"),
)

HY_V3 = SIGMOID.like(
    "hy_v3",
    biased=LLAMA.biased
    | dict.fromkeys((f"shared_expert.{x}" for x in MLP), "mlp_bias"),
    without=("n_group", "topk_group", "norm_topk_prob"),
    buffers=(r"layers\.80\..*", *LLAMA.buffers),
    stacks=STACKS | {"router": Location("layers.{}.mlp.gate")},
    names={
        "router": "layers.{}.mlp.router.gate",
        "router.correction": "layers.{}.mlp.expert_bias",
        **linears("shared_expert.", "layers.{}.mlp.shared_mlp"),
    },
    num_experts=key(192, "num_experts"),
    mlp_layer_types=None,
    head_dim=128,
    qk_norm=only(True),
    moe_intermediate_size=key(
        1536, "moe_intermediate_size", echoes=("expert_hidden_dim",)
    ),
    n_shared_experts=key(1, "num_shared_experts"),
    first_k_dense_replace=only(1),
    routed_scaling_factor=key(2.826, "router_scaling_factor"),
    rope_theta=11158840.0,
)


AFMOE = SIGMOID.like(
    "afmoe",
    without=("norm_topk_prob",),
    windows="pattern",
    unrotated="unwindowed",
    gate=True,
    scaled_embedding="mup_enabled",
    names=placed(
        "layers.{}.",
        attn_gate="self_attn.gate_proj",
        attn_post_norm="post_attention_layernorm",
        mlp_norm="pre_mlp_layernorm",
        mlp_post_norm="post_mlp_layernorm",
        **{"router": "mlp.router.gate", "router.correction": "mlp.expert_bias"},
    ),
    num_experts=key(64, "num_experts"),
    num_experts_per_tok=6,
    num_key_value_heads=None,
    n_shared_experts=key(2, "num_shared_experts"),
    head_dim=128,
    first_k_dense_replace=key(1, "num_dense_layers"),
    mup_enabled=False,
    routed_scaling_factor=key(1.0, "route_scale"),
    sliding_window=1024,
    layer_types=None,
    max_position_embeddings=16384,
    sliding_window_pattern=key(4, "global_attn_every_n_layers"),
    n_group=only(1),
    topk_group=only(1),
    num_expert_groups=only(1),
    num_limited_groups=only(1),
    score_func=only("sigmoid"),
    route_norm=only(True),
)


def _deepseek(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """Which channels rotate together; no groups of experts if the choice is greedy."""
    own = dict(entries)
    if own.get("topk_method", family.keys["topk_method"].default) == "greedy":
        own |= {"n_group": 1, "topk_group": 1}
    pairs = own.get("rope_interleave", True) is True
    return family.like(family.model_type, interleaved=pairs), own


LATENT = placed(
    "layers.{}.self_attn.",
    "q_a_proj",
    "q_b_proj",
    "kv_b_proj",
    kv_a_proj="kv_a_proj_with_mqa",
    **{f"{x}_norm.weight": f"{x}_layernorm.weight" for x in ("q_a", "kv_a")},
)
LATENT_KEYS = dict(
    kv_lora_rank=512,
    q_lora_rank=1536,
    v_head_dim=128,
    qk_nope_head_dim=128,
    head_dim=key(64, "qk_rope_head_dim", "head_dim"),
    partial_rotary_factor=only(1.0),
    **unread("num_key_value_heads", "qk_head_dim"),
)
DEEPSEEK_V3 = SIGMOID.like(
    "deepseek_v3",
    names=LATENT,
    without=("q_norm", "k_norm", "k_proj", "v_proj"),
    keys=LATENT_KEYS,
    buffers=(r"layers\.61\..*", *LLAMA.buffers),
    mixers={"": "latent_attention"},
    variant=_deepseek,
    biased={"q_a_proj": "attention_bias", "kv_a_proj": "attention_bias"}
    | biased("attention_bias", "o"),
    num_experts=256,
    moe_intermediate_size=2048,
    first_k_dense_replace=3,
    n_group=8,
    topk_group=4,
    routed_scaling_factor=2.5,
    norm_eps=1e-6,
    max_position_embeddings=4096,
    moe_layer_freq=only(1),
    scoring_func=only("sigmoid"),
    topk_method=only("noaux_tc"),
    **unread("rope_interleave"),
)

DEEPSEEK_V2 = DEEPSEEK_V3.like(
    "deepseek_v2",
    without=("router.correction", "rope_interleave"),
    buffers=LLAMA.buffers,
    scoring="softmax",
    num_experts=64,
    num_experts_per_tok=key(None),
    moe_intermediate_size=1407,
    n_shared_experts=2,
    first_k_dense_replace=0,
    n_group=None,
    topk_group=None,
    routed_scaling_factor=1.0,
    norm_topk_prob=only(False),
    scoring_func=only("softmax"),
    topk_method=Key("greedy", only=("greedy", "group_limited_greedy")),
    mlp_bias=only(False),
    max_position_embeddings=2048,
    group_by=only(1),  # a constant, not a key of its files
)

GLM4_MOE_LITE = DEEPSEEK_V3.like(
    "glm4_moe_lite",
    buffers=(r"layers\.47\..*", *LLAMA.buffers),
    num_experts=64,
    num_experts_per_tok=4,
    moe_intermediate_size=1536,
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.8,
    norm_eps=1e-5,
    max_position_embeddings=202752,
    kv_lora_rank=512,
    q_lora_rank=768,
    v_head_dim=256,
    qk_nope_head_dim=192,
    mlp_layer_types=None,
    first_k_dense_replace=1,
)


def _minicpm3(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The factors of the residual stream and of the logits, from other sizes."""
    own, numbers = dict(entries), (int, float)
    depth, count = own.get("scale_depth", 1.4), own.get("num_hidden_layers", 62)
    base, width = own.get("dim_model_base", 256), own.get("hidden_size", 2560)
    if all(type(x) in numbers and 0 < x < 1e9 for x in (count, width)):
        if type(depth) in numbers and depth > 0:
            own["residual_scale"] = depth / count**0.5
        if type(base) in numbers and base > 0:
            own["logit_divisor"] = width / base
    return family, own


MINICPM3 = LLAMA.like(
    "minicpm3",
    names=LATENT,
    without=("k_proj", "v_proj"),
    keys=LATENT_KEYS,
    mixers={"": "latent_attention"},
    variant=_minicpm3,
    biased=biased("mlp_bias", "gate", "up", "down")
    | dict.fromkeys(("q_a_proj", "kv_a_proj", "o_proj"), "attention_bias"),
    kv_lora_rank=256,
    q_lora_rank=768,
    qk_nope_head_dim=64,
    v_head_dim=None,
    head_dim=key(32, "qk_rope_head_dim", "head_dim"),
    norm_eps=1e-5,
    tie_word_embeddings=True,
    max_position_embeddings=32768,
    embed_scale=key(12.0, "scale_emb"),
    residual_scale=None,
    logit_divisor=None,
    **unread("scale_depth", "dim_model_base", "rope_interleave"),
)
