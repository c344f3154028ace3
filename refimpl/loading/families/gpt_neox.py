"""GPT-NeoX: parallel residual, q, k and v interleaved head by head; GPT-J and StableLM."""

from dataclasses import replace

from refimpl.loading.families.family import ALL, ROPE, Entries, Family, biased, fused, separate
from refimpl.loading.families.learned_positions import GPT2
from refimpl.loading.families.llama import LLAMA

GPT_NEOX = Family(
    model_type="gpt_neox",
    bases=("gpt_neox.", ""),
    names=separate(
        embed="embed_in",
        attn_norm="layers.{}.input_layernorm",
        o_proj="layers.{}.attention.dense",
        mlp_norm="layers.{}.post_attention_layernorm",
        up_proj="layers.{}.mlp.dense_h_to_4h",
        down_proj="layers.{}.mlp.dense_4h_to_h",
        final_norm="final_layer_norm",
        lm_head="embed_out",
    ) | fused("layers.{}.attention.query_key_value", "q_proj", "k_proj", "v_proj", grouped=True),
    norm="layer",
    biased=biased("attention_bias", "q", "k", "v", "o") | biased(True, "up", "down"),
    keys={
        "norm_eps": "layer_norm_eps", "activation": "hidden_act", "rope_theta": "rotary_emb_base",
        "partial_rotary_factor": "rotary_pct",
    },
    defaults=ALL | ROPE | {
        "partial_rotary_factor": 0.25, "attention_bias": True, "use_parallel_residual": True,
        "norm_eps": 1e-5, "activation": "gelu", "max_position_embeddings": 2048,
    },
    echoes={"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"},
    buffers=(
        r"layers\.\d+\.attention\.(bias|masked_bias)",
        r"layers\.\d+\.attention\.rotary_emb\.inv_freq",
    ),
)  # fmt: skip

GPTJ = replace(
    GPT2,
    model_type="gptj",
    names=separate(
        embed="wte",
        attn_norm="h.{}.ln_1",
        q_proj="h.{}.attn.q_proj",
        k_proj="h.{}.attn.k_proj",
        v_proj="h.{}.attn.v_proj",
        o_proj="h.{}.attn.out_proj",
        mlp_norm="h.{}.ln_1",
        up_proj="h.{}.mlp.fc_in",
        down_proj="h.{}.mlp.fc_out",
        final_norm="ln_f",
        lm_head="lm_head",
    ),
    biased=biased(True, "up", "down") | {"lm_head": True},
    defaults=GPT2.defaults | ROPE | {
        "tie_word_embeddings": False, "max_position_embeddings": 2048, "rotary_dim": 64,
        "use_parallel_residual": True, "rotary": True,
    },
    only=(
        *GPT2.only, "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
        "use_parallel_residual", "rotary",
    ),
    position_offset=None,
    interleaved=True,
)  # fmt: skip


def _stablelm(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """With one norm per block where the residual is parallel."""
    if entries.get("use_parallel_residual") is not True:
        return family, entries
    shared = separate(mlp_norm="layers.{}.input_layernorm")
    return replace(family, names=family.names | shared), entries


STABLELM = replace(
    LLAMA,
    model_type="stablelm",
    norm="layer",
    biased=biased("use_qkv_bias", "q", "k", "v"),
    keys=LLAMA.keys | {"norm_eps": "layer_norm_eps"},
    defaults=LLAMA.defaults | {
        "num_key_value_heads": 32, "norm_eps": 1e-5, "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.25, "use_qkv_bias": False, "use_parallel_residual": False,
        "qk_layernorm": False,
    },
    only=("is_causal", "attention_bias", "mlp_bias", "qk_layernorm"),
    variant=_stablelm,
)  # fmt: skip
