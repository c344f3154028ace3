"""What configurations mean, as tables: well-known models, omitted and changed keys, mistakes."""

import json
from functools import cache
from math import inf, log, nan, sqrt
from pathlib import Path
from typing import Any

from refimpl.model.config import BlockKind, Experts, Rope, Temperature

FILES = Path(__file__).parent / "published"
Changed = tuple[str, dict[str, Any]]


@cache
def published(name: str) -> dict[str, Any]:
    """A well-known `config.json`, with every key of all of them that changes no number."""
    no_matter, own = (json.loads((FILES / f"{x}.json").read_text()) for x in ("no_matter", name))
    return no_matter | own


def plain(*sizes: float, window: int | None = None, **facts: Any) -> list[BlockKind]:
    """One kind of block, by its rotary positions."""
    return [BlockKind(window, Rope(*sizes, **facts))]  # type: ignore[arg-type]


def llama4(window: int | None) -> BlockKind:
    if window is None:
        warmth = Temperature(0.1, 8192, offset=1)
        return BlockKind(None, None, mixture=True, temperature=warmth)
    rope = Rope(5e5, 128, "llama3", 16.0, 1.0, 1.0, 8192, interleaved=True)
    return BlockKind(window, rope, mixture=True, chunked=True)


ALL = "qkvoud"
NONE = [BlockKind(None, None)]
LONG = {"factor": 16.0, "original_max_position_embeddings": 8192}
OSS = {"original_max_position_embeddings": 4096, "truncate": False}
OSS |= {"attention_factor": 0.1 * log(32) + 1}
# The kinds of blocks, which repeat; the roles with a bias, by their first letters; other facts.
WELL_KNOWN: dict[str, tuple[list[BlockKind], str, dict[str, Any]]] = {
    "llama-1": (plain(1e4, 128), "", {"max_position_embeddings": 2048, "num_key_value_heads": 32}),
    "llama-2": (plain(1e4, 128), "", {"head_dim": 128, "norm_eps": 1e-5, "num_blocks": 32}),
    "llama-3.2": (
        plain(5e5, 64, scaling="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0),
        "", {"head_dim": 64, "num_key_value_heads": 8, "tied": True}),
    "smollm2": (plain(1e5, 64), "", {"head_dim": 64, "activation": "silu", "tied": True}),
    "mistral-0.1": (plain(1e4, 128, window=4096), "", {"norm": "rms", "gated": True}),
    "mistral-0.3": (plain(1e6, 128), "", {"head_dim": 128}),
    "qwen2.5": (plain(1e6, 128), "qkv", {"head_dim": 128}),
    "qwen3": (plain(1e6, 128), "", {"head_dim": 128, "hidden_size": 1024, "tied": True}),
    "gemma": (
        plain(1e4, 256),
        "", {"activation": "gelu_tanh", "embed_scale": sqrt(2048), "head_dim": 256, "tied": True}),
    "gemma-2": (
        plain(1e4, 256, window=4096) + plain(1e4, 256),
        "", {"attention_scale": 224**-0.5, "attn_soft_cap": 50.0, "tied": True}),
    "gemma-3": (
        plain(1e4, 256, window=512) * 5 + plain(1e6, 256),
        "", {"attention_scale": 1 / 16, "attn_soft_cap": None, "tied": True, "num_blocks": 26}),
    "phi-3": (plain(1e4, 96, window=2047), "", {"head_dim": 96}),
    "pythia": (
        plain(1e4, 16), ALL, {"parallel_residual": True, "activation": "gelu", "norm": "layer"}),
    "gpt-2": (
        NONE,
        ALL, {"intermediate_size": 3072, "activation": "gelu_tanh", "gated": False, "tied": True}),
    "distilgpt-2": (NONE, ALL, {"num_blocks": 6, "tied": True}),
    "opt": (
        NONE,
        ALL, {"position_offset": 2, "norm_eps": 1e-5, "activation": "relu", "tied": True}),
    "smollm3": (plain(5e6, 128) * 3 + NONE, "", {"head_dim": 128, "num_blocks": 36, "tied": True}),
    "granite-3.1": (
        plain(5e6, 64),
        "", {"embed_scale": 12, "residual_scale": 0.22, "logit_scale": 1 / 8,
             "attention_scale": 1 / 64, "tied": True}),
    "olmo": (
        plain(1e4, 128),
        "", {"norm": "layer", "norm_eps": 1e-5, "qkv_limit": None, "tied": True,
             "weightless_norms": ("attn_norm", "mlp_norm", "final_norm")}),
    "olmo-7b": (plain(1e4, 128), "", {"qkv_limit": 8, "tied": True}),
    "olmo-2": (plain(5e5, 128), "", {"norm": "rms", "weightless_norms": ()}),
    "starcoder2": (
        plain(999999.4420358813, 128, window=4096),
        ALL, {"norm": "layer", "activation": "gelu_tanh", "gated": False, "tied": True}),
    "minitron": (plain(1e4, 64), "", {"norm": "layer", "activation": "relu2", "gated": False}),
    "exaone-3.5": (
        plain(1e6, 80, scaling="llama3", factor=8.0),
        "", {"num_blocks": 30, "norm_eps": 1e-5, "activation": "silu", "tied": True}),
    "exaone-4": (
        plain(1e6, 128, window=4096, scaling="llama3", **LONG) * 3 + NONE,
        "", {"head_dim": 128, "num_blocks": 64}),
    "hunyuan": (plain(1e4 * 1000 ** (128 / 126), 128), "", {"head_dim": 128, "tied": True}),
    "apertus": (
        plain(12e6, 128, scaling="llama3", factor=8.0),
        "", {"activation": "xielu", "gated": False}),
    "falcon-7b": (
        plain(1e4, 64), "", {"num_key_value_heads": 1, "parallel_residual": True, "tied": True}),
    "falcon-40b": (plain(1e4, 64), "", {"num_key_value_heads": 8, "norm": "layer", "tied": True}),
    "falcon-11b": (plain(500042.0, 128), "", {"intermediate_size": 16384}),
    "phi-2": (plain(1e4, 32), "qkvoudl", {"parallel_residual": True, "gated": False}),
    "gpt-j": (
        plain(1e4, 64, interleaved=True), "udl", {"intermediate_size": 16384, "norm": "layer"}),
    "stablelm-2": (plain(1e4, 16), "qkv", {"parallel_residual": False}),
    "command-r": (
        plain(8e6, 128, interleaved=True),
        "", {"logit_scale": 1 / 16, "head_dim": 128, "tied": True}),
    "glm-4": (plain(1e4, 64, interleaved=True), "qkv", {"norm": "rms", "gated": True}),
    "glm-4-0414": (plain(1e4, 64, interleaved=True), "qkv", {"norm": "rms"}),
    "ernie-4.5": (
        plain(5e5, 128, interleaved=True),
        "", {"head_dim": 128, "norm_eps": 1e-5, "tied": True}),
    "helium": (plain(1e5, 128, interleaved=True), "", {"norm_eps": 1e-8}),
    "gpt-oss": (
        [BlockKind(w, Rope(150000.0, 64, "yarn", 32.0, **OSS), mixture=True) for w in (128, None)],
        "qkvoreee", {"num_blocks": 24, "experts": Experts(32, 4, 2880), "gate_limit": 7.0,
                     "activation": "sigmoid_gelu"}),
    "llama-4-scout": (
        [llama4(8192)] * 3 + [llama4(None)],
        "", {"num_blocks": 48, "weightless_norms": ("q_rope_norm", "k_rope_norm"),
             "experts": Experts(16, 1, 8192, 8192, "sigmoid", normalised=False, of_inputs=True)}),
}  # fmt: skip

# A fixture, changes of its config.json (`...` deletes a key), and the blocks' windows.
SLIDING = {"layer_types": ..., "use_sliding_window": True, "sliding_window": 5}
PATTERN = {"layer_types": ..., "_sliding_window_pattern": ...}
LAST_SLIDES = ["full_attention"] * 3 + ["sliding_attention"]
WINDOWS: list[tuple[str, dict[str, Any], list[int | None]]] = [
    ("qwen2_sliding", SLIDING | {"max_window_layers": 3}, [None, None, None, 5]),
    ("qwen2_sliding", SLIDING | {"max_window_layers": 0}, [5] * 4),
    ("qwen2_sliding", SLIDING | {"max_window_layers": 28}, [None] * 4),
    ("qwen2_sliding", SLIDING | {"sliding_window": None}, [None] * 4),
    ("qwen2_sliding", SLIDING | {"use_sliding_window": False}, [None] * 4),
    ("mistral", {"sliding_window": ...}, [4096] * 3),
    ("mistral", {"sliding_window": None}, [None] * 3),
    ("phi3", {"sliding_window": ...}, [None] * 3),
    ("gemma2", {"layer_types": ...}, [5, None, 5, None]),
    ("gemma2", {"layer_types": LAST_SLIDES}, [None, None, None, 5]),
    ("gemma2", {"layer_types": ["full_attention"] * 4, "sliding_window": None}, [None] * 4),
    ("gemma3", PATTERN, [5] * 5 + [None, 5]),
    ("gemma3", PATTERN | {"sliding_window_pattern": 3}, [5, 5, None, 5, 5, None, 5]),
    ("gemma3", {"sliding_window_pattern": 3}, [5] * 5 + [None, 5]),
    ("granite_swa", {"layer_types": ...}, [None, 5, 5]),
    ("granite_swa", {"layer_types": ..., "num_hidden_layers": 6, "layer_rope_theta": None},
     [None, 5, 5, 5, None, 5]),
    ("ministral", {"layer_types": ...}, [5, 5]),
    ("ministral", {"layer_types": ..., "sliding_window": None}, [None, None]),
    ("starcoder2", {"sliding_window": ...}, [None, None]),
    ("smollm3", {"layer_types": ...}, [None, 5, None]),
    ("smollm3", {"layer_types": ..., "use_sliding_window": False}, [None] * 3),
    ("olmo3", {"layer_types": ..., "num_hidden_layers": 5}, [5, 5, 5, None, 5]),
    ("exaone4", {"layer_types": ..., "sliding_window_pattern": ..., "num_hidden_layers": 5},
     [5, 5, 5, None, 5]),
]  # fmt: skip
ROTATING: list[tuple[str, dict[str, Any], list[bool]]] = [  # which blocks rotate
    ("smollm3", {}, [True, False, True]),
    ("smollm3", {"no_rope_layers": [0, 1, 1, 0]}, [False, True, True]),
    ("smollm3", {"no_rope_layers": ...}, [True, True, True]),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}, [True, False, True]),
    ("exaone4", {}, [True, False]),
    ("exaone4", {"layer_types": ["full_attention"] * 2}, [False, False]),
    ("exaone4", {"layer_types": ["full_attention"] * 2, "sliding_window": None}, [True, True]),
]  # fmt: skip
ROTATING += [
    ("cohere2_moe", {}, [True, True, False]),
    ("cohere2_moe", {"prefix_dense_sliding_window_pattern": 2}, [False, True, False]),
    ("granitemoehybrid", {"position_embedding_type": "nope"}, [False, False]),
    ("granitemoehybrid", {"position_embedding_type": ...}, [False, False]),
]
LOCAL, GLOBAL = BlockKind(5, Rope(1e4, 10)), BlockKind(None, Rope(1e6, 10))
WIDE = {"num_key_value_heads": ..., "num_attention_heads": 16}
MEANS: list[tuple[str, dict[str, Any], str, Any]] = [  # what a fact is
    ("llama", {"num_key_value_heads": ...}, "num_key_value_heads", 4),
    ("llama", {"num_key_value_heads": None}, "num_key_value_heads", 4),
    ("mistral", WIDE, "num_key_value_heads", 8),
    ("gemma2", WIDE, "num_key_value_heads", 4),
    ("qwen2", WIDE | {"hidden_size": 64, "num_attention_heads": 32}, "num_key_value_heads", 32),
    ("llama_linear", {"head_dim": ...}, "head_dim", 8),
    ("gemma2", {"head_dim": ...}, "head_dim", 256),
    ("qwen3", {"head_dim": ...}, "head_dim", 128),
    ("gemma2", {"query_pre_attn_scalar": ...}, "attention_scale", 1 / 16),
    ("gemma2", {"attn_logit_softcapping": ...}, "attn_soft_cap", 50),
    ("gemma2", {"attn_logit_softcapping": None}, "attn_soft_cap", None),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_soft_cap", None),
    ("gemma2", {}, "embed_scale", sqrt(32)),
    ("gpt2", {"n_inner": None}, "intermediate_size", 128),
    ("gpt2", {"n_inner": 77}, "intermediate_size", 77),
    ("llama", {"rms_norm_eps": ...}, "norm_eps", 1e-6),
    ("llama", {"rope_parameters": ...}, "blocks", (BlockKind(None, Rope(1e4, 8)),) * 4),
    ("gpt_neox", {"rope_parameters": ...}, "blocks", (BlockKind(None, Rope(1e4, 4)),) * 3),
    ("gemma3", {"rope_parameters": ...}, "blocks", (LOCAL,) * 5 + (GLOBAL, LOCAL)),
    ("granite_swa", {"rope_parameters": ..., "layer_rope_theta": [9.0, 0, 0.0]}, "blocks",
     (BlockKind(None, Rope(9.0, 8)), BlockKind(5, None), BlockKind(5, None))),
    ("granite_swa", {"layer_rope_theta": ...}, "blocks",
     (BlockKind(None, Rope(1e3, 8)), *(BlockKind(5, Rope(1e3, 8)),) * 2)),
    ("gemma", {"hidden_act": "gelu"}, "activation", "gelu_tanh"),
    ("granite", {"attention_multiplier": ...}, "attention_scale", 1.0),
    ("granite", {"logits_scaling": ...}, "logit_scale", 1.0),
    ("granite", {"logits_scaling": 4}, "logit_scale", 0.25),
    ("hyperclovax", {"attention_multiplier": ...}, "attention_scale", 12**-0.5),
    ("hyperclovax", {"logits_scaling": 4}, "logit_scale", 4),
    ("olmo", {"clip_qkv": ...}, "qkv_limit", None),
    ("apertus", {"rope_parameters": ...}, "blocks",
     (BlockKind(None, Rope(12e6, 8, "llama3", factor=8.0)),) * 2),
    ("minimax_m2", {"rope_parameters": ..., "rotary_dim": 4}, "blocks",
     (BlockKind(None, Rope(5e6, 4), mixture=True),) * 2),
    ("hunyuan_v1_moe", {"moe_topk": [3, 3]}, "experts",
     Experts(5, 3, 20, 20)),
    ("phi3", {"full_attn_mod": 1, "interpolate_factor": 1}, "head_dim", 8),
    ("nemotron", {"rope_parameters": ...}, "blocks", (BlockKind(None, Rope(1e4, 6)),) * 2),
]  # fmt: skip
OMITTED: list[Changed] = [  # compared with transformers alone
    ("cohere2_moe", {"layer_types": ..., "mlp_layer_types": ..., "first_k_dense_replace": 2}),
    ("cohere2_moe", {"rms_norm_eps": 0.1, "expert_selection_fn": "softmax"}),
    ("cohere2_moe", {"shared_expert_combination_strategy": "sum", "norm_topk_prob": False}),
    ("cohere2_moe", {"num_shared_experts": 0, "prefix_dense_intermediate_size": ...}),
    ("exaone_moe", {"mlp_layer_types": ..., "first_k_dense_replace": 1}),
    ("mellum", {"rope_parameters": ..., "layer_types": ..., "mlp_layer_types": ...}),
    ("cwm", {"rope_parameters": ..., "layer_types": ...}),
    ("hy_v3", {"mlp_layer_types": ...}),
    ("falcon", {"parallel_attn": False}), ("stablelm", {"use_parallel_residual": True}),
    ("falcon_grouped", {"num_ln_in_parallel_attn": 1}),
    ("llama", {"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 3.0}}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma2",
     dict.fromkeys(("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
                    "head_dim", "rms_norm_eps", "sliding_window", "hidden_activation"), ...)),
    ("gemma3",
     {"rope_parameters": ..., "rope_theta": 9e5, "rope_local_base_freq": 9e3,
      "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ("gemma3",
     {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}},
      "rope_theta": 9e5, "rope_local_base_freq": 9e3}),
    ("phi3", {"rope_parameters": ..., "partial_rotary_factor": 0.5}),
    ("phi3", dict.fromkeys(("rope_parameters", "sliding_window", "rms_norm_eps"), ...)),
    ("gpt_neox", {"rope_parameters": ..., "rotary_pct": 0.5}),
    ("gpt_neox", {"rope_parameters": ..., "rotary_emb_base": 77}),
    ("gpt_neox",
     dict.fromkeys(("rope_parameters", "layer_norm_eps", "hidden_act", "use_parallel_residual",
                    "max_position_embeddings"), ...)),
    ("gpt2",
     dict.fromkeys(("n_inner", "layer_norm_epsilon", "activation_function", "n_positions"), ...)),
    ("opt",
     dict.fromkeys(("activation_function", "max_position_embeddings", "word_embed_proj_dim",
                    "do_layer_norm_before"), ...)),
]  # fmt: skip
LLAMA_4: list[dict[str, Any]] = [  # changes of Scout, compared with transformers on four blocks
    {}, published("llama-4-maverick"), {"moe_layers": [1, 3]}, {"moe_layers": []},
    {"no_rope_layers": [0, 1] * 2}, {"no_rope_layer_interval": 3}, {"attention_chunk_size": 3},
    {"attn_temperature_tuning": False},
    {"layer_types": ["full_attention", "chunked_attention"] * 2},
    dict.fromkeys(
        ("interleave_moe_layer_step", "attention_chunk_size", "use_qk_norm", "rope_theta",
         "rope_scaling", "rms_norm_eps", "max_position_embeddings"), ...),
]  # fmt: skip

