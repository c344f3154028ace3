"""Llama, and the dense families that differ from it by keys, names, norms or factors."""

from refimpl.loading.families.family import (
    ATTENTION,
    ATTENTION_BIAS,
    BASE,
    MLP,
    QK_NORM,
    REQUIRED,
    ROPE,
    biased,
    fused,
    key,
    only,
    placed,
    unread,
)
from refimpl.model.config import LEARNED_ACTIVATION

WIDTH_NORM = placed(
    "layers.{}.self_attn.", q_width_norm="q_norm", k_width_norm="k_norm"
)

LLAMA = BASE.like(
    "llama",
    biased=ATTENTION_BIAS | biased("mlp_bias", "gate", "up", "down"),
    keys=ROPE,
    names=dict(embed="embed_tokens", final_norm="norm", lm_head="lm_head")
    | placed(
        "layers.{}.", attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"
    )
    | placed("layers.{}.self_attn.", *ATTENTION)
    | placed("layers.{}.mlp.", *MLP),
    num_key_value_heads=None,
    head_dim=None,
    attention_bias=False,
    mlp_bias=False,
    norm_eps=key(1e-6, "rms_norm_eps"),
    activation=key("silu", "hidden_act"),
    max_position_embeddings=2048,
    partial_rotary_factor=only(1.0),
)

MISTRAL = LLAMA.like(
    "mistral",
    biased={},
    windows="all",
    num_key_value_heads=8,
    sliding_window=4096,
    max_position_embeddings=131072,
)

MINISTRAL = MISTRAL.like("ministral", layer_types=None)

MINISTRAL3 = MISTRAL.like(
    "ministral3",
    rope_extras=("llama_4_scaling_beta", "max_position_embeddings"),
    head_dim=128,
    norm_eps=1e-5,
    sliding_window=None,
    max_position_embeddings=262144,
    rope_parameters={
        "type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 16.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 16384,
    },
)

QWEN2 = LLAMA.like(
    "qwen2",
    biased=biased(True, "q", "k", "v"),
    windows="above",
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
    layer_types=None,
    num_key_value_heads=32,
    max_position_embeddings=32768,
)

QWEN3 = QWEN2.like("qwen3", names=QK_NORM, biased=ATTENTION_BIAS, head_dim=128)

SEED_OSS = LLAMA.like(
    "seed_oss",
    biased=LLAMA.biased | biased("attention_out_bias", "o"),
    num_key_value_heads=8,
    head_dim=128,
    attention_bias=True,
    attention_out_bias=False,
    max_position_embeddings=524288,
)

INTERNLM3 = LLAMA.like(
    "internlm3",
    num_key_value_heads=2,
    head_dim=128,
    norm_eps=1e-5,
    max_position_embeddings=32768,
    attention_bias=key(False, "attention_bias", "qkv_bias"),
    mlp_bias=key(False, "mlp_bias", "bias"),
)

EXAONE = LLAMA.like(
    "exaone",
    bases=("transformer.", ""),
    buffers=(r"h\.\d+\.attn\.attention\.rotary\.inv_freq",),
    names=dict(embed="wte", final_norm="ln_f", lm_head="lm_head")
    | placed("h.{}.", attn_norm="ln_1", mlp_norm="ln_2")
    | placed("h.{}.attn.attention.", *ATTENTION[:3], o_proj="out_proj")
    | placed("h.{}.mlp.", gate_proj="c_fc_0", up_proj="c_fc_1", down_proj="c_proj"),
    num_hidden_layers=key(REQUIRED, "num_hidden_layers", "num_layers"),
    norm_eps=key(1e-5, "rms_norm_eps", "layer_norm_epsilon"),
    activation=key("silu", "hidden_act", "activation_function"),
    num_key_value_heads=8,
    rope_theta=500000.0,
    max_position_embeddings=4096,
)

SMOLLM3 = LLAMA.like(
    "smollm3",
    windows="unrotated",
    unrotated="listed",
    use_sliding_window=False,
    sliding_window=None,
    layer_types=None,
    no_rope_layers=None,
    no_rope_layer_interval=4,
    num_key_value_heads=4,
    rope_theta=2000000.0,
    tie_word_embeddings=True,
    max_position_embeddings=32768,
)

