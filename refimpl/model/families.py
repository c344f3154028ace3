"""The ten families, as data: how each spells its config, names its tensors, and stores them.

A close family is a `replace` of another one. Nothing outside the reading of files looks here.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Part:
    """Where a role's weight (and bias) lies in the file.

    Args:
        name: The file's tensor, without its base prefix and `.weight`; `{}` is the block's number.
        fused: Roles that share the tensor, in the file's order of rows.
        per_head: The fused roles alternate head by head.
        transposed: The file holds [in, out].
    """

    name: str
    fused: tuple[str, ...] = ()
    per_head: bool = False
    transposed: bool = False


@dataclass(frozen=True)
class Family:
    """One family: spelling of its config, names of its tensors, and what is not in either.

    Args:
        model_type: `model_type` in `config.json`.
        bases: Prefixes of the tensors, the first that fits the file is taken.
        names: Our roles to their place in the file; a role that is absent does not exist.
        norm: Kind of every norm.
        norm_offset: Added to every stored norm gain.
        biased: Linears with a bias: True, or the config key that says so.
        keys: Our config keys to the file's, where they differ.
        defaults: Keys that `config.json` may omit, and what that means (as in the family's
            configuration class); a key neither here nor in `REQUIRED` is not understood.
        only: Keys of which no value but the default is supported.
        echoes: The file's second spellings of our keys: they may only repeat the first one.
        windows: Which blocks slide where `layer_types` is absent: "none", "all", "even" ones,
            those "above" max_window_layers, or all but the last of each "pattern".
        scaled_embedding: Embeddings are multiplied by sqrt(D).
        position_offset: First row of the learned positions in use, or None for rotary positions.
        buffers: Patterns of tensors that old files carry and nobody needs.
    """

    model_type: str
    bases: tuple[str, ...]
    names: dict[str, Part]
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    biased: dict[str, bool | str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ("is_causal",)
    echoes: dict[str, str] = field(default_factory=dict)
    windows: Literal["none", "all", "even", "above", "pattern"] = "none"
    scaled_embedding: bool = False
    position_offset: int | None = None
    buffers: tuple[str, ...] = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def _parts(**names: str) -> dict[str, Part]:
    """Roles that have a tensor of their own."""
    return {role: Part(name) for role, name in names.items()}


def _biased(value: bool | str, *roles: str) -> dict[str, bool | str]:
    """The same rule for the biases of several linears."""
    return dict.fromkeys((f"{role}_proj" for role in roles), value)


# Config keys without a default: every file must give them.
REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_ALL: dict[str, Any] = {"is_causal": True, "tie_word_embeddings": False}
_ROPE: dict[str, Any] = {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}
_ROPE |= {"rope_scaling": None, "rope_parameters": None, "original_max_position_embeddings": None}
_QK_NORM = _parts(q_norm="layers.{}.self_attn.q_norm", k_norm="layers.{}.self_attn.k_norm")

LLAMA = Family(
    model_type="llama",
    bases=("model.", ""),
    names=_parts(
        embed="embed_tokens",
        attn_norm="layers.{}.input_layernorm",
        q_proj="layers.{}.self_attn.q_proj",
        k_proj="layers.{}.self_attn.k_proj",
        v_proj="layers.{}.self_attn.v_proj",
        o_proj="layers.{}.self_attn.o_proj",
        mlp_norm="layers.{}.post_attention_layernorm",
        gate_proj="layers.{}.mlp.gate_proj",
        up_proj="layers.{}.mlp.up_proj",
        down_proj="layers.{}.mlp.down_proj",
        final_norm="norm",
        lm_head="lm_head",
    ),
    biased=_biased("attention_bias", "q", "k", "v", "o")
    | _biased("mlp_bias", "gate", "up", "down"),
    keys={"norm_eps": "rms_norm_eps", "activation": "hidden_act"},
    defaults=_ALL
    | _ROPE
    | {"num_key_value_heads": None, "head_dim": None, "attention_bias": False, "mlp_bias": False}
    | {"norm_eps": 1e-6, "activation": "silu", "max_position_embeddings": 2048},
    only=("is_causal", "partial_rotary_factor"),
)

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    biased={},
    defaults=LLAMA.defaults
    | {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
    windows="all",
)

QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    biased=_biased(True, "q", "k", "v"),
    defaults=LLAMA.defaults
    | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
    | {"layer_types": None, "num_key_value_heads": 32, "max_position_embeddings": 32768},
    windows="above",
)

QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    names=LLAMA.names | _QK_NORM,
    biased=_biased("attention_bias", "q", "k", "v", "o"),
    defaults=QWEN2.defaults | {"head_dim": 128},
)

GEMMA2 = replace(
    LLAMA,
    model_type="gemma2",
    names=LLAMA.names
    | _parts(
        attn_post_norm="layers.{}.post_attention_layernorm",
        mlp_norm="layers.{}.pre_feedforward_layernorm",
        mlp_post_norm="layers.{}.post_feedforward_layernorm",
    ),
    norm_offset=1.0,
    biased=_biased("attention_bias", "q", "k", "v", "o"),
    keys=LLAMA.keys | {"activation": "hidden_activation"},
    defaults=LLAMA.defaults
    | {"activation": "gelu_pytorch_tanh", "head_dim": 256, "query_pre_attn_scalar": 256}
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096}
    | {"layer_types": None, "num_key_value_heads": 4, "tie_word_embeddings": True}
    | {"max_position_embeddings": 8192},
    echoes={"hidden_act": "activation", "sliding_window_size": "sliding_window"},
    windows="even",
    scaled_embedding=True,
)

GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    names=GEMMA2.names | _QK_NORM,
    defaults=GEMMA2.defaults
    | {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6}
    | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    | {"max_position_embeddings": 131072},
    echoes={"hidden_act": "activation", "_sliding_window_pattern": "sliding_window_pattern"},
    windows="pattern",
)

PHI3 = replace(
    LLAMA,
    model_type="phi3",
    names=LLAMA.names
    | dict.fromkeys(
        ("q_proj", "k_proj", "v_proj"),
        Part("layers.{}.self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj")),
    )
    | dict.fromkeys(
        ("gate_proj", "up_proj"), Part("layers.{}.mlp.gate_up_proj", ("gate_proj", "up_proj"))
    ),
    biased={},
    defaults=LLAMA.defaults
    | {"norm_eps": 1e-5, "sliding_window": None, "max_position_embeddings": 4096},
    only=("is_causal", "attention_bias"),
    windows="all",
)

_NEOX_QKV = Part("layers.{}.attention.query_key_value", ("q_proj", "k_proj", "v_proj"), True)

GPT_NEOX = Family(
    model_type="gpt_neox",
    bases=("gpt_neox.", ""),
    names=_parts(
        embed="embed_in",
        attn_norm="layers.{}.input_layernorm",
        o_proj="layers.{}.attention.dense",
        mlp_norm="layers.{}.post_attention_layernorm",
        up_proj="layers.{}.mlp.dense_h_to_4h",
        down_proj="layers.{}.mlp.dense_4h_to_h",
        final_norm="final_layer_norm",
        lm_head="embed_out",
    )
    | dict.fromkeys(_NEOX_QKV.fused, _NEOX_QKV),
    norm="layer",
    biased=_biased("attention_bias", "q", "k", "v", "o") | _biased(True, "up", "down"),
    keys={"norm_eps": "layer_norm_eps", "activation": "hidden_act"}
    | {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    defaults=_ALL
    | _ROPE
    | {"partial_rotary_factor": 0.25, "attention_bias": True, "use_parallel_residual": True}
    | {"norm_eps": 1e-5, "activation": "gelu", "max_position_embeddings": 2048},
    echoes={"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"},
    buffers=(
        r"layers\.\d+\.attention\.(bias|masked_bias)",
        r"layers\.\d+\.attention\.rotary_emb\.inv_freq",
    ),
)

_GPT2_QKV = Part("h.{}.attn.c_attn", ("q_proj", "k_proj", "v_proj"), transposed=True)

GPT2 = Family(
    model_type="gpt2",
    bases=("transformer.", ""),
    names=_parts(
        embed="wte", pos_embed="wpe", attn_norm="h.{}.ln_1", mlp_norm="h.{}.ln_2",
        final_norm="ln_f", lm_head="lm_head",
    )
    | dict.fromkeys(_GPT2_QKV.fused, _GPT2_QKV)
    | {
        "o_proj": Part("h.{}.attn.c_proj", transposed=True),
        "up_proj": Part("h.{}.mlp.c_fc", transposed=True),
        "down_proj": Part("h.{}.mlp.c_proj", transposed=True),
    },
    norm="layer",
    biased=_biased(True, "q", "k", "v", "o", "up", "down"),
    keys={
        "hidden_size": "n_embd", "intermediate_size": "n_inner", "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head", "max_position_embeddings": "n_positions",
        "norm_eps": "layer_norm_epsilon", "activation": "activation_function",
    },
    defaults=_ALL
    | {"norm_eps": 1e-5, "activation": "gelu_new", "tie_word_embeddings": True}
    | {"intermediate_size": None, "max_position_embeddings": 1024, "scale_attn_weights": True}
    | {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    only=(
        "is_causal", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention",
    ),
    position_offset=0,
    buffers=(r"h\.\d+\.attn\.(bias|masked_bias)",),
)  # fmt: skip

OPT = Family(
    model_type="opt",
    bases=("model.decoder.", "decoder.", ""),
    names=LLAMA.names
    | _parts(
        pos_embed="embed_positions",
        attn_norm="layers.{}.self_attn_layer_norm",
        o_proj="layers.{}.self_attn.out_proj",
        mlp_norm="layers.{}.final_layer_norm",
        up_proj="layers.{}.fc1",
        down_proj="layers.{}.fc2",
        final_norm="final_layer_norm",
    ),
    norm="layer",
    biased=_biased("enable_bias", "q", "k", "v", "o", "up", "down"),
    keys={"intermediate_size": "ffn_dim", "activation": "activation_function"},
    defaults=_ALL
    | {"norm_eps": 1e-5, "activation": "relu", "tie_word_embeddings": True}
    | {"max_position_embeddings": 2048, "enable_bias": True, "word_embed_proj_dim": None}
    | {"do_layer_norm_before": True, "_remove_final_layer_norm": False}
    | {"layer_norm_elementwise_affine": True},
    only=(
        "is_causal",
        "norm_eps",  # a constant of the family, not a key of its files
        "do_layer_norm_before",
        "_remove_final_layer_norm",
        "layer_norm_elementwise_affine",
    ),
    position_offset=2,
    buffers=(),
)
OPT = replace(OPT, names={role: part for role, part in OPT.names.items() if role != "gate_proj"})

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, GPT_NEOX, GPT2, OPT)
}
