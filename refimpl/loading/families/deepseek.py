"""Routers of sigmoid scores with a correction: DeepSeek-V3, GLM-4.5, others; latent attention."""

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
    key,
    only,
    placed,
    unread,
)  # fmt: skip
from refimpl.loading.families.llama import LLAMA
from refimpl.loading.families.mixtures import EXPERTS, STACKS, linears

SIGMOID = LLAMA.like(  # what the others have in common
    "", biased=ATTENTION_BIAS, scoring="sigmoid", stacks=STACKS,
    names=QK_NORM | EXPERTS | linears("shared_expert.", "layers.{}.mlp.shared_experts")
    | {"router.correction": "layers.{}.mlp.gate.e_score_correction_bias"},
    num_experts=key(128, "n_routed_experts"), num_experts_per_tok=8, moe_intermediate_size=1408,
    n_shared_experts=1, routed_scaling_factor=1.0, n_group=1, topk_group=1, first_k_dense_replace=1,
    norm_topk_prob=True, num_key_value_heads=8, norm_eps=1e-5, max_position_embeddings=131072,
)  # fmt: skip

GLM4_MOE = SIGMOID.like(
    "glm4_moe", biased=biased("attention_bias", "q", "k", "v"),
    optional=dict.fromkeys(("q_norm", "k_norm"), "use_qk_norm"),
    buffers=(r"layers\.(46|92)\..*",),  # blocks that only predict further tokens
    use_qk_norm=False, partial_rotary_factor=key(0.5),
)  # fmt: skip

DOTS = SIGMOID.like(
    "dots1", windows="above", num_experts=None, num_experts_per_tok=None, n_shared_experts=None,
    first_k_dense_replace=0, norm_topk_prob=False, norm_eps=1e-6, num_key_value_heads=32,
    max_position_embeddings=2048, use_sliding_window=True, sliding_window=4096,
    max_window_layers=62, layer_types=None,
    scoring_func=Key("sigmoid", only=("sigmoid", "noaux_tc")),
)  # fmt: skip

SOLAR_OPEN = SIGMOID.like(
    "solar_open", biased=biased("attention_bias", "q", "k", "v"),
    without=("q_norm", "k_norm", *MLP), intermediate_size=None, first_k_dense_replace=only(0),
    moe_intermediate_size=1280, rope_theta=1000000.0, head_dim=128,
)  # fmt: skip

EXAONE_MOE = SIGMOID.like(
    "exaone_moe", names={"router.correction": "layers.{}.mlp.e_score_correction_bias"}, biased={},
    without=("attention_bias",), buffers=(MTP, *LLAMA.buffers), windows="pattern", unrotated="full",
    num_experts=key(64, "num_experts"), num_key_value_heads=32, moe_intermediate_size=1024,
    n_shared_experts=key(1, "num_shared_experts"), routed_scaling_factor=2.5, mlp_layer_types=None,
    max_position_embeddings=2048, sliding_window=4096, sliding_window_pattern=4, layer_types=None,
    scoring_func=only("sigmoid"), topk_method=only("noaux_tc"),
    **unread("is_moe_layer", "first_last_k_dense_replace"),
)  # fmt: skip

HY_V3 = SIGMOID.like(
    "hy_v3", biased=LLAMA.biased | dict.fromkeys((f"shared_expert.{x}" for x in MLP), "mlp_bias"),
    without=("n_group", "topk_group", "norm_topk_prob"),
    buffers=(r"layers\.80\..*", *LLAMA.buffers),
    stacks=STACKS | {"router": Location("layers.{}.mlp.gate")},
    names={
        "router": "layers.{}.mlp.router.gate", "router.correction": "layers.{}.mlp.expert_bias",
        **linears("shared_expert.", "layers.{}.mlp.shared_mlp"),
    },
    num_experts=key(192, "num_experts"), mlp_layer_types=None, head_dim=128, qk_norm=only(True),
    moe_intermediate_size=key(1536, "moe_intermediate_size", echoes=("expert_hidden_dim",)),
    n_shared_experts=key(1, "num_shared_experts"), first_k_dense_replace=only(1),
    routed_scaling_factor=key(2.826, "router_scaling_factor"), rope_theta=11158840.0,
)  # fmt: skip