HUNYUAN = LLAMA.like(
    "hunyuan_v1_dense",
    names=placed(
        "layers.{}.self_attn.",
        q_rope_norm="query_layernorm",
        k_rope_norm="key_layernorm",
    ),
    norm_eps=1e-5,
    alpha=None,
    head_dim=key(None, echoes=("attention_head_dim",)),
    use_qk_norm=only(True),
    use_cla=only(False),
    use_rotary_pos_emb=only(True),
    **unread(
        "add_classification_head",
        "cla_share_factor",
        "class_num",
        "dense_list",
        "norm_type",
        "org_vocab_size",
        "pool_type",
    ),
)

CWM = LLAMA.like(
    "cwm",
    without=("attention_bias",),
    biased=biased("mlp_bias", "gate", "up", "down"),
    windows="after first",
    num_key_value_heads=8,
    head_dim=128,
    norm_eps=1e-5,
    max_position_embeddings=131072,
    rope_theta=1000000.0,
    sliding_window=8192,
    layer_types=None,
    sliding_window_pattern=only(4),  # a constant, not a key of its files
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 1000000.0,
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
)

# Factors of embeddings, attention, residual and logits; experts; sinks
GRANITE = LLAMA.like(
    "granite",
    embed_scale=key(1.0, "embedding_multiplier"),
    attention_scale=key(1.0, "attention_multiplier"),
    residual_scale=key(1.0, "residual_multiplier"),
    logit_divisor=key(1.0, "logits_scaling"),
)

GRANITE_SWA = GRANITE.like(
    "granite_swa",
    names=dict(sinks="layers.{}.self_attn.sinks"),
    windows="after first",
    num_key_value_heads=4,
    norm_eps=1e-5,
    tie_word_embeddings=True,
    sliding_window=128,
    layer_types=None,
    layer_rope_theta=None,
    max_position_embeddings=8192,
    sliding_window_pattern=only(4),  # a constant, not a key of its files
)

HYPERCLOVAX = GRANITE.like(
    "hyperclovax",
    names=placed("layers.{}.", attn_post_norm="post_norm1", mlp_post_norm="post_norm2"),
    without=("logit_divisor",),
    optional=dict.fromkeys(("attn_post_norm", "mlp_post_norm"), "use_post_norm"),
    attention_scale=None,
    use_post_norm=True,
    logit_scale=key(1.0, "logits_scaling"),
)

GRANITE_MOE = GRANITE.like(
    "granitemoe",
    without=MLP,
    biased=ATTENTION_BIAS,
    scoring="softmax",
    names={"router": "layers.{}.block_sparse_moe.router.layer"}
    | fused(
        "layers.{}.block_sparse_moe.input_linear",
        "experts.gate_proj",
        "experts.up_proj",
        stacked=True,
    )
    | fused(
        "layers.{}.block_sparse_moe.output_linear", "experts.down_proj", stacked=True
    ),
    num_experts=key(8, "num_local_experts"),
    num_experts_per_tok=2,
)

GRANITE_SHARED = GRANITE_MOE.like(
    "granitemoeshared",
    names=fused(
        "layers.{}.shared_mlp.input_linear",
        "shared_expert.gate_proj",
        "shared_expert.up_proj",
    )
    | {"shared_expert.down_proj": "layers.{}.shared_mlp.output_linear"},
    shared_expert_intermediate_size=key(0, "shared_intermediate_size"),
)

# Norms without weights, or after attention and MLP alone
OLMO = LLAMA.like(
    "olmo",
    without=("attn_norm", "mlp_norm", "final_norm"),
    norm="layer",
    weightless_norms=("attn_norm", "mlp_norm", "final_norm"),
    biased=ATTENTION_BIAS,
    qkv_limit=key(None, "clip_qkv"),
    norm_eps=only(1e-5),  # a constant of the family, not a key of its files
)

OLMO2 = LLAMA.like(
    "olmo2",
    without=("attn_norm", "mlp_norm"),
    biased=ATTENTION_BIAS,
    names=WIDTH_NORM
    | placed(
        "layers.{}.",
        attn_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    ),
    norm_eps=1e-5,
)

