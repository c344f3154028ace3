"""Families with other mixers: Granite 4, LFM2, LFM3, Qwen 3.5, Bamba, Falcon-H1, OLMo, Nemotron."""

from dataclasses import replace
from math import inf
from typing import Any

from refimpl.loading.families.family import (
    ATTENTION_BIAS,
    LEGACY,
    MLP,
    MOST_LISTED,
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
    with_kinds,
)
from refimpl.loading.families.llama import GRANITE_SHARED, LLAMA, OLMO2, QWEN3
from refimpl.loading.families.mixtures import EXPERTS, NUMBERED, STACKS, linears


def _granite(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """Its rotation, the words of its blocks, and an MLP if there are no experts."""
    own = with_kinds(entries, lambda i: False)
    rotates = own.get("position_embedding_type") == "rope"
    family = family.like(family.model_type, unrotated="none" if rotates else "all")
    if own.get("num_local_experts", 8) == 0:
        own |= {"num_local_experts": 1, "num_experts_per_tok": 1, "moe_layers": []}
        own["intermediate_size"] = own.get("shared_intermediate_size", 1024)
    return family, own


MAMBA_INS = ("in_proj_z", "in_proj_x", "in_proj_bc", "in_proj_dt")


def mamba(place: str) -> dict[str, Any]:
    """The tensors of Mamba 2 in its module of a block."""
    others = {f"conv.{x}": f"conv1d.{x}" for x in ("weight", "bias")}
    others["state_norm.weight"] = "norm.weight"
    own = placed(place, "out_proj", "A_log", "D", "dt_bias", **others)
    return fused(f"{place}in_proj", *MAMBA_INS) | own


MAMBA_NAMES = mamba("layers.{}.mamba.")
MAMBA_BIASES = dict.fromkeys((*MAMBA_INS, "out_proj"), "mamba_proj_bias")
MAMBA_KEYS: dict[str, Any] = dict(
    mamba_n_heads=128,
    mamba_n_groups=1,
    mamba_d_state=256,
    mamba_d_head="auto",
    mamba_d_conv=4,
    mamba_expand=2,
    mamba_conv_bias=True,
    mamba_proj_bias=False,
    time_step_limit=None,
)
GRANITE_HYBRID = GRANITE_SHARED.like(
    "granitemoehybrid",
    biased=GRANITE_SHARED.biased | MAMBA_BIASES,
    optional={"conv.bias": "mamba_conv_bias"},
    mixers={"linear_attention": "mamba2"},
    variant=_granite,
    names=MAMBA_NAMES
    | fused("layers.{}.shared_mlp.input_linear", "gate_proj", "up_proj")
    | {"down_proj": "layers.{}.shared_mlp.output_linear"},
    shared_expert_intermediate_size=1024,
    moe_layers=None,
    layer_types=None,
    position_embedding_type=Key(None, only=(None, "rope", "nope")),
    normalization_function=only("rmsnorm"),
    **MAMBA_KEYS,
)


def _lfm2(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The kinds of its blocks from the numbers of those with attention; the width of its MLP."""
    own, attends = dict(entries), entries.get("full_attn_idxs")
    if isinstance(attends, list | None):
        own = with_kinds(entries, lambda i: attends is None or i in attends, "conv")
    own.pop("full_attn_idxs", None)
    width = own.get("block_ff_dim", own.get("intermediate_size", 12288))
    own.pop("block_ff_dim", None)
    factor = own.get("block_ffn_dim_multiplier", 1.0)
    multiple = own.get("block_multiple_of", 256)
    adjusted = own.get("block_auto_adjust_ff_dim", True)
    if (
        adjusted is True
        and type(width) is int
        and type(multiple) is int
        and multiple > 0
    ):
        width = 2 * width // 3
        if isinstance(factor, int | float) and 0 < factor < MOST_LISTED:
            width = -(-int(factor * width) // multiple) * multiple
    return family, own | {"intermediate_size": width}


LFM2 = LLAMA.like(
    "lfm2",
    biased=biased("conv_bias", "in", "out"),
    without=("attention_bias", "mlp_bias", "head_dim"),
    optional={"conv.bias": "conv_bias"},
    mixers={"conv": "short_convolution"},
    variant=_lfm2,
    names=placed("layers.{}.", attn_norm="operator_norm", mlp_norm="ffn_norm")
    | placed(
        "layers.{}.self_attn.",
        o_proj="out_proj",
        q_norm="q_layernorm",
        k_norm="k_layernorm",
    )
    | placed("layers.{}.conv.", "in_proj", "out_proj", "conv.weight", "conv.bias")
    | linears("", "layers.{}.feed_forward", NUMBERED)
    | {"final_norm": "embedding_norm"},
    num_key_value_heads=8,
    norm_eps=key(1e-5, "norm_eps", "block_norm_eps"),
    conv_bias=False,
    activation=only("silu"),
    rope_theta=1000000.0,
    max_position_embeddings=128000,
    tie_word_embeddings=key(True, "tie_embedding", "tie_word_embeddings"),
    layer_types=None,
    conv_taps=key(3, "conv_L_cache"),
    use_pos_enc=only(True),
    **unread(
        "block_auto_adjust_ff_dim",
        "block_ffn_dim_multiplier",
        "block_multiple_of",
        "block_dim",
        "block_use_swiglu",
        "conv_dim",
        "conv_dim_out",
        "num_heads",
        "theta",
    ),
)

LFM2_MOE = LFM2.like(
    "lfm2_moe",
    optional=LFM2.optional | {"router.correction": "use_expert_bias"},
    scoring="sigmoid",
    variant=None,
    names=linears("experts.", "layers.{}.feed_forward.experts.{}", NUMBERED)
    | placed(
        "layers.{}.feed_forward.",
        **{"router": "gate", "router.correction": "expert_bias"},
    ),
    num_experts=32,
    num_experts_per_tok=4,
    moe_intermediate_size=1792,
    norm_topk_prob=True,
    routed_scaling_factor=1.0,
    first_k_dense_replace=key(2, "num_dense_layers"),
    use_expert_bias=True,
    router_sum_eps=only(1e-6),  # a constant, not a key of its files
)


def _lfm3(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """Whether heads have a gate, the kinds of its blocks, and which rotary parameters it reads."""
    if entries.get("use_attention_gate") is False:
        family = replace(family, gate=False)
    own = with_kinds(entries, lambda i: i % 4 == 2, "conv")
    if entries.get("layer_types") is None:
        kinds = enumerate(own["layer_types"] or [])
        own["layer_types"] = [
            "sliding_attention" if i and i % 4 == 0 else x for i, x in kinds
        ]
    if isinstance(ropes := own.get("rope_parameters"), dict):
        own["rope_parameters"] = {
            kind: _lfm3_rope(entry) for kind, entry in ropes.items()
        }
    return family, own


def _lfm3_rope(entry: Any) -> Any:
    """The base that both kinds have if it is omitted; without scaling, all channels turn."""
    if not isinstance(entry, dict):
        return entry
    whole = entry.get("rope_type", entry.get("type", "default")) == "default"
    omitted = "partial_rotary_factor" if whole else ""
    return {"rope_theta": 1000000.0} | {
        name: x for name, x in entry.items() if name != omitted
    }


LFM3 = LFM2.like(
    "lfm3",
    biased=LFM2.biased | ATTENTION_BIAS,
    gate=True,
    variant=_lfm3,
    names=placed(
        "layers.{}.self_attn.", "o_proj", "q_norm", "k_norm", attn_gate="gate_proj"
    )
    | placed(
        "layers.{}.", attn_post_norm="post_operator_norm", mlp_post_norm="post_ffn_norm"
    ),
    optional=LFM2.optional
    | dict.fromkeys(("attn_post_norm", "mlp_post_norm"), "use_sandwich_norm"),
    num_key_value_heads=4,
    head_dim=128,
    conv_taps=7,
    attention_bias=False,
    sliding_window=256,
    norm_eps=key(1e-5, "norm_eps", "rms_norm_eps"),
    rope_local_base_freq=10000.0,
    gating=Key(True, ("use_attention_gate",), only=(True, False)),
    use_sandwich_norm=True,
    partial_rotary_factor=key(1.0),
    rope_scaling=only(None),
    rope_parameters={
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": 1000000.0,
            "partial_rotary_factor": 0.5,
        },
        "sliding_attention": {"rope_theta": 10000.0},
    },
)


def _qwen3_5(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The kinds of its blocks from the distance between those with attention."""
    interval = entries.get("full_attention_interval", 4)
    if type(interval) is not int or interval < 1:
        return family, entries
    return family, with_kinds(entries, lambda i: (i + 1) % interval == 0)


DELTA = "layers.{}.linear_attn."
QWEN3_5 = QWEN3.like(
    "qwen3_5_text",
    bases=("model.", "model.language_model.", ""),
    norm_offset=1.0,
    biased=ATTENTION_BIAS | {"attn_gate": "attention_bias"},
    without=("use_sliding_window", "sliding_window", "max_window_layers"),
    windows="none",
    mixers={"linear_attention": "gated_delta_rule"},
    gate=True,
    buffers=(r"^mtp\..*",),
    variant=_qwen3_5,
    names=fused("layers.{}.self_attn.q_proj", "q_proj", "attn_gate", grouped=True)
    | fused(f"{DELTA}in_proj_qkv", "in_proj_q", "in_proj_k", "in_proj_v")
    | placed(
        DELTA,
        "in_proj_z",
        "in_proj_b",
        "in_proj_a",
        "out_proj",
        "A_log",
        "dt_bias",
        **{"conv.weight": "conv1d.weight", "state_norm.weight": "norm.weight"},
    ),
    rope_extras=("mrope_section", "mrope_interleaved"),  # equal positions in a text
    num_key_value_heads=4,
    head_dim=256,
    linear_num_key_heads=16,
    linear_num_value_heads=32,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
    linear_conv_kernel_dim=4,
    partial_rotary_factor=key(0.25),
    activation=only("silu", "hidden_act"),
    attn_output_gate=only(True),
    output_gate_type=Key("swish", only=("swish", "silu")),
    **unread("full_attention_interval"),
)

QWEN3_5_MOE = QWEN3_5.like(
    "qwen3_5_moe_text",
    without=MLP,
    scoring="softmax",
    stacks=STACKS,
    names=EXPERTS
    | linears("shared_expert.", "layers.{}.mlp.shared_expert")
    | {"shared_expert.gate": "layers.{}.mlp.shared_expert_gate"},
    num_experts=256,
    num_experts_per_tok=8,
    moe_intermediate_size=512,
    intermediate_size=None,
    shared_expert_intermediate_size=512,
    num_key_value_heads=2,
)

QWEN3_NEXT = QWEN3_5_MOE.like(
    "qwen3_next",
    names={x: LLAMA.names[x] for x in MLP}
    | fused(f"{DELTA}in_proj_qkvz", *(f"in_proj_{x}" for x in "qkvz"), grouped=True)
    | fused(f"{DELTA}in_proj_ba", "in_proj_b", "in_proj_a", grouped=True),
    intermediate_size=5632,
    num_experts=512,
    num_experts_per_tok=10,
    norm_topk_prob=True,
    decoder_sparse_step=1,
    mlp_only_layers=None,
)


def _bamba(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The kinds of its blocks from the numbers of those with attention."""
    own = {
        k: x
        for k, x in entries.items()
        if k not in ("layers_block_type", "attn_layer_indices")
    }
    attends = entries.get("attn_layer_indices") or []
    return family, with_kinds(own, lambda i: i in attends) if isinstance(
        attends, list
    ) else own


BAMBA = LLAMA.like(
    "bamba",
    biased=LLAMA.biased | MAMBA_BIASES,
    without=("head_dim",),
    keys=MAMBA_KEYS,
    optional={"conv.bias": "mamba_conv_bias"},
    mixers={"linear_attention": "mamba2"},
    variant=_bamba,
    names=MAMBA_NAMES
    | {"mlp_norm": "layers.{}.pre_ff_layernorm", "final_norm": "final_layernorm"}
    | {name: f"layers.{{}}.feed_forward.{name}" for name in MLP},
    num_key_value_heads=8,
    norm_eps=1e-5,
    max_position_embeddings=262144,
    layer_types=None,
    partial_rotary_factor=only(0.5),
    activation=only("silu", "hidden_act"),
)

FALCON_H1 = BAMBA.like(
    "falcon_h1",
    biased=BAMBA.biased | {"out_proj": "projectors_bias"},
    without=("layer_types",),
    optional=BAMBA.optional | {"state_norm.weight": "mamba_rms_norm"},
    mixers={"": "attention_beside_mamba2"},
    variant=None,
    head_dim=None,
    max_position_embeddings=8192,
    partial_rotary_factor=only(1.0),
    mamba_d_ssm=1024,
    mamba_rms_norm=False,
    mamba_norm_before_gate=True,
    projectors_bias=False,
    embed_scale=key(1.0, "embedding_multiplier"),
    logit_scale=key(1.0, "lm_head_multiplier"),
    mlp_multipliers=None,
    ssm_multipliers=None,
    mamba_use_mlp=only(True),
    key_multiplier=1.0,
    attention_in_multiplier=1.0,
    attention_out_multiplier=1.0,
    ssm_in_multiplier=1.0,
    ssm_out_multiplier=1.0,
)


def _olmo(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The kinds of its blocks, one with attention at least; no rotation if its base is null."""
    own: dict[str, Any] = dict(_qwen3_5(family, entries)[1])
    if entries.get("layer_types") is None and len(own.get("layer_types") or "four") < 4:
        own["layer_types"][-1] = "full_attention"
    entry = own.get("rope_parameters") or own
    if isinstance(entry, dict) and entry.get("rope_theta", 0) is None:
        family = family.like(family.model_type, unrotated="all")
        own = {
            name: own[name]
            for name in own
            if name not in ("rope_parameters", "rope_theta")
        }
    return family, own


OLMO_HYBRID = OLMO2.like(
    "olmo_hybrid",
    biased=ATTENTION_BIAS,
    without=("mlp_bias", "head_dim"),
    mixers={"linear_attention": "gated_delta_rule"},
    variant=_olmo,
    names={x: LLAMA.names[x] for x in ("attn_norm", "mlp_norm")}
    | placed(
        DELTA,
        "A_log",
        "dt_bias",
        out_proj="o_proj",
        in_proj_z="g_proj",
        **{f"in_proj_{x}": f"{x}_proj" for x in "qkvba"},
        **{f"conv_{x}.weight": f"{x}_conv1d.weight" for x in "qkv"},
        **{"state_norm.weight": "o_norm.weight"},
    ),
    mixer_of=dict.fromkeys(("attn_norm", "mlp_norm"), "gated_delta_rule")
    | dict.fromkeys(("attn_post_norm", "mlp_post_norm"), "attention"),
    stacks={  # as transformers writes them
        "attn_norm": Location("layers.{}.attention_layer_norm"),
        "mlp_norm": Location("layers.{}.feedforward_layer_norm"),
        "attn_post_norm": Location("layers.{}.feedforward_layer_norm"),
    },
    norm_eps=1e-6,
    max_position_embeddings=65536,
    layer_types=None,
    activation=only("silu", "hidden_act"),
    linear_num_key_heads=None,
    linear_num_value_heads=None,
    linear_key_head_dim=None,
    linear_value_head_dim=None,
    linear_conv_kernel_dim=4,
    linear_allow_neg_eigval=True,
    state_norm_eps=only(1e-5),  # a constant of the family, not a key of its files
)


NEMOTRON_BLOCKS = {  # by letter: the word for a block, and its MLP
    "M": ("linear_attention", "none"),
    "*": ("full_attention", "none"),
    "-": ("mlp", "dense"),
    "E": ("moe", "sparse"),
}


def _nemotron(family: Family, entries: Entries) -> tuple[Family, Entries]:
    """The kinds of its blocks, from words or letters, and the limits of its time steps."""
    own, name = dict(entries), "layers_block_type"
    if isinstance(letters := own.get("hybrid_override_pattern"), str):
        words = [NEMOTRON_BLOCKS.get(x, (x,))[0] for x in letters]
        own |= {"hybrid_override_pattern": words, name: own.get(name) or words}
    if isinstance(own.get(name), list):
        own[name] = [LEGACY.get(str(x), x) for x in own[name]]
        mlps = dict(NEMOTRON_BLOCKS.values())
        own["mlp_layer_types"] = [mlps.get(str(x), "none") for x in own[name]]
        own.setdefault("num_hidden_layers", len(own[name]))
    return family, own | {"time_step_limit": [own.get("time_step_min", 0.001), inf]}


MIXER = "layers.{}.mixer."
NEMOTRON_H = LLAMA.like(
    "nemotron_h",
    bases=("backbone.", "model.", ""),
    without=("gate_proj",),
    optional={"conv.bias": "mamba_conv_bias"},
    unrotated="all",
    mixers={"linear_attention": "mamba2", "mlp": "no_mixer", "moe": "no_mixer"},
    scoring="sigmoid",
    buffers=(r"^mtp\..*",),
    variant=_nemotron,
    names=mamba(MIXER)
    | {f"{x}_proj": f"{MIXER}{x}_proj" for x in ("q", "k", "v", "o")}
    | dict(
        embed="embeddings",
        attn_norm="layers.{}.norm",
        mlp_norm="layers.{}.norm",
        final_norm="norm_f",
        router=f"{MIXER}gate",
    )
    | {"router.correction": f"{MIXER}gate.e_score_correction_bias"}
    | {
        f"{of}{x}": f"{MIXER}{place}{x}"
        for x in MLP[1:]
        for of, place in (
            ("", ""),
            ("experts.", "experts.{}."),
            ("shared_expert.", "shared_experts."),
        )
    },
    biased=dict.fromkeys((*MAMBA_INS, "out_proj"), "use_bias")
    | dict.fromkeys(
        (f"{of}{x}" for of in ("", "shared_expert.") for x in MLP[1:]), "mlp_bias"
    ),
    stacks={
        f"experts.{x}": Location(f"{MIXER}experts.{x}", stacked=True, weight="")
        for x in MLP[1:]
    },
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=4096,
    use_bias=False,
    norm_eps=key(1e-5, "layer_norm_epsilon", echoes=("norm_eps", "rms_norm_eps")),
    activation=key("relu2", "mlp_hidden_act"),
    mamba_hidden_act=only("silu"),
    layer_types=key(None, "layers_block_type", echoes=("hybrid_override_pattern",)),
    mamba_n_heads=key(128, "mamba_num_heads"),
    mamba_d_head=key(64, "mamba_head_dim"),
    mamba_n_groups=key(8, "n_groups", "mamba_n_groups"),
    time_step_limit=None,
    mamba_d_state=key(128, "ssm_state_size"),
    mamba_d_conv=key(4, "conv_kernel"),
    mamba_conv_bias=key(True, "use_conv_bias", "mamba_conv_bias"),
    mlp_layer_types=None,
    num_experts=key(8, "n_routed_experts"),
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    moe_intermediate_size=7688,
    routed_scaling_factor=1.0,
    norm_topk_prob=True,
    shared_expert_intermediate_size=key(7688, "moe_shared_expert_intermediate_size"),
    n_shared_expert=only(1, "n_shared_experts"),
    moe_latent_size=only(None),
    attention_bias=only(False),
    sliding_window=only(None),
    tie_word_embeddings=only(False),
    **unread("expand", "mamba_expand", "mamba_proj_bias", "time_step_min"),
)
