"""Routers of sigmoid scores with a correction: DeepSeek-V3, GLM-4.5, others; latent attention."""

from typing import Any

from refimpl.loading.families.family import (
    MLP,
    QK_NORM,
    Entries,
    Family,
    Key,
    Location,
    biased,
    key,
    only,
    placed,
    unread,
    with_kinds,
)  # fmt: skip
from refimpl.loading.families.llama import LLAMA
from refimpl.loading.families.mixtures import EXPERTS, MIXTRAL, STACKS, linears

SIGMOID = LLAMA.like(  # what the others have in common
    "",
    names=QK_NORM | EXPERTS | linears("shared_expert.", "layers.{}.mlp.shared_experts")
    | {"router.correction": "layers.{}.mlp.gate.e_score_correction_bias"},
    biased=biased("attention_bias", "q", "k", "v", "o"),
    keys=dict(
        num_experts=key(128, "n_routed_experts"), num_experts_per_tok=8,
        moe_intermediate_size=1408, n_shared_experts=1, routed_scaling_factor=1.0, n_group=1,
        topk_group=1, first_k_dense_replace=1, norm_topk_prob=True, num_key_value_heads=8,
        norm_eps=1e-5, max_position_embeddings=131072,
    ),
    scoring="sigmoid",
    stacks=STACKS,
)  # fmt: skip

GLM4_MOE = SIGMOID.like(
    "glm4_moe",
    biased=biased("attention_bias", "q", "k", "v"),
    keys=dict(use_qk_norm=False, partial_rotary_factor=key(0.5)),
    optional=dict.fromkeys(("q_norm", "k_norm"), "use_qk_norm"),
    buffers=(r"layers\.(46|92)\..*",),  # blocks that only predict further tokens
)

DOTS = SIGMOID.like(
    "dots1",
    keys=dict(
        num_experts=None, num_experts_per_tok=None, n_shared_experts=None, first_k_dense_replace=0,
        norm_topk_prob=False, norm_eps=1e-6, num_key_value_heads=32,
        max_position_embeddings=2048, use_sliding_window=True,
        sliding_window=4096, max_window_layers=62, layer_types=None,
        scoring_func=Key("sigmoid", only=("sigmoid", "noaux_tc")),
    ),
    windows="above",
)  # fmt: skip

SOLAR_OPEN = SIGMOID.like(
    "solar_open",
    biased=biased("attention_bias", "q", "k", "v"),
    without=("q_norm", "k_norm", *MLP),
    keys=dict(
        intermediate_size=None, first_k_dense_replace=only(0), moe_intermediate_size=1280,
        rope_theta=1000000.0, head_dim=128,
    ),
)  # fmt: skip

EXAONE_MOE = SIGMOID.like(
    "exaone_moe",
    names={"router.correction": "layers.{}.mlp.e_score_correction_bias"},
    biased={},
    without=("attention_bias",),
    keys=dict(
        num_experts=key(64, "num_experts"), num_key_value_heads=32, moe_intermediate_size=1024,
        n_shared_experts=key(1, "num_shared_experts"), routed_scaling_factor=2.5,
        mlp_layer_types=None, max_position_embeddings=2048,
        sliding_window=4096, sliding_window_pattern=4, layer_types=None,
        scoring_func=only("sigmoid"), topk_method=only("noaux_tc"),
        **unread("is_moe_layer", "first_last_k_dense_replace"),
    ),
    buffers=(r"^(model\.)?mtp\..*", *LLAMA.buffers),
    windows="pattern",
    unrotated="full",
)  # fmt: skip

HY_V3 = SIGMOID.like(
    "hy_v3",
    names={
        "router": "layers.{}.mlp.router.gate", "router.correction": "layers.{}.mlp.expert_bias",
        **linears("shared_expert.", "layers.{}.mlp.shared_mlp"),
    },
    biased=LLAMA.biased | dict.fromkeys((f"shared_expert.{x}" for x in MLP), "mlp_bias"),
    without=("n_group", "topk_group", "norm_topk_prob"),
    keys=dict(
        num_experts=key(192, "num_experts"), mlp_layer_types=None, head_dim=128, qk_norm=only(True),
        moe_intermediate_size=key(1536, "moe_intermediate_size", echoes=("expert_hidden_dim",)),
        n_shared_experts=key(1, "num_shared_experts"), first_k_dense_replace=only(1),
        routed_scaling_factor=key(2.826, "router_scaling_factor"), rope_theta=11158840.0,
    ),
    buffers=(r"layers\.80\..*", *LLAMA.buffers),
    stacks=STACKS | {"router": Location("layers.{}.mlp.gate")},
)  # fmt: skip