OLMO3 = OLMO2.like(
    "olmo3",
    windows="pattern",
    rope_theta=500000.0,
    rope_local_base_freq=500000.0,
    sliding_window=4096,
    sliding_window_pattern=only(4),
    layer_types=None,
)

EXAONE4 = OLMO2.like(
    "exaone4",
    without=("q_width_norm", "k_width_norm"),
    names=QK_NORM,
    biased={},
    windows="pattern",
    unrotated="full",
    num_key_value_heads=32,
    sliding_window=4096,
    sliding_window_pattern=4,
    layer_types=None,
)

# Channels that rotate in interleaved pairs
HELIUM = LLAMA.like(
    "helium",
    biased=biased("attention_bias", "q", "k", "v")
    | biased("mlp_bias", "gate", "up", "down"),
    interleaved=True,
    num_key_value_heads=20,
    head_dim=128,
    norm_eps=1e-8,
    rope_theta=100000.0,
    max_position_embeddings=4096,
)

ERNIE = HELIUM.like(
    "ernie4_5",
    biased=biased("use_bias", "q", "k", "v", "o", "gate", "up", "down"),
    num_key_value_heads=2,
    head_dim=128,
    norm_eps=1e-5,
    rope_theta=500000.0,
    max_position_embeddings=131072,
    tie_word_embeddings=True,
    use_bias=False,
    attention_bias=only(False),
    mlp_bias=only(False),
)

GLM = HELIUM.like(
    "glm",
    names=fused("layers.{}.mlp.gate_up_proj", "gate_proj", "up_proj"),
    biased=biased("attention_bias", "q", "k", "v"),
    num_key_value_heads=2,
    head_dim=128,
    norm_eps=1.5625e-7,
    rope_theta=10000.0,
    attention_bias=True,
    partial_rotary_factor=key(0.5),
    max_position_embeddings=131072,
    mlp_bias=only(False),
)

GLM4 = GLM.like(
    "glm4",
    names=placed(
        "layers.{}.",
        attn_post_norm="post_self_attn_layernorm",
        mlp_post_norm="post_mlp_layernorm",
    ),
)

# An MLP without a gate
ARCEE = LLAMA.like(
    "arcee",
    without=("gate_proj",),
    activation="relu2",
    norm_eps=1e-5,
    max_position_embeddings=4096,
)

NEMOTRON = ARCEE.like(
    "nemotron",
    norm="layer",
    norm_offset=1.0,
    norm_eps=key(1e-5),
    partial_rotary_factor=key(0.5),
    **unread("kv_channels"),
)

JAIS2 = ARCEE.like(
    "jais2",
    norm="layer",
    norm_eps=key(1e-5, "layer_norm_eps"),
    attention_bias=True,
    mlp_bias=True,
    max_position_embeddings=8192,
)

STARCODER2 = ARCEE.like(
    "starcoder2",
    names=dict(up_proj="layers.{}.mlp.c_fc", down_proj="layers.{}.mlp.c_proj"),
    norm="layer",
    biased=biased("use_bias", "q", "k", "v", "o", "up", "down"),
    windows="all",
    norm_eps=key(1e-5, "norm_epsilon"),
    activation="gelu_pytorch_tanh",
    num_key_value_heads=2,
    use_bias=True,
    sliding_window=None,
    tie_word_embeddings=True,
    mlp_type=only("default"),
    norm_type=only("layer_norm"),
    **unread("rms_norm_eps"),
)

APERTUS = ARCEE.like(
    "apertus",
    biased=ATTENTION_BIAS,
    activations={"xielu": "xielu"},
    names=QK_NORM
    | dict(
        attn_norm="layers.{}.attention_layernorm",
        mlp_norm="layers.{}.feedforward_layernorm",
        **{
            role: f"layers.{{}}.mlp.{role.replace('act', 'act_fn')}"
            for role in LEARNED_ACTIVATION
        },
    ),
    activation=only("xielu", "hidden_act"),
    max_position_embeddings=65536,
    rope_theta=12000000.0,
    qk_norm=only(True),
    post_norm=only(False),
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 12000000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
)
