"""Gemma: gains stored minus 1; from Gemma 2, norms after attention and MLP, sliding windows."""

from dataclasses import replace
from typing import Any

from refimpl.loading.families.family import (
    ATTENTION_BIAS,
    MOST_LISTED,
    QK_NORM,
    Entries,
    Family,
    Key,
    key,
    only,
    placed,
    unread,
    with_kinds,
)
from refimpl.loading.families.llama import LLAMA
from refimpl.loading.families.mixtures import stacked

GEMMA = LLAMA.like(
    "gemma",
    norm_offset=1.0,
    biased=ATTENTION_BIAS,
    scaled_embedding=True,
    activations={
        "gelu": "gelu_tanh"
    },  # of the files from before the key named the tanh form
    activation="gelu_pytorch_tanh",
    head_dim=256,
    num_key_value_heads=16,
    tie_word_embeddings=True,
    max_position_embeddings=8192,
    **unread("hidden_activation"),
)

GEMMA2 = GEMMA.like(
    "gemma2",
    activations={},
    windows="even",
    names=placed(
        "layers.{}.",
        attn_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    ),
    activation=key("gelu_pytorch_tanh", "hidden_activation", echoes=("hidden_act",)),
    sliding_window=key(4096, echoes=("sliding_window_size",)),
    layer_types=None,
    query_pre_attn_scalar=256,
    num_key_value_heads=4,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
)

VAULTGEMMA = GEMMA2.like("vaultgemma", without=("attn_post_norm", "mlp_post_norm"))

GEMMA3 = GEMMA2.like(
    "gemma3_text",
    names=QK_NORM,
    windows="pattern",
    rope_theta=1000000.0,
    rope_local_base_freq=10000.0,
    sliding_window=key(4096),
    sliding_window_pattern=key(6, echoes=("_sliding_window_pattern",)),
    final_logit_softcapping=None,
    max_position_embeddings=131072,
    **unread("attn_logit_softcapping"),  # transformers stores it, and never applies it
)


EXPERTS_BESIDE: dict[str, Any] = stacked("layers.{}.experts", weight="") | placed(
    "layers.{}.",
    dense_norm="post_feedforward_layernorm_1",
    experts_norm="pre_feedforward_layernorm_2",
    routed_norm="post_feedforward_layernorm_2",
    **{
        "router": "router.proj",
        "router.scale": "router.scale",
        "router.expert_scale": "router.per_expert_scale",
    },
)


OWN = placed(
    "layers.{}.",
    block_embed_gate="per_layer_input_gate",
    block_embed_proj="per_layer_projection",
    block_embed_post_norm="post_per_layer_input_norm",
) | {
    "block_embed": "embed_tokens_per_layer",
    "block_embed_stream": "per_layer_model_projection",
    "block_embed_stream_norm": "per_layer_projection_norm",
}


def _gemma4(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """Which blocks see all tokens, the last among them, the sizes of those; experts, if any.

    Also whether blocks have embeddings, and which have tensors of keys and values that are unused.
    """
    if (size := "hidden_size_per_layer_input") in family.keys and entries.get(
        size, 256
    ):
        family = family.like(family.model_type, names=OWN)
    count, shared = (entries.get(f"num_{x}_layers") for x in ("hidden", "kv_shared"))
    if type(count) is type(shared) is int and 0 < shared < count <= MOST_LISTED:
        reading = "|".join(map(str, range(count - shared, count)))
        unused = rf"layers\.({reading})\.self_attn\.([kv]_proj|[kv]_norm)\.weight"
        family = replace(family, buffers=(*family.buffers, unused))
    if entries.get("enable_moe_block") and "enable_moe_block" in family.keys:
        sizes = dict(
            num_experts=Key(),
            num_experts_per_tok=key(None, "top_k_experts"),
            moe_intermediate_size=Key(),
        )
        family = family.like(
            family.model_type,
            ("top_k_experts",),
            EXPERTS_BESIDE,
            sizes,
            scoring="softmax",
        )
    own = with_kinds(entries, lambda i: (i + 1) % 6 == 0, "sliding_attention")
    if not isinstance(types := own["layer_types"], list) or not types:
        return family, own
    own["layer_types"] = [*types[:-1], "full_attention"]
    full = [
        str(i) for i, kind in enumerate(own["layer_types"]) if kind == "full_attention"
    ]
    listed: Any = own.get("per_layer_config")
    sizes = (
        {k.lstrip("0") or "0": x for k, x in listed.items()}
        if isinstance(listed, dict)
        else {}
    )
    names = {
        "head_dim": "global_head_dim",
        "num_key_value_heads": "num_global_key_value_heads",
    }
    one = sizes.get(full[0])
    if (
        isinstance(one, dict)
        and one.keys() <= {*names}
        and sizes == dict.fromkeys(full, one)
    ):
        del own["per_layer_config"]
        own |= {
            "global_head_dim": own.get("head_dim", 256),
            "num_global_key_value_heads": None,
        }
        own |= {names[name]: size for name, size in one.items()}
    elif not own.get("attention_k_eq_v"):
        own["num_global_key_value_heads"] = None
    return family, own


GEMMA4 = GEMMA3.like(
    "gemma4_text",
    norm_offset=0.0,
    names={"block_scale": "layers.{}.layer_scalar"},
    without=("query_pre_attn_scalar", "attn_logit_softcapping"),
    weightless_norms=("v_norm",),
    variant=_gemma4,
    sliding_window=512,
    sliding_window_pattern=None,
    global_head_dim=512,
    num_global_key_value_heads=None,
    attention_k_eq_v=False,
    use_bidirectional_attention=Key(None, only=(None, "vision")),
    hidden_size_per_layer_input=256,
    num_kv_shared_layers=0,
    use_double_wide_mlp=False,
    enable_moe_block=Key(False, only=(False, True)),
    partial_rotary_factor=key(1.0),
    **unread(
        "moe_intermediate_size",
        "num_experts",
        "top_k_experts",
        "vocab_size_per_layer_input",
    ),
    attention_scale=only(1.0),  # a constant, not a key of its files
    rope_parameters={
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": 1000000.0,
            "partial_rotary_factor": 0.25,
        },
        "sliding_attention": {"rope_theta": 10000.0},
    },
)

GEMMA4_UNIFIED = GEMMA4.like(
    "gemma4_unified_text",
    without=("hidden_size_per_layer_input", "enable_moe_block"),
    sliding_window=1024,
    max_position_embeddings=262144,
)
