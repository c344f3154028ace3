"""With LayerNorm: Cohere (parallel blocks with one norm, scaled logits) and StableLM."""

from refimpl.loading.families.family import (
    ATTENTION_BIAS,
    Entries,
    Family,
    biased,
    key,
    only,
    unread,
)
from refimpl.loading.families.llama import LLAMA

COHERE = LLAMA.like(
    "cohere", names=dict(mlp_norm="layers.{}.input_layernorm"), norm="layer", norm_bias=False,
    biased=ATTENTION_BIAS, interleaved=True, norm_eps=key(1e-5, "layer_norm_eps"),
    rope_theta=500000.0, max_position_embeddings=8192, tie_word_embeddings=True, logit_scale=0.0625,
    use_parallel_residual=only(True), use_qk_norm=only(False), mlp_bias=only(False),
)  # fmt: skip

COHERE2 = COHERE.like(
    "cohere2", windows="pattern", unrotated="unwindowed", rope_theta=10000.0, sliding_window=4096,
    layer_types=None, sliding_window_pattern=key(4, echoes=("_sliding_window_pattern",)),
    **unread(
        "layer_switch", "order_of_interleaved_layers", "position_embedding_type", "rotary_pct",
        "use_embedding_sharing", "use_gated_activation", "use_parallel_block",
        "use_parallel_embedding",
    ),
)  # fmt: skip


def _stablelm(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """With one norm per block where the residual is parallel."""
    if entries.get("use_parallel_residual") is not True:
        return family, entries
    shared = dict(mlp_norm="layers.{}.input_layernorm")
    return family.like(family.model_type, names=shared), entries


STABLELM = LLAMA.like(
    "stablelm", norm="layer", biased=biased("use_qkv_bias", "q", "k", "v"), variant=_stablelm,
    num_key_value_heads=32, norm_eps=key(1e-5, "layer_norm_eps"), max_position_embeddings=4096,
    partial_rotary_factor=key(0.25), use_qkv_bias=False, use_parallel_residual=False,
    qk_layernorm=only(False), attention_bias=only(False), mlp_bias=only(False),
)  # fmt: skip
