"""GGUF files for the tests, written by the gguf package from small random checkpoints.

Names are the package's own; the order of rows and the offsets of norms are those of llama.cpp's
converter. Beside each file, `hub` holds what a conversion back must find, as safetensors.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from checkpoints import config_of, write
from conftest import FIXTURES

from refimpl.loading.checkpoint import roles
from refimpl.loading.config_json import read_config
from refimpl.model.config import Config

Array = npt.NDArray[Any]
Q = gguf.GGMLQuantizationType


@dataclass(frozen=True)
class Recipe:
    """A checkpoint: its architecture in llama.cpp, the fixture whose config it has, and changes."""

    arch: gguf.MODEL_ARCH
    fixture: str
    changes: dict[str, Any]


WIDE = {"intermediate_size": 64, "vocab_size": 264}
THETA = {"rope_theta": 3000.0, "rope_parameters": ...}
MOE = {"moe_intermediate_size": 32}
A = gguf.MODEL_ARCH
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
        WIDE
        | {
            "query_pre_attn_scalar": 10,
            "rope_parameters": ...,
            "rope_theta": 3000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        },
    ),
    "gemma": Recipe(A.GEMMA, "gemma", WIDE | THETA),
    "granite": Recipe(A.GRANITE, "granite", WIDE | THETA),
    "olmo2": Recipe(A.OLMO2, "olmo2", WIDE | THETA),
    "smollm3": Recipe(
        A.SMOLLM3,
        "smollm3",
        WIDE
        | THETA
        | {
            "layer_types": ...,
            "no_rope_layers": ...,
            "num_hidden_layers": 5,
            "sliding_window": None,
            "use_sliding_window": False,
        },
    ),
    "nemotron": Recipe(
        A.NEMOTRON,
        "nemotron",
        WIDE | THETA | {"head_dim": ..., "partial_rotary_factor": 0.5},
    ),
    "phi2": Recipe(
        A.PHI2,
        "phi",
        WIDE
        | THETA
        | {
            "qk_layernorm": False,
            "num_key_value_heads": 4,
            "partial_rotary_factor": 0.5,
        },
    ),
    "phi3": Recipe(A.PHI3, "phi3", WIDE | THETA | {"sliding_window": 6}),
    "gpt2": Recipe(A.GPT2, "gpt2", {"vocab_size": 264, "n_positions": 1024}),
    "mixtral": Recipe(A.LLAMA, "mixtral", WIDE | THETA | {"sliding_window": None}),
    "qwen2moe": Recipe(
        A.QWEN2MOE,
        "qwen2_moe",
        WIDE
        | THETA
        | MOE
        | {"mlp_only_layers": [], "shared_expert_intermediate_size": 96},
    ),
    "qwen3moe": Recipe(
        A.QWEN3MOE, "qwen3_moe", WIDE | THETA | MOE | {"decoder_sparse_step": 1}
    ),
    "olmoe": Recipe(
        A.OLMOE, "olmoe", WIDE | THETA | {"clip_qkv": None, "num_key_value_heads": 4}
    ),
    "granitemoe": Recipe(A.GRANITE_MOE, "granitemoe", WIDE | THETA),
    "arcee": Recipe(A.ARCEE, "arcee", WIDE | THETA),
    "ernie4_5": Recipe(A.ERNIE4_5, "ernie4_5", WIDE | THETA | {"use_bias": False}),
    "exaone": Recipe(A.EXAONE, "exaone", WIDE | THETA),
    "starcoder2": Recipe(
        A.STARCODER2, "starcoder2", WIDE | THETA | {"sliding_window": None}
    ),
    "command-r": Recipe(A.COMMAND_R, "cohere", WIDE | THETA),
    "cohere2": Recipe(A.COHERE2, "cohere2", WIDE | THETA),
    "stablelm": Recipe(
        A.STABLELM,
        "stablelm",
        WIDE | THETA | {"partial_rotary_factor": 0.5, "use_parallel_residual": False},
    ),
    "glm4": Recipe(A.GLM4, "glm4", WIDE | THETA | {"partial_rotary_factor": 0.5}),
    "gptneox": Recipe(A.GPTNEOX, "gpt_neox", WIDE | {"rope_parameters": ...}),
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
    "glm4",
)
PERMUTED = (A.ARCEE, A.LLAMA, A.GRANITE, A.GRANITE_MOE, A.SMOLLM3)
EXPERT = re.compile(r"(.*experts)\.\d+(\..*)")
PLUS_ONE = (A.GEMMA, A.GEMMA2, A.GEMMA3, A.NEMOTRON)
NAMED_BY_CONVERTER = {  # of stacks
    f"feed_forward.experts.{theirs}": f"mlp.experts.{ours}_proj"
    for theirs, ours in (("w1", "gate"), ("w2", "down"), ("w3", "up"))
}


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


def metadata(writer: gguf.GGUFWriter, recipe: Recipe, entries: dict[str, Any]) -> None:
    """Write the facts of a config as llama.cpp's converter does."""
    config, arch = read_config(entries).config, recipe.arch
    by_window = sorted(
        config.blocks, key=lambda kind: kind.window is not None
    )  # all tokens first
    rope = next((kind.rope for kind in by_window if kind.rope), None)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_blocks)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if arch not in (A.GPT2, A.GPTNEOX):
        writer.add_head_count_kv(config.num_key_value_heads)
    if config.norm == "rms":
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    else:
        writer.add_layer_norm_eps(config.norm_eps)
    if rope is not None:
        writer.add_rope_freq_base(rope.theta)
        if recipe.fixture in ROTARY_DIMENSION:
            writer.add_rope_dimension_count(rope.rotary_dim)
        if rope.scaling == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope.factor)
    if window := next((kind.window for kind in config.blocks if kind.window), None):
        writer.add_sliding_window(window)
    if config.attn_soft_cap and config.final_soft_cap:
        writer.add_attn_logit_softcapping(config.attn_soft_cap)
        writer.add_final_logit_softcapping(config.final_soft_cap)
    if (mixture := config.experts) is not None:
        writer.add_expert_count(mixture.num_experts)
        writer.add_expert_used_count(mixture.top_k)
        if "moe_intermediate_size" in entries:
            writer.add_expert_feed_forward_length(mixture.intermediate_size)
        if mixture.shared_size:
            writer.add_expert_shared_feed_forward_length(mixture.shared_size)
    if arch in (A.GRANITE, A.GRANITE_MOE):
        writer.add_embedding_scale(config.embed_scale)
        writer.add_attention_scale(config.attention_scale)
        writer.add_residual_scale(config.residual_scale)
        writer.add_logit_scale(entries["logits_scaling"])
    if arch == A.PHI3:
        writer.add_rope_scaling_orig_ctx_len(
            entries["original_max_position_embeddings"]
        )
    if entries.get("logit_scale"):
        writer.add_logit_scale(config.logit_scale)
    if arch in (A.GPTNEOX, A.STABLELM):
        writer.add_parallel_residual(config.parallel_residual)
    for token, number in (("bos", 1), ("eos", 2), ("pad", 0)):
        getattr(writer, f"add_{token}_token_id")(number)
    writer.add_file_type(0)


