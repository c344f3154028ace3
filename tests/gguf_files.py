"""GGUF files for the tests, written by the gguf package from small random checkpoints.

Names are the package's own; the order of rows and the offsets of norms are those of llama.cpp's
converter. Beside each file, `hub` holds what a conversion back must find, as safetensors.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from checkpoints import config_of, write
from conftest import FIXTURES

from refimpl.loading.config_json import read_config
from refimpl.loading.tensor_claims import roles
from refimpl.model.config import Config, Rope
from refimpl.model.mixers.sizes import (
    NO_MIXER,
    Beside,
    GatedDeltaRule,
    LatentAttention,
    Mamba2,
    SharedAttention,
)

Array = npt.NDArray[Any]
Q = gguf.GGMLQuantizationType


@dataclass(frozen=True)
class Recipe:
    """A checkpoint: its architecture in llama.cpp, the fixture whose config it has, and changes."""

    arch: gguf.MODEL_ARCH
    fixture: str
    changes: dict[str, Any]
    further: int = 0  # blocks that only predict further tokens


WIDE = {"intermediate_size": 64, "vocab_size": 264}
THETA = {"rope_theta": 3000.0, "rope_parameters": ...}
MOE = {"moe_intermediate_size": 32}
A = gguf.MODEL_ARCH
HALF = {"partial_rotary_factor": 0.5}
DELTA = {"linear_value_head_dim": 16, "rms_norm_eps": 1e-6}  # llama.cpp has one eps for all
ALIBI = {"alibi": True, "alibi_bias_max": 8, "clip_qkv": 1.5}
FACTORS = ("attention_in", "attention_out", "embedding", "key", "lm_head", "ssm_in", "ssm_out")
RECIPES = {
    "llama": Recipe(A.LLAMA, "llama", WIDE | THETA),
    "llama with biases": Recipe(
        A.LLAMA, "llama", WIDE | THETA | {"attention_bias": True, "mlp_bias": True}
    ),
    "qwen2": Recipe(A.QWEN2, "qwen2", WIDE | THETA | {"tie_word_embeddings": True}),
    "qwen3": Recipe(A.QWEN3, "qwen3", WIDE | THETA),
    "qwen3 with wide heads": Recipe(A.QWEN3, "qwen3", WIDE | THETA | {"head_dim": 128}),
    "gemma2": Recipe(A.GEMMA2, "gemma2", WIDE | THETA | {"query_pre_attn_scalar": 12}),
    "gemma3": Recipe(
        A.GEMMA3,
        "gemma3",
        WIDE | {
            "query_pre_attn_scalar": 10, "rope_parameters": ..., "rope_theta": 3000.0,
            "rope_local_base_freq": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        },
    ),
    "gemma": Recipe(A.GEMMA, "gemma", WIDE | THETA),
    "granite": Recipe(A.GRANITE, "granite", WIDE | THETA),
    "olmo2": Recipe(A.OLMO2, "olmo2", WIDE | THETA),
    "smollm3": Recipe(
        A.SMOLLM3,
        "smollm3",
        WIDE | THETA | {
            "layer_types": ..., "no_rope_layers": ..., "num_hidden_layers": 5,
            "sliding_window": None, "use_sliding_window": False,
        },
    ),
    "nemotron": Recipe(
        A.NEMOTRON, "nemotron", WIDE | THETA | {"head_dim": ..., "partial_rotary_factor": 0.5}
    ),
    "phi2": Recipe(
        A.PHI2,
        "phi",
        WIDE | THETA | {
            "qk_layernorm": False, "num_key_value_heads": 4, "partial_rotary_factor": 0.5,
        },
    ),
    "phi3": Recipe(A.PHI3, "phi3", WIDE | THETA | {"sliding_window": 6}),
    "gpt2": Recipe(A.GPT2, "gpt2", {"vocab_size": 264, "n_positions": 1024}),
    "mixtral": Recipe(A.LLAMA, "mixtral", WIDE | THETA | {"sliding_window": None}),
    "qwen2moe": Recipe(
        A.QWEN2MOE,
        "qwen2_moe",
        WIDE | THETA | MOE | {"mlp_only_layers": [], "shared_expert_intermediate_size": 96},
    ),
    "qwen3moe": Recipe(A.QWEN3MOE, "qwen3_moe", WIDE | THETA | MOE | {"decoder_sparse_step": 1}),
    "olmoe": Recipe(
        A.OLMOE, "olmoe", WIDE | THETA | {"clip_qkv": None, "num_key_value_heads": 4}
    ),
    "granitemoe": Recipe(A.GRANITE_MOE, "granitemoe", WIDE | THETA),
    "olmo": Recipe(A.OLMO, "olmo", WIDE | THETA | {"clip_qkv": 0.5}),
    "arcee": Recipe(A.ARCEE, "arcee", WIDE | THETA),
    "seed_oss": Recipe(A.SEED_OSS, "seed_oss", WIDE | THETA),
    "ernie4_5": Recipe(A.ERNIE4_5, "ernie4_5", WIDE | THETA | {"use_bias": False}),
    "exaone": Recipe(A.EXAONE, "exaone", WIDE | THETA),
    "starcoder2": Recipe(A.STARCODER2, "starcoder2", WIDE | THETA | {"sliding_window": None}),
    "command-r": Recipe(A.COMMAND_R, "cohere", WIDE | THETA),
    "cohere2": Recipe(A.COHERE2, "cohere2", WIDE | THETA),
    "stablelm": Recipe(
        A.STABLELM, "stablelm",
        WIDE | THETA | {"partial_rotary_factor": 0.5, "use_parallel_residual": False},
    ),
    "gpt-oss": Recipe(
        A.GPT_OSS,
        "gpt_oss",
        WIDE | {
            "swiglu_limit": 7.0, "rope_parameters": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
                "rope_theta": 3000.0, "truncate": False,
            },
        },
    ),
    "ernie4_5-moe": Recipe(
        A.ERNIE4_5_MOE, "ernie4_5_moe", WIDE | THETA | {"use_bias": False, "moe_layer_end_index": 2}
    ),
    "exaone4": Recipe(
        A.EXAONE4,
        "exaone4",
        WIDE | THETA | {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    ),
    "exaone4 with windows": Recipe(A.EXAONE4, "exaone4", WIDE | THETA),
    "glm4": Recipe(A.GLM4, "glm4", WIDE | THETA | {"partial_rotary_factor": 0.5}),
    "hunyuan-dense": Recipe(A.HUNYUAN_DENSE, "hunyuan_v1_dense", WIDE | THETA),
    "lfm2": Recipe(
        A.LFM2, "lfm2", WIDE | THETA | {"block_auto_adjust_ff_dim": False, "conv_bias": False}
    ),
    "qwen2vl": Recipe(  # llama.cpp 0.11739 takes its eps for 0
        A.QWEN2VL, "qwen2", WIDE | THETA | {"rms_norm_eps": 1e-9}
    ),
    "qwen3vl": Recipe(A.QWEN3VL, "qwen3", WIDE | THETA),
    "minimax-m2": Recipe(A.MINIMAXM2, "minimax_m2", WIDE | THETA),
    "gptneox": Recipe(A.GPTNEOX, "gpt_neox", WIDE | {"rope_parameters": ...}),
    "qwen35": Recipe(A.QWEN35, "qwen3_5", WIDE | THETA | HALF | DELTA, 1),
    "qwen35moe": Recipe(
        A.QWEN35MOE, "qwen3_5_moe", WIDE | THETA | HALF | DELTA | {"intermediate_size": ...}
    ),
    "qwen3next": Recipe(
        A.QWEN3NEXT, "qwen3_next", WIDE | THETA | HALF | DELTA | {"mlp_only_layers": []}
    ),
    "glm4moe": Recipe(A.GLM4_MOE, "glm4_moe", WIDE | THETA | HALF, 1),
    "deepseek2": Recipe(  # llama.cpp ranks groups of experts as V3 does, and has one eps
        A.DEEPSEEK2,
        "deepseek_v2",
        WIDE | THETA | {
            "q_lora_rank": 12, "n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-6,
            "topk_method": "group_limited_greedy",
        },
    ),
    "deepseek2 by sigmoid": Recipe(
        A.DEEPSEEK2,
        "deepseek_v3",
        WIDE | {
            "attention_bias": False, "rms_norm_eps": 1e-6, "rope_parameters": {
                "rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 16, "rope_theta": 3000.0,
            },
        },
        1,
    ),
    "gemma4": Recipe(A.GEMMA4, "gemma4", WIDE),
    "gemma4 with experts": Recipe(A.GEMMA4, "gemma4_experts", WIDE),
    "gemma4 with embeddings": Recipe(
        A.GEMMA4,
        "gemma4_small",
        WIDE | {
            "vocab_size_per_layer_input": 264, "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 16}},
        },
    ),
    "apertus": Recipe(
        A.APERTUS,
        "apertus",
        WIDE | {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
        },
    ),
    "granitehybrid": Recipe(
        A.GRANITE_HYBRID,
        "granite_hybrid",
        {"vocab_size": 264, "time_step_limit": ..., "mamba_proj_bias": False, **THETA},
    ),
    "granitehybrid without experts": Recipe(
        A.GRANITE_HYBRID,
        "granite_hybrid",
        {
            "vocab_size": 264, "time_step_limit": ..., "mamba_proj_bias": False, **THETA,
            "num_local_experts": 0, "position_embedding_type": "rope",
        },
    ),
    "nemotron_h": Recipe(
        A.NEMOTRON_H,
        "nemotron_h",
        WIDE | {
            "layers_block_type": ["linear_attention", "mlp", "full_attention"], "use_bias": False,
            "mlp_bias": False, "time_step_min": 0.0,
        },
    ),
    "nemotron_h_moe": Recipe(
        A.NEMOTRON_H_MOE,
        "nemotron_h",
        WIDE | {
            "layers_block_type": ["linear_attention", "moe", "full_attention"], "use_bias": False,
            "mlp_bias": False, "time_step_min": 0.0, "intermediate_size": 12,
        },
    ),
    "falcon-h1": Recipe(
        A.FALCON_H1,
        "falcon_h1",
        WIDE | THETA | {"attention_bias": False, "mamba_proj_bias": False} | {
            "projectors_bias": False, "mlp_multipliers": [1.0] * 2, "ssm_multipliers": [1.0] * 5,
        } | {f"{name}_multiplier": 1.0 for name in FACTORS},
    ),
    "falcon": Recipe(A.FALCON, "falcon", {"vocab_size": 264, "rope_parameters": ...}),
    "falcon of two norms": Recipe(
        A.FALCON, "falcon_grouped", {"vocab_size": 264, "rope_parameters": ..., "bias": False}
    ),
    "bloom": Recipe(A.BLOOM, "bloom", {"vocab_size": 264, "hidden_size": 96}),
    "mpt": Recipe(A.MPT, "mpt", {"vocab_size": 264, "d_model": 96, "attn_config": ALIBI}),
    "lfm2moe": Recipe(A.LFM2MOE, "lfm2_moe", WIDE | THETA | {"routed_scaling_factor": 1.0}),
}  # fmt: skip


# transformers does not read the sizes of experts from a GGUF file: they are its defaults here.
DEFAULT_SIZES = {
    "qwen2moe of default sizes": replace(
        RECIPES["qwen2moe"],
        changes=RECIPES["qwen2moe"].changes
        | {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
    ),
    "qwen3moe of default sizes": replace(
        RECIPES["qwen3moe"], changes=RECIPES["qwen3moe"].changes | {"moe_intermediate_size": 768}
    ),
}
ROTARY_DIMENSION = (
    "llama",
    "mixtral",
    "granite",
    "granitemoe",
    "smollm3",
    "nemotron",
    "phi",
    "phi3",
    "gpt_neox",
    "arcee",
    "cohere2",
    "stablelm",
    "minimax_m2",
    "glm4",
    "glm4_moe",
    "deepseek_v2",
    "deepseek_v3",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_next",
)
PERMUTED = (A.OLMO, A.ARCEE, A.LLAMA, A.GRANITE, A.GRANITE_MOE, A.GRANITE_HYBRID, A.SMOLLM3)
EXPERT = re.compile(r"(.*experts)\.\d+(\..*)")
QWEN_DELTA = (A.QWEN35, A.QWEN35MOE, A.QWEN3NEXT)
PLUS_ONE = (A.GEMMA, A.GEMMA2, A.GEMMA3, A.NEMOTRON, *QWEN_DELTA)
HYBRID = (A.LFM2, A.LFM2MOE, A.GRANITE_HYBRID, A.NEMOTRON_H, A.NEMOTRON_H_MOE)
NAMED_BY_CONVERTER = (  # of stacks
    (r"backbone(.*)mixer", r"model\1mlp"), (r"feed_forward.experts.w1", "mlp.experts.gate_proj"),
    (r"feed_forward.experts.w2", "mlp.experts.down_proj"),
    (r"feed_forward.experts.w3", "mlp.experts.up_proj"),
)  # fmt: skip
NO_KV_HEADS = (A.GPT2, A.GPTNEOX, A.MPT)


def quantised(values: Array, kind: Q) -> tuple[Array, Q, Array]:
    """Bytes (or numbers) in a file, their type, and the numbers they stand for.

    As in llama.cpp, vectors stay float32, and rows that are no whole blocks become float16.
    """
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if values.ndim < 2:
        kind = Q.F32
    elif values.shape[-1] % block:
        kind = Q.F16
    stored = gguf.quantize(np.ascontiguousarray(values, np.float32), kind)
    return stored, kind, gguf.dequantize(stored, kind).astype(np.float32)


def in_file(arch: A, name: str, x: Array) -> Array:
    """A tensor's numbers as llama.cpp's converter stores them."""
    if name.endswith("A_log"):
        return -np.exp(x)
    return x + 1 if is_raised(arch, name) else x


def meant_by(arch: A, name: str, x: Array) -> Array:
    if name.endswith("A_log"):
        return np.log(-x.astype(np.float64)).astype(np.float32)
    return x - 1 if is_raised(arch, name) else x


def is_raised(arch: A, name: str) -> bool:
    return arch in PLUS_ONE and name.endswith("norm.weight") and "linear_attn" not in name


def state_space(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the sizes of a state space, if there is one."""
    mixers = [kind.mixer for kind in config.blocks]
    for mixer in (x.mamba2 if isinstance(x, Beside) else x for x in mixers):
        if isinstance(mixer, GatedDeltaRule):
            sizes = mixer.taps, mixer.key_dim, mixer.key_heads, mixer.value_heads, mixer.value_dim
        elif isinstance(mixer, Mamba2):
            sizes = mixer.taps, mixer.state, mixer.groups, mixer.heads, mixer.head_dim
        else:
            continue
        writer.add_ssm_conv_kernel(sizes[0])
        writer.add_ssm_state_size(sizes[1])
        writer.add_ssm_group_count(sizes[2])
        writer.add_ssm_time_step_rank(sizes[3])
        writer.add_ssm_inner_size(sizes[3] * sizes[4])
        return


