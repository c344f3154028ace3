"""OLMo: norms without weights; from OLMo 2, norms after attention and MLP only, as in EXAONE 4."""

from refimpl.loading.families.family import QK_NORM, biased, key, only
from refimpl.loading.families.llama import LLAMA
from refimpl.loading.families.mixtures import EXPERTS, MLP, STACKS

OLMO = LLAMA.like(
    "olmo",
    without=("attn_norm", "mlp_norm", "final_norm"),
    norm="layer",
    weightless_norms=("attn_norm", "mlp_norm", "final_norm"),
    biased=biased("attention_bias", "q", "k", "v", "o"),
    keys=dict(
        qkv_limit=key(None, "clip_qkv"),
        norm_eps=only(1e-5),  # a constant of the family, not a key of its files
    ),
)  # fmt: skip

OLMO2 = LLAMA.like(
    "olmo2",
    without=("attn_norm", "mlp_norm"),
    names=dict(
        q_width_norm="layers.{}.self_attn.q_norm",
        k_width_norm="layers.{}.self_attn.k_norm",
        attn_post_norm="layers.{}.post_attention_layernorm",
        mlp_post_norm="layers.{}.post_feedforward_layernorm",
    ),
    biased=biased("attention_bias", "q", "k", "v", "o"),
    keys=dict(norm_eps=1e-5),
)  # fmt: skip

OLMO3 = OLMO2.like(
    "olmo3",
    keys=dict(
        rope_theta=500000.0, rope_local_base_freq=500000.0, sliding_window=4096,
        sliding_window_pattern=only(4), layer_types=None,
    ),
    windows="pattern",
)  # fmt: skip

EXAONE4 = OLMO2.like(
    "exaone4",
    without=("q_width_norm", "k_width_norm"),
    names=QK_NORM,
    biased={},
    keys=dict(
        num_key_value_heads=32, sliding_window=4096, sliding_window_pattern=4, layer_types=None,
    ),
    windows="pattern",
    unrotated="full",
)  # fmt: skip

FLEX_OLMO = OLMO2.like(
    "flex_olmo",
    without=MLP,
    names=EXPERTS,
    keys=dict(
        num_experts=7, num_experts_per_tok=5, norm_topk_prob=False, norm_eps=1e-6,
        rope_theta=500000.0, max_position_embeddings=4096,
    ),
    scoring="softmax",
    stacks=STACKS,
)  # fmt: skip