def _afmoe(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """Whether it scales its embeddings."""
    return family.like("afmoe", scaled_embedding=entries.get("mup_enabled") is True), entries


AFMOE = SIGMOID.like(
    "afmoe", without=("norm_topk_prob",), windows="pattern", unrotated="unwindowed", gate=True,
    variant=_afmoe,
    names=placed(
        "layers.{}.", attn_gate="self_attn.gate_proj", attn_post_norm="post_attention_layernorm",
        mlp_norm="pre_mlp_layernorm", mlp_post_norm="post_mlp_layernorm",
        **{"router": "mlp.router.gate", "router.correction": "mlp.expert_bias"},
    ),
    num_experts=key(64, "num_experts"), num_experts_per_tok=6, num_key_value_heads=None,
    n_shared_experts=key(2, "num_shared_experts"), head_dim=128,
    first_k_dense_replace=key(1, "num_dense_layers"), mup_enabled=Key(False, read=False),
    routed_scaling_factor=key(1.0, "route_scale"), sliding_window=1024, layer_types=None,
    max_position_embeddings=16384, sliding_window_pattern=key(4, "global_attn_every_n_layers"),
    n_group=only(1), topk_group=only(1), num_expert_groups=only(1), num_limited_groups=only(1),
    score_func=only("sigmoid"), route_norm=only(True),
)  # fmt: skip


def _deepseek(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """Which channels rotate together; no groups of experts if the choice is greedy."""
    own = dict(entries)
    if own.get("topk_method", family.keys["topk_method"].default) == "greedy":
        own |= {"n_group": 1, "topk_group": 1}
    pairs = own.get("rope_interleave", True) is True
    return family.like(family.model_type, interleaved=pairs), own


LATENT = placed(
    "layers.{}.self_attn.", "q_a_proj", "q_b_proj", "kv_b_proj", kv_a_proj="kv_a_proj_with_mqa",
    **{f"{x}_norm.weight": f"{x}_layernorm.weight" for x in ("q_a", "kv_a")},
)  # fmt: skip
LATENT_KEYS = dict(
    kv_lora_rank=512, q_lora_rank=1536, v_head_dim=128, qk_nope_head_dim=128,
    head_dim=key(64, "qk_rope_head_dim", "head_dim"), partial_rotary_factor=only(1.0),
    **unread("num_key_value_heads", "qk_head_dim"),
)  # fmt: skip
DEEPSEEK_V3 = SIGMOID.like(
    "deepseek_v3", names=LATENT, without=("q_norm", "k_norm", "k_proj", "v_proj"), keys=LATENT_KEYS,
    buffers=(r"layers\.61\..*", *LLAMA.buffers), mixers={"": "latent_attention"}, variant=_deepseek,
    biased={"q_a_proj": "attention_bias", "kv_a_proj": "attention_bias"}
    | biased("attention_bias", "o"),
    num_experts=256, moe_intermediate_size=2048, first_k_dense_replace=3, n_group=8, topk_group=4,
    routed_scaling_factor=2.5, norm_eps=1e-6, max_position_embeddings=4096, moe_layer_freq=only(1),
    scoring_func=only("sigmoid"), topk_method=only("noaux_tc"), **unread("rope_interleave"),
)  # fmt: skip

DEEPSEEK_V2 = DEEPSEEK_V3.like(
    "deepseek_v2", without=("router.correction", "rope_interleave"), buffers=LLAMA.buffers,
    scoring="softmax", num_experts=64, num_experts_per_tok=key(None), moe_intermediate_size=1407,
    n_shared_experts=2, first_k_dense_replace=0, n_group=None, topk_group=None,
    routed_scaling_factor=1.0, norm_topk_prob=only(False), scoring_func=only("softmax"),
    topk_method=Key("greedy", only=("greedy", "group_limited_greedy")), mlp_bias=only(False),
    max_position_embeddings=2048, group_by=only(1),  # a constant, not a key of its files
)  # fmt: skip

GLM4_MOE_LITE = DEEPSEEK_V3.like(
    "glm4_moe_lite", buffers=(r"layers\.47\..*", *LLAMA.buffers), num_experts=64,
    num_experts_per_tok=4, moe_intermediate_size=1536, n_group=1, topk_group=1,
    routed_scaling_factor=1.8, norm_eps=1e-5, max_position_embeddings=202752, kv_lora_rank=512,
    q_lora_rank=768, v_head_dim=256, qk_nope_head_dim=192, mlp_layer_types=None,
    first_k_dense_replace=1,
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
    "minicpm3", names=LATENT, without=("k_proj", "v_proj"), keys=LATENT_KEYS,
    mixers={"": "latent_attention"}, variant=_minicpm3,
    biased=biased("mlp_bias", "gate", "up", "down")
    | dict.fromkeys(("q_a_proj", "kv_a_proj", "o_proj"), "attention_bias"),
    kv_lora_rank=256, q_lora_rank=768, qk_nope_head_dim=64, v_head_dim=None,
    head_dim=key(32, "qk_rope_head_dim", "head_dim"), norm_eps=1e-5, tie_word_embeddings=True,
    max_position_embeddings=32768, embed_scale=key(12.0, "scale_emb"), residual_scale=None,
    logit_divisor=None, **unread("scale_depth", "dim_model_base", "rope_interleave"),
)  # fmt: skip