def of_deepseek(writer: gguf.GGUFWriter, config: Config, entries: dict[str, Any]) -> None:
    """Write the sizes of latent attention."""
    mixer, rope = config.blocks[0].mixer, config.blocks[0].rope
    assert isinstance(mixer, LatentAttention)
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(entries["q_lora_rank"])
    writer.add_kv_lora_rank(mixer.rank)
    writer.add_key_length(mixer.rank + mixer.rotary_dim)
    writer.add_value_length(mixer.rank)
    writer.add_key_length_mla(mixer.plain_dim + mixer.rotary_dim)
    writer.add_value_length_mla(mixer.value_dim)
    if rope and rope.scaling == "yarn":
        writer.add_rope_scaling_yarn_log_mul(0.1 * entries["rope_parameters"]["mscale_all_dim"])


def of_gemma4(writer: gguf.GGUFWriter, config: Config, entries: dict[str, Any]) -> None:
    """Write the sizes of both kinds of blocks of Gemma 4, and how they rotate."""
    full = next(kind for kind in config.blocks if kind.window is None)
    shared = sum(isinstance(kind.mixer, SharedAttention) for kind in config.blocks)
    slides = [kind.window is not None for kind in config.blocks]
    mixers = [config.mixer(i) for i in range(config.num_blocks)]
    sliding, rope, wide = mixers[slides.index(True)], full.rope, full.mixer
    assert rope is not None
    writer.add_sliding_window_pattern(slides)
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(entries["hidden_size_per_layer_input"])
    for add, of in (("", wide), ("_swa", sliding)):
        getattr(writer, f"add_key_length{add}")(of.head_dim)  # type: ignore[union-attr]
        getattr(writer, f"add_value_length{add}")(of.head_dim)  # type: ignore[union-attr]
        getattr(writer, f"add_rope_dimension_count{add}")(of.head_dim)  # type: ignore[union-attr]
    writer.add_head_count_kv([x.num_key_value_heads for x in mixers])  # type: ignore[attr-defined]
    if entries["use_double_wide_mlp"]:
        sizes = [kind.mlp_size or config.intermediate_size for kind in config.blocks]
        writer.add_feed_forward_length(sizes)
    writer.add_rope_freq_base_swa(entries["rope_parameters"]["sliding_attention"]["rope_theta"])
    factors = np.where(np.arange(0, rope.rotary_dim, 2) < rope.turning_dim, 1, 1e30)
    writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    writer.add_final_logit_softcapping(config.final_soft_cap)


