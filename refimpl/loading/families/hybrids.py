"""Families whose blocks mix tokens in several ways: Granite 4, LFM2, Qwen 3.5, Bamba."""

from typing import Any

from refimpl.loading.families.family import (
    Entries,
    Family,
    Key,
    biased,
    fused,
    key,
    only,
    unread,
)  # fmt: skip
from refimpl.loading.families.granite import GRANITE_SHARED
from refimpl.loading.families.llama import LLAMA, QWEN3
from refimpl.loading.families.mixtures import EXPERTS, MLP, STACKS, linears

MOST = 10_000  # blocks, and the factor of a width, of which a list or a product is made


def _granite(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """Its rotation, the words of its blocks, and an MLP if there are no experts."""
    own: dict[str, Any] = dict(entries)
    types, count = own.get("layer_types"), own.get("num_hidden_layers")
    if types is None and type(count) is int and count <= MOST:
        types = ["linear_attention"] * count
    old = {"mamba": "linear_attention", "attention": "full_attention"}
    own["layer_types"] = [old.get(str(x), x) for x in types] if isinstance(types, list) else types
    rotates = own.get("position_embedding_type") == "rope"
    family = family.like(family.model_type, unrotated="none" if rotates else "all")
    if own.get("num_local_experts", 8) != 0:
        return family, own
    dense = fused("layers.{}.shared_mlp.input_linear", "gate_proj", "up_proj")
    of_experts = [
        role for role in family.names if role.startswith(("router", "experts.", "shared"))
    ]
    return family.like(
        family.model_type,
        without=(*of_experts, "num_experts", "shared_expert_intermediate_size"),
        names=dense | {"down_proj": "layers.{}.shared_mlp.output_linear"},
        keys=dict(
            intermediate_size=key(1024, "shared_intermediate_size"),
            **unread("num_local_experts", "num_experts_per_tok"),
        ),
        scoring=None,
    ), {k: x for k, x in own.items() if k != "intermediate_size"}  # fmt: skip


MAMBA = "layers.{}.mamba."
MAMBA_INS = ("in_proj_z", "in_proj_x", "in_proj_bc", "in_proj_dt")
MAMBA_NAMES = fused(f"{MAMBA}in_proj", *MAMBA_INS) | {
    "conv.weight": f"{MAMBA}conv1d.weight", "conv.bias": f"{MAMBA}conv1d.bias",
    "state_norm.weight": f"{MAMBA}norm.weight",
    **{name: f"{MAMBA}{name}" for name in ("out_proj", "A_log", "D", "dt_bias")},
}  # fmt: skip
MAMBA_BIASES = dict.fromkeys((*MAMBA_INS, "out_proj"), "mamba_proj_bias")
MAMBA_KEYS = dict(
    mamba_n_heads=128, mamba_n_groups=1, mamba_d_state=256, mamba_d_head="auto", mamba_d_conv=4,
    mamba_expand=2, mamba_conv_bias=True, mamba_proj_bias=False, time_step_limit=None,
    **unread("mamba_chunk_size"),
)  # fmt: skip
GRANITE_HYBRID = GRANITE_SHARED.like(
    "granitemoehybrid",
    names=MAMBA_NAMES,
    biased=GRANITE_SHARED.biased | MAMBA_BIASES,
    keys=dict(
        shared_expert_intermediate_size=1024,
        layer_types=None,
        position_embedding_type=Key(None, only=(None, "rope", "nope")),
        normalization_function=only("rmsnorm"), **unread("init_method"), **MAMBA_KEYS,
    ),
    optional={"conv.bias": "mamba_conv_bias"},
    mixers={"linear_attention": "mamba2"},
    variant=_granite,
)  # fmt: skip


def _lfm2(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The kinds of its blocks from the numbers of those with attention; the width of its MLP."""
    own = dict(entries)
    count, attends = own.get("num_hidden_layers"), own.pop("full_attn_idxs", None)
    if own.get("layer_types") is None and type(count) is int and 0 < count <= MOST:
        every = range(count)
        attends = every if attends is None else attends
        if isinstance(attends, list | range):
            own["layer_types"] = ["full_attention" if i in attends else "conv" for i in every]
    width = own.get("block_ff_dim", own.get("intermediate_size", 12288))
    own.pop("block_ff_dim", None)
    factor = own.get("block_ffn_dim_multiplier", 1.0)
    multiple = own.get("block_multiple_of", 256)
    adjusted = own.get("block_auto_adjust_ff_dim", True)
    if adjusted is True and type(width) is int and type(multiple) is int and multiple > 0:
        width = 2 * width // 3
        if isinstance(factor, int | float) and 0 < factor < MOST:
            width = -(-int(factor * width) // multiple) * multiple
    return family, own | {"intermediate_size": width}


LFM2 = LLAMA.like(
    "lfm2",
    names=dict(
        attn_norm="layers.{}.operator_norm",
        o_proj="layers.{}.self_attn.out_proj",
        q_norm="layers.{}.self_attn.q_layernorm",
        k_norm="layers.{}.self_attn.k_layernorm",
        in_proj="layers.{}.conv.in_proj",
        out_proj="layers.{}.conv.out_proj",
        mlp_norm="layers.{}.ffn_norm",
        gate_proj="layers.{}.feed_forward.w1",
        up_proj="layers.{}.feed_forward.w3",
        down_proj="layers.{}.feed_forward.w2",
        final_norm="embedding_norm",
    ) | {f"conv.{x}": f"layers.{{}}.conv.conv.{x}" for x in ("weight", "bias")},
    biased=biased("conv_bias", "in", "out"),
    without=("attention_bias", "mlp_bias", "head_dim"),
    keys=dict(
        num_key_value_heads=8, norm_eps=key(1e-5, "norm_eps", "block_norm_eps"), conv_bias=False,
        activation=only("silu"), rope_theta=1000000.0, max_position_embeddings=128000,
        tie_word_embeddings=key(True, "tie_embedding", "tie_word_embeddings"), layer_types=None,
        conv_taps=key(3, "conv_L_cache"), use_pos_enc=only(True),
        **unread(
            "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of",
            "block_dim", "block_mlp_init_scale", "block_out_init_scale", "block_use_swiglu",
            "block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init",
            "num_heads", "theta",
        ),
    ),
    optional={"conv.bias": "conv_bias"},
    mixers={"conv": "short_convolution"},
    variant=_lfm2,
)  # fmt: skip

LFM2_MOE = LFM2.like(
    "lfm2_moe",
    names={
        "router": "layers.{}.feed_forward.gate",
        "router.correction": "layers.{}.feed_forward.expert_bias",
        **{
            f"experts.{role}": f"layers.{{}}.feed_forward.experts.{{}}.{name}"
            for role, name in zip(MLP, ("w1", "w3", "w2"), strict=True)
        },
    },
    keys=dict(
        num_experts=32, num_experts_per_tok=4, moe_intermediate_size=1792, norm_topk_prob=True,
        routed_scaling_factor=1.0, first_k_dense_replace=key(2, "num_dense_layers"),
        use_expert_bias=True,
        router_sum_eps=only(1e-6),  # a constant, not a key of its files
    ),
    optional=LFM2.optional | {"router.correction": "use_expert_bias"},
    scoring="sigmoid",
    variant=None,
)  # fmt: skip


def _qwen3_5(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The kinds of its blocks from the distance between those with attention."""
    own, interval = dict(entries), entries.get("full_attention_interval", 4)
    count = own.get("num_hidden_layers")
    numbers = all(type(x) is int and 0 < x <= MOST for x in (count, interval))
    if own.get("layer_types") is None and numbers:
        full = [(i + 1) % interval == 0 for i in range(int(str(count)))]
        own["layer_types"] = ["full_attention" if x else "linear_attention" for x in full]
    return family, own


DELTA = "layers.{}.linear_attn."
QWEN3_5 = QWEN3.like(
    "qwen3_5_text",
    bases=("model.language_model.", "model.", ""),
    norm_offset=1.0,
    names=fused("layers.{}.self_attn.q_proj", "q_proj", "attn_gate", grouped=True)
    | fused(f"{DELTA}in_proj_qkv", "in_proj_q", "in_proj_k", "in_proj_v")
    | {name: f"{DELTA}{name}" for name in (
        "in_proj_z", "in_proj_b", "in_proj_a", "out_proj", "A_log", "dt_bias")}
    | {"conv.weight": f"{DELTA}conv1d.weight", "state_norm.weight": f"{DELTA}norm.weight"},
    biased=biased("attention_bias", "q", "k", "v", "o") | {"attn_gate": "attention_bias"},
    without=("use_sliding_window", "sliding_window", "max_window_layers"),
    keys=dict(
        num_key_value_heads=4, head_dim=256, linear_num_key_heads=16, linear_num_value_heads=32,
        linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4,
        partial_rotary_factor=key(0.25), activation=only("silu", "hidden_act"),
        attn_output_gate=only(True), output_gate_type=Key("swish", only=("swish", "silu")),
        **unread(
            "full_attention_interval", "mamba_ssm_dtype", "mtp_num_hidden_layers",
            "mtp_use_dedicated_embeddings",
        ),
    ),
    windows="none",
    mixers={"linear_attention": "gated_delta_rule"},
    gate="sigmoid",
    rope_extras=("mrope_section", "mrope_interleaved"),  # equal positions in a text
    buffers=(r"^mtp\..*",),
    variant=_qwen3_5,
)  # fmt: skip

QWEN3_5_MOE = QWEN3_5.like(
    "qwen3_5_moe_text",
    without=MLP,
    names=EXPERTS | linears("shared_expert.", "layers.{}.mlp.shared_expert")
    | {"shared_expert.gate": "layers.{}.mlp.shared_expert_gate"},
    keys=dict(
        num_experts=256, num_experts_per_tok=8, moe_intermediate_size=512, intermediate_size=None,
        shared_expert_intermediate_size=512, num_key_value_heads=2,
    ),
    scoring="softmax",
    stacks=STACKS,
)  # fmt: skip

QWEN3_NEXT = QWEN3_5_MOE.like(
    "qwen3_next",
    names={x: LLAMA.names[x] for x in MLP}
    | fused(f"{DELTA}in_proj_qkvz", *(f"in_proj_{x}" for x in "qkvz"), grouped=True)
    | fused(f"{DELTA}in_proj_ba", "in_proj_b", "in_proj_a", grouped=True),
    keys=dict(
        intermediate_size=5632, num_experts=512, num_experts_per_tok=10, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=None,
    ),
)  # fmt: skip


def _bamba(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The kinds of its blocks from the numbers of those with attention."""
    own: dict[str, Any] = {k: x for k, x in entries.items() if k != "layers_block_type"}
    attends, count = own.pop("attn_layer_indices", None) or [], own.get("num_hidden_layers")
    if isinstance(attends, list) and type(count) is int and count <= MOST:
        words = ("linear_attention", "full_attention")
        own["layer_types"] = [words[i in attends] for i in range(count)]
    return family, own


BAMBA = LLAMA.like(
    "bamba",
    names=MAMBA_NAMES
    | {"mlp_norm": "layers.{}.pre_ff_layernorm", "final_norm": "final_layernorm"}
    | {name: f"layers.{{}}.feed_forward.{name}" for name in MLP},
    biased=LLAMA.biased | MAMBA_BIASES,
    without=("head_dim",),
    keys=MAMBA_KEYS | dict(
        num_key_value_heads=8, norm_eps=1e-5, max_position_embeddings=262144, layer_types=None,
        partial_rotary_factor=only(0.5), activation=only("silu", "hidden_act"),
        **unread("num_logits_to_keep", "z_loss_coefficient", "attn_rotary_emb"),
    ),
    optional={"conv.bias": "mamba_conv_bias"},
    mixers={"linear_attention": "mamba2"},
    variant=_bamba,
)  # fmt: skip