def _afmoe(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """Whether it scales its embeddings."""
    return family.like("afmoe", scaled_embedding=entries.get("mup_enabled") is True), entries


AFMOE = SIGMOID.like(
    "afmoe",
    names={
        "attn_gate": "layers.{}.self_attn.gate_proj",
        "attn_post_norm": "layers.{}.post_attention_layernorm",
        "mlp_norm": "layers.{}.pre_mlp_layernorm",
        "mlp_post_norm": "layers.{}.post_mlp_layernorm",
        "router": "layers.{}.mlp.router.gate",
        "router.correction": "layers.{}.mlp.expert_bias",
    },
    without=("norm_topk_prob",),
    keys=dict(
        num_experts=key(64, "num_experts"), num_experts_per_tok=6, num_key_value_heads=None,
        n_shared_experts=key(2, "num_shared_experts"), head_dim=128,
        first_k_dense_replace=key(1, "num_dense_layers"), mup_enabled=Key(False, read=False),
        routed_scaling_factor=key(1.0, "route_scale"),
        sliding_window=1024, layer_types=None, max_position_embeddings=16384,
        sliding_window_pattern=key(4, "global_attn_every_n_layers"), n_group=only(1),
        topk_group=only(1), num_expert_groups=only(1), num_limited_groups=only(1),
        score_func=only("sigmoid"), route_norm=only(True),
    ),
    windows="pattern",
    unrotated="unwindowed",
    gate="sigmoid",
    variant=_afmoe,
)  # fmt: skip


LAGUNA = SIGMOID.like(
    "laguna",
    names={
        "attn_gate": "layers.{}.self_attn.g_proj",
        "router.correction": "layers.{}.mlp.experts.e_score_correction_bias",
        **linears("shared_expert.", "layers.{}.mlp.shared_expert"),
    },
    without=("n_group", "topk_group", "n_shared_experts"),
    keys=dict(
        num_experts=key(256, "num_experts"), moe_intermediate_size=512, head_dim=128,
        shared_expert_intermediate_size=512, mlp_layer_types=None, norm_eps=1e-6,
        first_k_dense_replace=only(1),  # a constant, not a key of its files
        routed_scaling_factor=key(1.0, "moe_routed_scaling_factor"), sliding_window=512,
        moe_apply_router_weight_on_input=only(False), moe_router_logit_softcapping=only(0.0),
        sliding_window_pattern=only(1), layer_types=None, rope_theta=500000.0,
        rope_local_base_freq=10000.0, partial_rotary_factor=key(1.0), decoder_sparse_step=only(1),
        norm_topk_prob=only(True), **unread("mlp_only_layers", "gating_types"),
        gating=Key(True, only=(True, "per-head", "per-element")),
        num_attention_heads_per_layer=None,
        rope_parameters={
            "full_attention": {"rope_theta": 500000.0, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        },
    ),
    windows="pattern",
    gate="softplus",
    variant=lambda family, own: (family, {x: own[x] for x in own if x != "partial_rotary_factor"}),
)  # fmt: skip


def _deepseek(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """Which channels rotate together; no groups of experts if the choice is greedy."""
    own = dict(entries)
    if own.get("topk_method", family.keys["topk_method"].default) == "greedy":
        own |= {"n_group": 1, "topk_group": 1}
    pairs = own.get("rope_interleave", True) is True
    return family.like(family.model_type, interleaved=pairs), own


ATTENTION = "layers.{}.self_attn."
LATENT = dict(
    q_a_proj=f"{ATTENTION}q_a_proj",
    q_b_proj=f"{ATTENTION}q_b_proj",
    kv_a_proj=f"{ATTENTION}kv_a_proj_with_mqa",
    kv_b_proj=f"{ATTENTION}kv_b_proj",
) | {
    "q_a_norm.weight": f"{ATTENTION}q_a_layernorm.weight",
    "kv_a_norm.weight": f"{ATTENTION}kv_a_layernorm.weight",
}
LATENT_KEYS = dict(
    kv_lora_rank=512, q_lora_rank=1536, v_head_dim=128, qk_nope_head_dim=128,
    head_dim=key(64, "qk_rope_head_dim", "head_dim"), partial_rotary_factor=only(1.0),
    **unread("num_key_value_heads", "qk_head_dim"),
)  # fmt: skip
DEEPSEEK_V3 = SIGMOID.like(
    "deepseek_v3",
    names=LATENT,
    biased={"q_a_proj": "attention_bias", "kv_a_proj": "attention_bias"}
    | biased("attention_bias", "o"),
    without=("q_norm", "k_norm", "k_proj", "v_proj"),
    keys=LATENT_KEYS | dict(
        num_experts=256, moe_intermediate_size=2048, first_k_dense_replace=3, n_group=8,
        topk_group=4, routed_scaling_factor=2.5, norm_eps=1e-6, max_position_embeddings=4096,
        moe_layer_freq=only(1), scoring_func=only("sigmoid"),
        topk_method=only("noaux_tc"),
        **unread("rope_interleave"),
    ),
    buffers=(r"layers\.61\..*", *LLAMA.buffers),
    mixers={"": "latent_attention"},
    variant=_deepseek,
)  # fmt: skip

DEEPSEEK_V2 = DEEPSEEK_V3.like(
    "deepseek_v2",
    without=("router.correction", "rope_interleave"),
    keys=dict(
        num_experts=64, num_experts_per_tok=key(None), moe_intermediate_size=1407,
        n_shared_experts=2, first_k_dense_replace=0, n_group=None, topk_group=None,
        routed_scaling_factor=1.0, norm_topk_prob=only(False), scoring_func=only("softmax"),
        topk_method=Key("greedy", only=("greedy", "group_limited_greedy")), mlp_bias=only(False),
        max_position_embeddings=2048, group_by=only(1),  # a constant, not a key of its files
    ),
    buffers=LLAMA.buffers,
    scoring="softmax",
)  # fmt: skip

GLM4_MOE_LITE = DEEPSEEK_V3.like(
    "glm4_moe_lite",
    keys=dict(
        num_experts=64, num_experts_per_tok=4, moe_intermediate_size=1536, n_group=1,
        topk_group=1, routed_scaling_factor=1.8, norm_eps=1e-5, max_position_embeddings=202752,
        kv_lora_rank=512, q_lora_rank=768, v_head_dim=256, qk_nope_head_dim=192,
        mlp_layer_types=None, first_k_dense_replace=1,
    ),
    buffers=(r"layers\.47\..*", *LLAMA.buffers),
)  # fmt: skip

KIMI_STATES = {  # the spellings in published files and in those of transformers
    "head_dim": "linear_head_dim", "num_heads": "linear_num_heads",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
}  # fmt: skip


def _kimi(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The kinds of its blocks and the sizes of their states, from an object of published files."""
    own = {name: x for name, x in entries.items() if name != "head_dim"}  # which nothing reads
    states: Any = own.get("linear_attn_config")
    if isinstance(states, dict):
        own |= {ours: states[theirs] for theirs, ours in KIMI_STATES.items() if theirs in states}
        full: Any = states.get("full_attn_layers")
        delta: Any = states.get("kda_layers")
        every = [*full, *delta] if isinstance(full, list) and isinstance(delta, list) else []
        known = {*KIMI_STATES}
        if len(every) == own.get("num_hidden_layers") and {*map(str, every)} == {
            str(i + 1) for i in range(len(every))
        }:
            own = with_kinds(own, lambda i: i + 1 in full)
            known |= {"full_attn_layers", "kda_layers"}
        own["linear_attn_config"] = {name: x for name, x in states.items() if name not in known}
    return family, with_kinds(own, lambda i: i > 0 and i % 4 == 0)


KIMI_MLP = "layers.{}.block_sparse_moe"
KIMI_LINEAR = DEEPSEEK_V3.like(
    "kimi_linear",
    names=placed(
        ATTENTION, "A_log", "dt_bias", out_proj="o_proj", in_proj_q="q_proj", in_proj_k="k_proj",
        in_proj_v="v_proj", in_proj_b="b_proj", in_proj_a="f_b_proj", in_proj_a_low="f_a_proj",
        in_proj_z="g_b_proj", in_proj_z_low="g_a_proj", **{"state_norm.weight": "o_norm.weight"},
        **{f"conv_{x}.weight": f"{x}_conv1d.weight" for x in "qkv"},
    ) | {x: place for x, place in MIXTRAL.names.items() if x.startswith(("router", "experts."))}
    | {"router.correction": f"{KIMI_MLP}.gate.e_score_correction_bias"}
    | linears("shared_expert.", f"{KIMI_MLP}.shared_experts"),
    keys=dict(
        num_experts=key(256, "num_experts", "num_local_experts"), moe_intermediate_size=1024,
        num_experts_per_tok=key(8, "num_experts_per_token", "num_experts_per_tok"),
        n_shared_experts=key(1, "num_shared_experts", "n_shared_experts"), topk_group=1,
        n_group=key(1, "num_expert_group", "n_group"), routed_scaling_factor=2.446,
        norm_topk_prob=key(True, "moe_renormalize", "norm_topk_prob"), first_k_dense_replace=1,
        scoring_func=only("sigmoid", "moe_router_activation_func"), use_grouped_topk=only(True),
        mlp_layer_types=None, layer_types=None, q_lora_rank=None, norm_eps=1e-5,
        head_dim=key(64, "qk_rope_head_dim"), mla_use_nope=only(True), rope_scaling=only(None),
        rope_parameters=only(None), activation=only("silu", "hidden_act"),
        tie_word_embeddings=only(False),
        max_position_embeddings=key(1048576, "model_max_length", "max_position_embeddings"),
        linear_num_key_heads=key(32, "linear_num_heads"), linear_conv_kernel_dim=4,
        linear_num_value_heads=key(32, "linear_num_heads"),
        **dict.fromkeys(
            ("linear_key_head_dim", "linear_value_head_dim", "linear_gate_rank"),
            key(128, "linear_head_dim"),
        ),
    ),
    buffers=LLAMA.buffers,
    unrotated="all",
    mixers={"linear_attention": "gated_delta_rule", "full_attention": "latent_attention"},
    stacks={x: Location(place) for x, place in linears("", KIMI_MLP).items()},  # of transformers
    variant=_kimi,
)  # fmt: skip


def _bailing(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The kinds of its blocks, the sizes of their states, and the bound of their decays."""
    own = {name: x for name, x in entries.items() if name not in KIMI_STATES}
    states = {"head_dim": 128, "num_heads": entries.get("num_attention_heads", 32)}
    states |= {"short_conv_kernel_size": 4} | {x: entries[x] for x in KIMI_STATES if x in entries}
    own = {ours: states[theirs] for theirs, ours in KIMI_STATES.items()} | own
    bound, group = own.get("kda_lower_bound", -5.0), own.get("layer_group_size", 6)
    number = isinstance(bound, int | float) and not isinstance(bound, bool)
    own["decay_bound"] = -bound if number else bound
    if own.get("kda_safe_gate", True) is False:
        own["decay_bound"] = None
    rope = own.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        own.pop("rope_theta", None)  # which transformers writes, whatever it computes with
    if type(group) is int and group > 0:
        own = with_kinds(own, lambda i: (i + 1) % group == 0)
    return family, own


BAILING = "layers.{}.attention."
ROUTED = ("router", "experts.", "shared_expert.")
BAILING_HYBRID = KIMI_LINEAR.like(
    "bailing_hybrid",
    names={
        role: place.name.replace(ATTENTION, BAILING)
        for role, place in (*KIMI_LINEAR.names.items(), *DEEPSEEK_V3.names.items())
        if place.name.startswith(ATTENTION) or role.startswith(ROUTED)
    } | placed(
        BAILING, in_proj_a="f_proj", in_proj_z="g_proj", attn_gate="g_proj", out_proj="dense",
        o_proj="dense",
    ) | {"embed": "word_embeddings", "router.correction": "layers.{}.mlp.gate.expert_bias"},
    without=("in_proj_a_low", "in_proj_z_low", "linear_gate_rank", "mla_use_nope"),
    keys=dict(
        num_experts=key(512, "num_experts", "num_local_experts"), moe_intermediate_size=768,
        n_group=key(8, "num_expert_group", "n_group"), topk_group=4, routed_scaling_factor=2.5,
        first_k_dense_replace=2, norm_eps=1e-6, rope_scaling=key(None), rope_parameters=key(None),
        rope_theta=6000000.0, score_function=only("sigmoid"), decay_bound=None,  # not of its files
        max_position_embeddings=key(262144, "model_max_length", "max_position_embeddings"),
        kda_safe_gate=Key(True, only=(True, False)), no_kda_lora=only(True),
        use_kda_lora=only(False), use_mla_nope=only(False), linear_attention=only("kda"),
        gated_attention_proj_granularity_type=only("head_wise"), use_bias=only(False),
        use_qkv_bias=only(False), moe_router_enable_expert_bias=only(True),
        scale_router_input=only(False), expert_swiglu_limit_list=only(None),
        share_expert_swiglu_limit_list=only(None), num_kv_heads_for_linear_attn=only(0),
        rope_interleave=only(True), **unread(
            "kda_lower_bound", "layer_group_size", "group_norm_size", "max_window_layers",
            "moe_shared_expert_intermediate_size", "mtp_use_kda", "rotary_dim", "router_dtype",
            "use_qk_norm",
        ),
    ),
    buffers=(r"layers\.42\..*", *LLAMA.buffers),
    unrotated="none",
    interleaved=True,
    stacks={"out_proj": Location(f"{BAILING}o_proj")},  # in published files
    variant=_bailing,
)  # fmt: skip


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
    biased=biased("mlp_bias", "gate", "up", "down")
    | dict.fromkeys(("q_a_proj", "kv_a_proj", "o_proj"), "attention_bias"),
    keys=LATENT_KEYS | dict(
        kv_lora_rank=256, q_lora_rank=768, qk_nope_head_dim=64, v_head_dim=None,
        head_dim=key(32, "qk_rope_head_dim", "head_dim"), norm_eps=1e-5, tie_word_embeddings=True,
        max_position_embeddings=32768, embed_scale=key(12.0, "scale_emb"), residual_scale=None,
        logit_divisor=None, **unread("scale_depth", "dim_model_base", "rope_interleave"),
    ),
    mixers={"": "latent_attention"},
    variant=_minicpm3,
)  # fmt: skip