def metadata(writer: gguf.GGUFWriter, recipe: Recipe, entries: dict[str, Any]) -> None:
    """Write the facts of a config as llama.cpp's converter does."""
    config = read_config(entries).config
    by_window = sorted(config.blocks, key=lambda kind: kind.window is not None)  # all tokens first
    rope = next((kind.rope for kind in by_window if kind.rope), None)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_blocks + recipe.further)
    if recipe.further:
        writer.add_nextn_predict_layers(recipe.further)
    if "intermediate_size" in entries or recipe.arch != A.QWEN35MOE:
        writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if recipe.arch in HYBRID:
        kv_heads = [0 if kind.mixer else config.num_key_value_heads for kind in config.blocks]
        writer.add_head_count_kv(kv_heads)
    elif recipe.arch not in NO_KV_HEADS:
        writer.add_head_count_kv(config.num_key_value_heads)
    if recipe.arch in (A.LFM2, A.LFM2MOE):
        writer.add_shortconv_l_cache(entries["conv_L_cache"])
    if recipe.arch in (A.NEMOTRON_H, A.NEMOTRON_H_MOE):
        of = {True: entries["moe_intermediate_size"], False: entries["intermediate_size"]}
        sizes = [of[bool(x.mixture)] if x.mixer == NO_MIXER else 0 for x in config.blocks]
        writer.add_feed_forward_length(sizes)
    state_space(writer, config)
    if recipe.arch in QWEN_DELTA:
        writer.add_full_attention_interval(2)
    if recipe.arch == A.MPT:
        writer.add_max_alibi_bias(8.0)
    if recipe.arch == A.GRANITE_HYBRID:
        writer.add_rope_scaling_finetuned(rope is not None)
    if recipe.arch == A.EXAONE4:
        windows = [kind.window is not None for kind in config.blocks]
        if any(windows):
            writer.add_sliding_window_pattern(windows)
    if recipe.arch in (A.QWEN2VL, A.QWEN3VL, A.QWEN35, A.QWEN35MOE):
        writer.add_rope_dimension_sections([2, 1, 1, 0])
    if recipe.arch == A.ERNIE4_5_MOE:
        writer.add_leading_dense_block_count(entries["moe_layer_start_index"])
        writer.add_interleave_moe_layer_step(entries["moe_layer_interval"])
        writer.add_expert_shared_count(entries["moe_num_shared_experts"])
    if config.norm == "rms":
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    else:
        writer.add_layer_norm_eps(config.norm_eps)
    if recipe.arch in (A.NEMOTRON_H, A.NEMOTRON_H_MOE):
        writer.add_layer_norm_eps(config.norm_eps)  # which llama.cpp wants, and does not use
    if rope is not None:
        writer.add_rope_freq_base(rope.theta)
        if recipe.fixture in ROTARY_DIMENSION:
            writer.add_rope_dimension_count(rope.rotary_dim)
        if rope.scaling == "llama3":
            plain = Rope(rope.theta, rope.rotary_dim).inv_freq()
            writer.add_tensor("rope_freqs.weight", (plain / rope.inv_freq()).astype(np.float32))
        if rope.scaling == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope.factor)
        if rope.scaling == "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rope.factor)
            writer.add_rope_scaling_orig_ctx_len(rope.original_max_position_embeddings)
    if window := next((kind.window for kind in config.blocks if kind.window), None):
        writer.add_sliding_window(window)
    if config.attn_soft_cap and config.final_soft_cap:
        writer.add_attn_logit_softcapping(config.attn_soft_cap)
        writer.add_final_logit_softcapping(config.final_soft_cap)
    if (mixture := config.experts) is not None:
        writer.add_expert_count(mixture.num_experts)
        writer.add_expert_used_count(mixture.top_k)
        if "moe_intermediate_size" in entries or recipe.arch in (A.GPT_OSS, A.MINIMAXM2):
            writer.add_expert_feed_forward_length(mixture.intermediate_size)
        if recipe.arch in (A.GLM4_MOE, A.DEEPSEEK2, A.NEMOTRON_H_MOE):
            writer.add_expert_weights_norm(mixture.normalised)
            writer.add_expert_weights_scale(mixture.scaling)
            writer.add_expert_group_count(mixture.groups)
            writer.add_expert_group_used_count(mixture.groups_kept)
            writer.add_expert_shared_count(entries["n_shared_experts"])
        if recipe.arch in (A.GLM4_MOE, A.DEEPSEEK2):
            writer.add_leading_dense_block_count(entries["first_k_dense_replace"])
        elif mixture.shared_size:
            writer.add_expert_shared_feed_forward_length(mixture.shared_size)
        if recipe.arch == A.LFM2MOE:
            writer.add_leading_dense_block_count(entries["num_dense_layers"])
    if recipe.arch in (A.GRANITE, A.GRANITE_MOE, A.GRANITE_HYBRID):
        writer.add_embedding_scale(config.embed_scale)
        writer.add_attention_scale(config.attention_scale)
        writer.add_residual_scale(config.residual_scale)
        writer.add_logit_scale(entries["logits_scaling"])
    if recipe.arch == A.PHI3:
        writer.add_rope_scaling_orig_ctx_len(entries["original_max_position_embeddings"])
    if mixture and mixture.scoring == "sigmoid":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if config.qkv_limit:
        writer.add_clamp_kqv(config.qkv_limit)
    if entries.get("logit_scale"):
        writer.add_logit_scale(config.logit_scale)
    if recipe.arch in (A.GPTNEOX, A.STABLELM):
        writer.add_parallel_residual(config.parallel_residual)
    if recipe.arch in OWN_FACTS:
        OWN_FACTS[recipe.arch](writer, config, entries)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_file_type(0)