def parts_of(arch: A, name: str, x: Array, config: Config) -> dict[str, Array]:
    """What llama.cpp's converter makes of a tensor: others, with its numbers in other places."""
    heads, kv_heads, inner = (
        config.num_attention_heads,
        config.num_key_value_heads,
        x.shape[1:],
    )
    if arch in PERMUTED and (".q_proj." in name or ".k_proj." in name):
        h = heads if ".q_proj." in name else kv_heads
        return {
            name: x.reshape(h, 2, x.shape[0] // h // 2, *inner)
            .swapaxes(1, 2)
            .reshape(x.shape)
        }
    if arch == A.GPTNEOX and "query_key_value" in name:
        x = x.reshape(heads, 3, -1, *inner).swapaxes(0, 1).reshape(x.shape)
    if arch == A.GPT2 and x.ndim == 2 and ".c_" in name:
        x = x.T
    if "input_linear" not in name:
        return {name: x}
    gate, up = np.split(x, 2, axis=1)
    of = name.removesuffix("input_linear.weight")
    return {f"{of}experts.w1.weight": gate, f"{of}experts.w3.weight": up}


def gguf_file(
    folder: Path,
    name: str,
    kind: Q = Q.Q8_0,
    tokenizer: bool = False,
    shard_tensors: int = 0,
    change: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
) -> Path:
    """Write a model of random weights as GGUF, and as safetensors into `folder / "hub"`."""
    recipe = RECIPES[name]
    entries = config_of(recipe.fixture, **recipe.changes)
    hub, rng = read_config(entries), np.random.default_rng(0)
    path = folder / f"{name}-{kind.name}.gguf"
    arch = gguf.MODEL_ARCH_NAMES[recipe.arch]
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=shard_tensors)
    metadata(writer, recipe, entries)
    if tokenizer:
        add_tokenizer(writer, hub.config.vocab_size)
    names = gguf.get_tensor_name_map(recipe.arch, hub.config.num_blocks)
    arrays: dict[str, Array] = {}
    stacks: dict[
        str, list[Array]
    ] = {}  # of all experts, by the name without their number
    for role in dict(roles(hub, hub.family.bases[0])).values():
        if role.tensor in arrays:
            continue
        raised = recipe.arch in PLUS_ONE and role.tensor.endswith("norm.weight")
        values = rng.standard_normal(role.shape) * 0.2 + (
            0.5 if "norm" in role.tensor else 0
        )
        stored = values.astype(np.float32) + np.float32(raised)
        meant, plain = stored.copy(), Q.F32 if role.tensor.endswith("bias") else kind
        places = np.arange(values.size).reshape(role.shape)
        for part, at in parts_of(recipe.arch, role.tensor, places, hub.config).items():
            at = at if at.shape[-1:] == (1,) else at.squeeze()
            array, used, back = quantised(stored.reshape(-1)[at], plain)
            meant.reshape(-1)[at] = back.reshape(at.shape)
            if whole := EXPERT.fullmatch(part):
                stack = stacks.setdefault(part := whole[1] + whole[2], [])
                stack.append(array)
                if len(stack) < hub.config.experts.num_experts:  # type: ignore[union-attr]
                    continue
                array = np.stack(stack)
                for old, new in NAMED_BY_CONVERTER.items():
                    part = part.replace(old, new)
            theirs = names.get_name(part, try_suffixes=(".weight", ".bias"))
            assert theirs is not None, part
            writer.add_tensor(theirs, array, raw_dtype=used)
        arrays[role.tensor] = meant - np.float32(raised)
    write(folder / "hub", arrays, entries)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (
        path if not shard_tensors else next(folder.glob(f"{path.stem}-00001-of-*.gguf"))
    )


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
    writer.add_token_types(
        [3 if x in special else 5 if x[:4] == "[PAD" else 1 for x in tokens]
    )
    merges = [
        x if isinstance(x, str) else " ".join(x) for x in model["model"]["merges"]
    ]
    writer.add_token_merges(merges)
    writer.add_add_bos_token(True)