PLAIN = {"rope_type": "default", "rope_theta": 100.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 2.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def rope(**changes: Any) -> dict[str, Any]:
    return {"rope_parameters": PLAIN | changes}


# A fixture, changes of its config.json, and what the refusal says.
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"model_type": "other"}, 'unknown model family "other"'),
    ("llama", {"model_type": ["llama"]}, "unknown model family"),
    ("llama", {"model_type": ...}, "has no model_type"),
    ("llama", {"model_type": "gemma3", "text_config": {"a": 1}}, "multimodal"),
    ("llama", {"vision_config": {"a": 1}}, "multimodal"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantised"),
    ("llama", {"quantization": {"bits": 4}}, "quantised"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved: not understood"),
    ("llama", {"sliding_window": 4}, "sliding_window: not understood"),
    ("llama", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
    ("llama", {"use_parallel_residual": True}, "use_parallel"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("llama", {"is_causal": False}, "is_causal: only true"),
    ("gemma3", {"use_bidirectional_attention": True}, "bidirectional"),
    ("qwen2", {"attention_bias": True}, "attention_bias: not understood"),
    ("phi3", {"attention_bias": True}, "attention_bias: only false"),
    ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before: only true"),
    ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim"),
    ("opt", {"_remove_final_layer_norm": True}, "only false"),
    ("opt", {"layer_norm_elementwise_affine": False}, "only true"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights: only true"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("llama", {"hidden_act": "gelu_fast"}, 'hidden_act: "gelu_fast"'),
    ("llama", {"hidden_act": None}, "hidden_act: null"),
    ("gemma2", {"hidden_act": "gelu"}, "hidden_act: .* contradicts"),
    ("gemma2", {"sliding_window_size": 7}, "sliding_window_size: 7"),
    ("gemma3", {"layer_types": ..., "_sliding_window_pattern": 4}, "_sliding_window_pattern: 4"),
    ("gpt2", {"n_head": 5}, "n_head: 5 does not divide 32"),
    ("llama", {"num_key_value_heads": 3}, "3 does not divide 4"),
    ("gpt2", {"n_embd": ...}, "n_embd: expected a positive integer, it is missing"),
    ("llama", {"vocab_size": None}, "vocab_size: .*, it is missing"),
    ("llama", {"hidden_size": "32"}, 'hidden_size: .*got "32"'),
    ("llama", {"hidden_size": 32.0}, "hidden_size: .*got 32.0"),
    ("llama", {"num_hidden_layers": True}, "num_hidden_layers: .*got true"),
    ("llama", {"intermediate_size": -1}, "intermediate_size: .*got -1"),
    ("llama", {"vocab_size": 10**30}, "of at most 2147483647, got 1000"),
    ("llama", {"num_hidden_layers": 10_001}, "of at most 10000"),
    ("granitemoe", {"num_local_experts": 10_001}, "of at most 10000"),
    ("llama", {"hidden_size": [32]}, "hidden_size: .*got .32."),
    ("llama", {"rms_norm_eps": 0}, "rms_norm_eps: expected a positive number, got 0"),
    ("llama", {"rms_norm_eps": True}, "rms_norm_eps: .*got true"),
    ("llama", {"rms_norm_eps": nan}, "rms_norm_eps: .*got NaN"),
    ("llama", {"rms_norm_eps": inf}, "rms_norm_eps: .*got Infinity"),
    ("opt", {"layer_norm_eps": 1e-3}, "layer_norm_eps: not understood"),
    ("llama", {"attention_bias": "false"}, 'attention_bias: .*got "false"'),
    ("gpt_neox", {"use_parallel_residual": "no"}, "use_parallel_residual"),
    ("llama", {"tie_word_embeddings": None}, "tie_word_embeddings: .*true or"),
    ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping: .*got 0"),
    ("gemma2", {"layer_types": ["full_attention"]}, "expected 4 .*got 1 entries"),
    ("gemma2", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
    ("gemma2", {"layer_types": 4}, "layer_types: .*got 4"),
    ("gemma2", {"layer_types": [[]] * 4}, "layer_types"),
    ("gemma2", {"sliding_window": None}, "2 blocks slide"),
    ("qwen2_sliding", {"use_sliding_window": False}, "2 blocks slide"),
    ("mistral", {"sliding_window": 0}, "sliding_window: .*got 0"),
    ("gemma3", {"layer_types": ..., "sliding_window_pattern": 0}, "sliding_window_pattern"),
    ("qwen2_sliding", {"layer_types": ..., "max_window_layers": None}, "max_window_layers"),
    ("phi3_longrope", rope(rope_type="longrope", long_factor=[1.0] * 4),
     "short_factor: expected a list of 4 numbers, got null"),
    ("phi3_longrope", rope(rope_type="longrope", short_factor=[1.0], long_factor=[1.0] * 4),
     "short_factor: expected a list of 4 numbers, got 1"),
    ("phi3_longrope",
     rope(rope_type="longrope", short_factor=["x"] + [1.0] * 3, long_factor=[1.0] * 4),
     'short_factor: .*got "x"'),
    ("phi3_longrope", {"original_max_position_embeddings": 1}, "1 contradicts 8"),
    ("llama", {"rope_parameters": ..., "rope_scaling": {"type": "su"}}, 'type "su" is not'),
    ("llama", rope(rope_type="proportional"), '"proportional" is not'),
    ("llama", rope(rope_type="dynamic"), "factor: .*is missing"),
    ("phi3", rope(rope_type="dynamic", factor=2.0, partial_rotary_factor=0.25), "more than 2"),
    ("llama", rope(rope_type="yarn", factor=0.5), "at least 1, got 0.5"),
    ("llama", rope(rope_type="yarn", rope_theta=1), "theta above 1"),
    ("granite_swa", {"layer_rope_theta": [1, 2, 3]} | rope(rope_type="yarn", factor=2.0),
     "theta above 1"),
    ("granite_swa", {"layer_rope_theta": [1e4, 0]}, "list of 3 numbers, got 2"),
    ("granite_swa", {"layer_rope_theta": 1e4}, "list of 3 numbers, got 10000.0"),
    ("granite_swa", {"layer_rope_theta": [0, "1e4", 0]}, 'theta: .*at least 1, got "1e4"'),
    ("granite_swa", {"layer_rope_theta": [0, 0, -2]}, "theta: .*got -2"),
    ("llama", rope(rope_type="yarn", truncate="no"), "truncate: .*true or"),
    ("llama", rope(rope_type="yarn", beta_fast=0), "beta_fast: .*got 0"),
    ("llama", rope(rope_type="yarn", beta=2), "not understood: .*beta"),
    ("llama", rope(rope_type="yarn", original_max_position_embeddings=0), "at least 2, got 0"),
    ("ministral3", rope(rope_type="yarn"), "llama_4_scaling_beta: .*is missing"),
    ("llama", rope(llama_4_scaling_beta=0.1), "not understood: .*llama_4"),
    ("llama", rope(rope_type={}), "type {} is not one of"),
    ("llama", rope(type="linear"), 'and "linear"'),
    ("llama", {"rope_parameters": [1]}, "rope_parameters: expected an object"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling: expected an object"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "contradicts"),
    ("llama", {"rope_theta": 7.0}, "rope_theta: 7.0 contradicts 10000.0"),
    ("gpt_neox", {"rope_parameters": ..., "rotary_emb_base": 5, "rope_theta": 7}, "contradicts"),
    ("gpt_neox", {"rope_parameters": ..., "rope_theta": 7}, "rope_theta: 7 con"),
    ("gpt_neox", {"rotary_pct": 0.5}, "rotary_pct: 0.5 contradicts 0.25"),
    ("llama", rope(rope_theta=0.5), "at least 1"),
    ("llama", rope(rope_theta="1"), "rope_theta"),
    ("llama", rope(partial_rotary_factor=0.5), "only 1.0"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("phi3", rope(partial_rotary_factor=0.4), "3 of 8 channels"),
    ("phi3", rope(partial_rotary_factor=1.5), "at most 1, got 1.5"),
    ("llama", rope(rope_type="linear"), "factor: .*is missing"),
    ("llama", rope(rope_type="linear", factor=0.5), "at least 1"),
    ("llama", rope(factor=2.0), "not understood: .*factor"),
    ("llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": None}},
     "original_max_position_embeddings: .*missing"),
    ("llama", {"rope_parameters": LLAMA3, "original_max_position_embeddings": 32},
     "original_max_position_embeddings: 32 contradicts 64"),
    ("llama", {"rope_parameters": LLAMA3 | {"high_freq_factor": 0.9}}, "is below"),
    ("gemma3", {"rope_parameters": PLAIN}, "expected sliding_attention"),
    ("gemma3", {"rope_parameters": {"linear_attention": PLAIN}}, '"linear_attention"'),
    ("gemma3", {"rope_parameters": {"full_attention": 5}}, "full_attention"),
    ("gemma2", {"rope_parameters": {"full_attention": PLAIN}}, "not understood: .*full_att"),
    ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 9.0}}, "contradicts"),
    ("gemma3", {"rope_local_base_freq": 9.0}, "rope_local_base_freq: 9.0"),
    ("exaone", {"num_layers": 3}, "num_layers: 3 contradicts 2"),
    ("internlm3", {"bias": False}, "bias: false contradicts true"),
    ("smollm3", {"no_rope_layers": 3}, "no_rope_layers: expected a list"),
    ("smollm3", {"no_rope_layers": ["1"] * 3}, "a list of 0 and 1"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "expected 3 entries, got 2"),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0},
     "no_rope_layer_interval: expected a positive"),
    ("smollm3", {"use_sliding_window": False}, "1 blocks slide, but it is null or not in use"),
    ("exaone4", {"layer_types": ..., "sliding_window_pattern": "LG"},
     'sliding_window_pattern: expected a positive integer, got "LG"'),
    ("olmo3", {"sliding_window_pattern": 2}, "only 4"),
    ("granite", {"residual_multiplier": 0}, "residual_multiplier: .*got 0"),
    ("granite", {"logits_scaling": "8"}, 'logits_scaling: .*got "8"'),
    ("olmo", {"clip_qkv": -1.0}, "clip_qkv: expected a positive number"),
    ("hyperclovax", {"use_post_norm": "no"}, "use_post_norm: .*true or"),
    ("apertus", {"hidden_act": "silu"}, 'only "xielu"'),
    ("apertus", {"qk_norm": False}, "qk_norm: only true"),
    ("arcee", {"hidden_act": "xielu"}, 'hidden_act: "xielu" is not one of'),
    ("olmo", {"norm_eps": 1e-6}, "norm_eps: only 1e-05"),
    ("hunyuan_v1_dense", {"rope_parameters": {"rope_type": "linear", "alpha": 2.0}},
     'alpha needs type dynamic and head_dim above 2, got "linear"'),
    ("hunyuan_v1_dense", {"rope_parameters": {"rope_type": "dynamic", "alpha": -1}},
     "alpha: expected a positive number"),
    ("hunyuan_v1_dense", {"use_cla": True}, "use_cla: only false"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "alpha": 2.0, "factor": 2.0}},
     "not understood: .*alpha"),
    ("starcoder2", {"mlp_type": "gated"}, 'mlp_type: only "default"'),
    ("falcon_grouped", {"num_ln_in_parallel_attn": 3}, "only null"),
    ("falcon", {"num_ln_in_parallel_attn": 2}, "only null"),
    ("falcon_grouped", {"parallel_attn": False}, "only true"),
    ("falcon", {"new_decoder_architecture": "no"}, "new_decoder.*true or"),
    ("falcon", {"multi_query": 1}, "multi_query: .*got 1"),
    ("falcon", {"apply_residual_connection_post_layernorm": True}, "only false"),
    ("phi", {"qk_layernorm": "no"}, "qk_layernorm: .*true or false"),
    ("phi", {"use_parallel_residual": False}, "only true"),
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm: only false"),
    ("cohere", {"use_qk_norm": True}, "use_qk_norm: only false"),
    ("cohere", {"logit_scale": 0}, "logit_scale: .*got 0"),
    ("gptj", {"rotary_dim": 3}, "3 of 8 channels"),
    ("gptj", {"rotary_dim": 64}, "rotary_dim: .*at most 8"),
    ("gptj", {"rotary_dim": None}, "rotary_dim: .*missing"),
    ("gptj", {"rotary": False}, "rotary: only true"),
    ("gptj", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: only null"),
    ("helium", {"use_bias": True}, "use_bias: not understood"),
    ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok: 6 of 5 experts"),
    ("mixtral", {"num_experts_per_tok": 0}, "num_experts_per_tok: expected a positive .*got 0"),
    ("mixtral", {"num_local_experts": "8"}, 'num_local_experts: expected a positive .*got "8"'),
    ("mixtral", {"n_group": 2}, r"n_group: not understood \(value 2\)"),
    ("glm4_moe", {"n_group": 4}, "n_group: 4 groups, 2 of them kept, of 6 experts"),
    ("glm4_moe", {"topk_group": 4}, "n_group: 3 groups, 4 of them kept, of 6 experts"),
    ("glm4_moe", {"topk_group": 1, "num_experts_per_tok": 3},
     "topk_group: 1 groups of 2 for 3 experts per token"),
    ("qwen2_moe", {"mlp_only_layers": ["1"]},
     r"mlp_only_layers: expected a list of blocks, got \['1'\]"),
    ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 5},
     "use_sliding_window: only false is supported, got true"),
    ("gpt_oss", {"hidden_act": "gelu"}, 'hidden_act: only "silu" is supported, got "gelu"'),
    ("gpt_oss", {"swiglu_alpha": 1.5}, "swiglu_alpha: only 1.702 is supported, got 1.5"),
    ("llama", {"is_causal": 1}, "is_causal: only true is supported, got 1"),
    ("gpt_oss", {"swiglu_limit": 0}, "swiglu_limit: expected a positive number, got 0"),
    ("gpt_oss", {"experts_per_token": 3}, "experts_per_token: 3 contradicts 2"),
    ("gpt_oss", {"initial_context_length": 9}, "initial_context_length: 9 contradicts 5"),
    ("llama4_text", {"moe_layers": 1}, "moe_layers: expected a list of blocks, got 1"),
    ("llama4_text", {"attention_chunk_size": None},
     "attention_chunk_size: 1 blocks slide, but it is null or not in use"),
    ("llama4_text", {"layer_types": ["sliding_attention"] * 2},
     r"expected 2 entries out of chunked_attention, full_attention, got \['sliding_attention'"),
    ("llama4_text", {"use_qk_norm": 1}, "use_qk_norm: expected true or false, got 1"),
    ("llama4_text", {"attn_scale": 0}, "attn_scale: expected a positive number, got 0"),
    ("llama4_text", {"floor_scale": 0}, "floor_scale: expected a positive integer, got 0"),
]  # fmt: skip