OWN_FACTS = {A.DEEPSEEK2: of_deepseek, A.GEMMA4: of_gemma4}


def parts_of(arch: A, name: str, x: Array, config: Config) -> dict[str, Array]:
    """What llama.cpp's converter makes of a tensor: others, with its numbers in other places."""
    number = re.search(r"\.(\d+)\.", name)
    mixer: Any = config.mixer(int(number[1])) if number else config.attention
    mamba = mixer.mamba2 if isinstance(mixer, Beside) else mixer
    heads, kv_heads, inner = config.num_attention_heads, config.num_key_value_heads, x.shape[1:]
    if arch in PERMUTED and (".q_proj." in name or ".k_proj." in name):
        h = heads if ".q_proj." in name else kv_heads
        return {name: x.reshape(h, 2, x.shape[0] // h // 2, *inner).swapaxes(1, 2).reshape(x.shape)}
    if arch in (A.GPTNEOX, A.FALCON, A.BLOOM) and "query_key_value" in name:
        groups = x.reshape(kv_heads, heads // kv_heads + 2, -1, *inner)
        qkv = groups[:, :-2], groups[:, -2], groups[:, -1]
        x = np.concatenate([y.reshape(-1, *inner) for y in qkv])
    if arch == A.BLOOM:
        return {name.removeprefix("transformer."): x}
    if arch == A.GPT2 and x.ndim == 2 and ".c_" in name:
        return {name: x.T}
    if arch == A.GPT_OSS and x.ndim == 3:  # experts, stored [in, out]
        x = x.swapaxes(1, 2)
    if isinstance(mixer, GatedDeltaRule) and "linear_attn" in name:
        return delta_parts(arch, name, x, mixer)
    if isinstance(mamba, Mamba2) and name.endswith(("A_log", ".D")):
        return {name: x.reshape(-1, 1)}
    if isinstance(mamba, Mamba2) and name.endswith((".mamba.norm.weight", "mixer.norm.weight")):
        return {name: x.reshape(mamba.groups, -1)}
    if name.endswith("dt_bias"):
        of = "dt" if arch in (A.NEMOTRON_H, A.NEMOTRON_H_MOE) else "dt_proj"
        return {name.replace("dt_bias", f"{of}.bias"): x}
    if "kv_b_proj" in name:
        both = x.reshape(heads, -1, *inner)
        k, v = both[:, : mixer.plain_dim], both[:, mixer.plain_dim :]
        return {name.replace("kv_b", "k_b"): k.swapaxes(1, 2), name.replace("kv_b", "v_b"): v}
    assert number or arch != A.APERTUS or "act_fn" not in name
    if number and name.endswith("router.scale"):
        return {f"blk.{number[1]}.ffn_gate_inp.scale": x}
    if number and name.endswith("per_expert_scale"):
        return {f"blk.{number[1]}.ffn_down_exps.scale": x}
    if name.endswith(("e_score_correction_bias", "expert_bias")):
        return {name.removesuffix("_bias") + ".bias" if "e_sc" in name else f"{name}.bias": x}
    if name.endswith(("sinks", "layer_scalar", "correct_output_scale")):
        return {f"{name}.weight": x}
    if arch == A.GEMMA4 and name.endswith("experts.gate_up_proj"):
        return {f"{name}.weight": x}
    if ".mlp.experts.gate_up_proj" in name or name.endswith(("down_proj_bias", "s.down_proj")):
        stem, of = name.removesuffix("_bias"), ".bias" if name.endswith("_bias") else ".weight"
        if stem.endswith("down_proj"):
            return {stem + of: x}
        return {stem.replace("gate_up", y) + of: x[:, i::2] for i, y in enumerate(("gate", "up"))}
    if "shared_mlp" in name and arch == A.GRANITE_HYBRID:
        of = name.partition("shared_mlp")[0] + "mlp."
        of += "" if config.experts is None else "shared_expert."
        if "output" in name:
            return {f"{of}down_proj.weight": x}
        gate, up = np.split(x, 2)
        return {f"{of}gate_proj.weight": gate, f"{of}up_proj.weight": up}
    if "input_linear" not in name:
        return {name: x}
    of = name.removesuffix("input_linear.weight")
    gate, up = np.split(x, 2, axis=1)
    return {f"{of}experts.w1.weight": gate, f"{of}experts.w3.weight": up}


def delta_parts(arch: A, name: str, x: Array, mixer: GatedDeltaRule) -> dict[str, Array]:
    """Those of the gated delta rule: value heads in turns, one of each key head."""
    keys, each = mixer.key_heads, mixer.value_heads // mixer.key_heads

    def in_turns(y: Array) -> Array:
        return y.reshape(keys, each, -1, *y.shape[1:]).swapaxes(0, 1).reshape(y.shape)

    if "in_proj_qkvz" in name:
        q, k, v, z = np.split(
            x.reshape(keys, -1, *x.shape[1:]),
            np.cumsum([mixer.key_dim, mixer.key_dim, each * mixer.value_dim]),
            axis=1,
        )
        qkv = np.concatenate([y.reshape(-1, *x.shape[1:]) for y in (q, k, v)])
        return {
            name.replace("qkvz", "qkv"): qkv,
            name.replace("qkvz", "z"): z.reshape(-1, *x.shape[1:]),
        }
    name = name.replace("dt_bias", "dt_proj.bias")
    if arch == A.QWEN3NEXT or name.endswith("norm.weight"):
        return {name: x}
    if "out_proj" in name:
        return {name: in_turns(x.T).T}
    before = 2 * keys * mixer.key_dim if "qkv" in name or "conv1d" in name else 0
    return {name: np.concatenate([x[:before], in_turns(x[before:])])}


def gguf_file(
    folder: Path,
    name: str,
    kind: Q = Q.Q8_0,
    tokenizer: bool = False,
    shard_tensors: int = 0,
    change: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
) -> Path:
    """Write a model of random weights as GGUF, and as safetensors into `folder / "hub"`."""
    recipe = (RECIPES | DEFAULT_SIZES)[name]
    entries = config_of(recipe.fixture, **recipe.changes)
    hub, rng = read_config(entries), np.random.default_rng(0)
    path = folder / f"{name}-{kind.name}.gguf"
    writer = gguf.GGUFWriter(
        path, gguf.MODEL_ARCH_NAMES[recipe.arch], split_max_tensors=shard_tensors
    )
    metadata(writer, recipe, entries)
    if tokenizer:
        add_tokenizer(writer, hub.config.vocab_size)
    last = hub.config.num_blocks - 1
    names = gguf.get_tensor_name_map(recipe.arch, last + 1)

    def add(theirs: str, array: Array, used: Q) -> None:
        writer.add_tensor(theirs, array, raw_dtype=used)
        if recipe.further and theirs.startswith(f"blk.{last}."):
            writer.add_tensor(theirs.replace(f".{last}.", f".{last + 1}."), array, raw_dtype=used)

    arrays: dict[str, Array] = {}
    stacks: dict[str, list[Array]] = {}  # of all experts, by the name without their number
    learned: dict[str, list[float]] = {}  # of an activation, by block
    for role in dict(roles(hub, hub.family.bases[0])).values():
        if role.tensor in arrays:
            continue
        values = rng.standard_normal(role.shape) * 0.2 + (0.5 if "norm" in role.tensor else 0)
        stored = in_file(recipe.arch, role.tensor, values.astype(np.float32))
        meant, vectors = stored.copy(), ("bias", "A_log", ".D")
        plain = Q.F32 if role.tensor.endswith(vectors) else kind
        places = np.arange(values.size).reshape(role.shape)
        if "act_fn" in role.tensor:
            learned.setdefault(role.tensor.rpartition(".")[2], []).append(float(stored.item()))
            arrays[role.tensor] = meant
            continue
        for part, at in parts_of(recipe.arch, role.tensor, places, hub.config).items():
            at = at if at.shape[-1:] == (1,) else at.squeeze()
            array, used, back = quantised(stored.reshape(-1)[at], plain)
            meant.reshape(-1)[at] = back.reshape(at.shape)
            whole = EXPERT.fullmatch(part)
            count = hub.config.experts.num_experts if hub.config.experts else 0
            if whole and len(stacks.setdefault(part := whole[1] + whole[2], [])) + 1 < count:
                stacks[part].append(array)
                continue
            named = part
            for old, new in NAMED_BY_CONVERTER if whole else ():
                named = re.sub(old, new, named)
            theirs = names.get_name(named, try_suffixes=(".weight", ".bias"))
            theirs = part if part.startswith("blk.") else theirs
            assert theirs is not None, part
            add(theirs, np.stack([*stacks.pop(part), array]) if whole else array, used)
        arrays[role.tensor] = meant_by(recipe.arch, role.tensor, meant)
    for name_of, numbers in learned.items():
        writer.add_array(f"xielu.{name_of}", numbers)
    width = hub.config.hidden_size
    for tensor, shape in (
        ("eh_proj", (width, 2 * width)),
        ("enorm", (width,)),
        ("hnorm", (width,)),
    ):
        if recipe.further:
            writer.add_tensor(f"blk.{last + 1}.nextn.{tensor}.weight", np.ones(shape, np.float32))
    write(folder / "hub", arrays, entries)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if not shard_tensors else next(folder.glob(f"{path.stem}-00001-of-*.gguf"))


def add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    """Add the tokenizer of the llama fixture, and filler tokens up to a size."""
    model = json.loads((FIXTURES / "llama" / "tokenizer.json").read_text("utf-8"))
    vocab = model["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.get)
    special = {x["content"] for x in model["added_tokens"]}
    tokens += [f"[PAD{i}]" for i in range(len(tokens), size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if x in special else 5 if x[:4] == "[PAD" else 1 for x in tokens])
    merges = [x if isinstance(x, str) else " ".join(x) for x in model["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_add_bos_token(True)
