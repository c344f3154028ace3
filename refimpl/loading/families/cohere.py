"""With LayerNorm: Cohere (parallel blocks with one norm, scaled logits), its experts; StableLM."""

from typing import Any

from refimpl.loading.families.family import Entries, Family, Key, biased, key, only, unread
from refimpl.loading.families.llama import LLAMA
from refimpl.loading.families.mixtures import EXPERTS, STACKS, linears

MOST = 10_000  # blocks of which a list is made from two numbers

COHERE = LLAMA.like(
    "cohere",
    names=dict(mlp_norm="layers.{}.input_layernorm"),
    norm="layer",
    norm_bias=False,
    biased=biased("attention_bias", "q", "k", "v", "o"),
    keys=dict(
        norm_eps=key(1e-5, "layer_norm_eps"), rope_theta=500000.0,
        max_position_embeddings=8192, tie_word_embeddings=True, logit_scale=0.0625,
        use_parallel_residual=only(True), use_qk_norm=only(False), mlp_bias=only(False),
    ),
    interleaved=True,
)  # fmt: skip

COHERE2 = COHERE.like(
    "cohere2",
    keys=dict(
        rope_theta=10000.0, sliding_window=4096, layer_types=None,
        sliding_window_pattern=key(4, echoes=("_sliding_window_pattern",)),
        **unread(
            "layer_switch", "order_of_interleaved_layers", "position_embedding_type", "rotary_pct",
            "use_embedding_sharing", "use_gated_activation", "use_parallel_block",
            "use_parallel_embedding",
        ),
    ),
    windows="pattern",
    unrotated="unwindowed",
)  # fmt: skip


def _cohere2_moe(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The kinds of its norms and of its router, its two sizes, and the windows of its blocks."""
    own: dict[str, Any] = dict(entries)
    size = own.get("intermediate_size", 22528)
    dense, count = own.pop("prefix_dense_intermediate_size", None), own.get("num_hidden_layers", 40)
    own |= {"moe_intermediate_size": size, "intermediate_size": size if dense is None else dense}
    first, pattern = own.get("first_k_dense_replace", 0), own.get("sliding_window_pattern", 4)
    dense_pattern = own.pop("prefix_dense_sliding_window_pattern", 1)
    numbers = all(type(x) is int and 0 < x <= MOST for x in (count, pattern, dense_pattern))
    if own.get("layer_types") is None and numbers and type(first) is int and first <= count:
        full = [(i + 1) % dense_pattern == 0 for i in range(first)]
        full += [(i + 1) % pattern == 0 for i in range(count - first)]
        own["layer_types"] = ["full_attention" if x else "sliding_attention" for x in full]
    if (scoring := own.get("expert_selection_fn", "softmax")) == "softmax":
        own["norm_topk_prob"] = True  # a softmax over the chosen experts
    if own.get("rope_parameters"):
        own.pop("rope_theta", None)  # transformers writes its default beside them
    rms = own.get("rms_norm_eps") is not None
    keys = dict(norm_eps=key(1e-5, "rms_norm_eps"), **unread("layer_norm_eps")) if rms else {}
    return family.like(
        family.model_type, keys=keys, norm="rms" if rms else "layer", scoring=scoring,
        unrotated="unwindowed mixtures" if dense_pattern == 1 else "unwindowed",
    ), own  # fmt: skip


COHERE2_MOE = COHERE2.like(
    "cohere2_moe",
    names=EXPERTS | linears("shared_expert.", "layers.{}.mlp.shared_experts"),
    keys=dict(
        intermediate_size=22528, moe_intermediate_size=22528, num_experts=8, num_experts_per_tok=2,
        n_shared_experts=key(0, "num_shared_experts"), mlp_layer_types=None, head_dim=128,
        first_k_dense_replace=0, norm_topk_prob=True,
        expert_selection_fn=Key("softmax", only=("softmax", "sigmoid")),
        shared_average=Key(
            "average", ("shared_expert_combination_strategy",), only=("average", "sum")
        ),
    ),
    scoring="softmax",
    stacks=STACKS,
    variant=_cohere2_moe,
)  # fmt: skip


def _stablelm(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """With one norm per block where the residual is parallel."""
    if entries.get("use_parallel_residual") is not True:
        return family, entries
    shared = dict(mlp_norm="layers.{}.input_layernorm")
    return family.like(family.model_type, names=shared), entries


STABLELM = LLAMA.like(
    "stablelm",
    norm="layer",
    biased=biased("use_qkv_bias", "q", "k", "v"),
    keys=dict(
        num_key_value_heads=32, norm_eps=key(1e-5, "layer_norm_eps"), max_position_embeddings=4096,
        partial_rotary_factor=key(0.25), use_qkv_bias=False, use_parallel_residual=False,
        qk_layernorm=only(False), attention_bias=only(False), mlp_bias=only(False),
    ),
    variant=_stablelm,
)  # fmt: skip
