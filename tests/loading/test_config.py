"""How `config.json` is read: old and new spellings, well-known models, and every refusal."""

import copy
import re
from collections.abc import Iterator, Mapping
from math import inf, nan, sqrt
from typing import Any

import numpy as np
import pytest
from checkpoints import config_of
from conftest import FIXTURES
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal_of

from refimpl import RefimplError
from refimpl.loading.config_json import HubModel, read_config
from refimpl.loading.config_keys import shown
from refimpl.loading.families import FAMILIES
from refimpl.loading.refused_families import REFUSED
from refimpl.model.config import Alibi, BlockKind, Config, Rope, Temperature

CASES = sorted(path.parent.name for path in FIXTURES.glob("*/config.json"))
BY_KIND = ("full_attention", "sliding_attention")
NO_OLD_RULE = ("ministral", "olmo3")  # the fixtures' windows can be said in `layer_types` only


def refusal(case: str, **changes: Any) -> str:
    """The problem of a fixture's configuration with some keys changed."""
    return refusal_of(read_config, config_of(case, **changes)).problem


# Spellings


def as_old_files_spell_it(new: Mapping[str, Any], type_key: str) -> dict[str, Any]:
    """The configuration in the words of older transformers."""
    old = dict(new)
    types = None if old["model_type"] in NO_OLD_RULE else old.pop("layer_types", None)
    rope = old.pop("rope_parameters", {})
    old["torch_dtype"] = old.pop("dtype")
    if not rope:
        return old
    if old["model_type"] == "olmo3":
        rope = rope[BY_KIND[0]]
    elif BY_KIND[0] in rope:
        old["rope_local_base_freq"] = rope[BY_KIND[1]]["rope_theta"]
        rope = rope[BY_KIND[0]]
        old["sliding_window_pattern"] = old.pop("_sliding_window_pattern")
        assert types[: old["sliding_window_pattern"]].index("full_attention") == 5
    scaling = {key: value for key, value in rope.items() if key != "rope_type"}
    family = FAMILIES[old["model_type"]].keys
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in scaling:
            old[family.get(key, key)] = scaling.pop(key)
    old["rope_scaling"] = scaling | {type_key: rope["rope_type"]} if scaling else None
    if "hidden_activation" in old:
        old["hidden_act"] = old["hidden_activation"]
    for key, derived in {
        "head_dim": 8,
        "num_key_value_heads": old.get("num_attention_heads"),
    }.items():
        if old["model_type"] in ("llama", "phi3") and old.get(key) == derived:
            del old[key]
    return old


@pytest.mark.parametrize("type_key", ["type", "rope_type"])
@pytest.mark.parametrize("case", CASES)
def test_old_and_new_spellings_say_the_same(case: str, type_key: str) -> None:
    new = config_of(case)
    old = as_old_files_spell_it(new, type_key)
    assert "rope_parameters" not in old
    assert "layer_types" not in old or old["model_type"] in NO_OLD_RULE
    assert read_config(old) == read_config(new)
    assert new == config_of(case)  # reading changes nothing


def test_what_a_type_of_block_shares_may_stand_beside_it() -> None:
    full = {"rope_type": "linear", "factor": 4.0}
    beside = {"rope_theta": 3000.0, "rope_local_base_freq": 50.0}
    split = config_of("gemma3", rope_parameters={"full_attention": full}, **beside)
    assert read_config(split) == read_config(config_of("gemma3"))


# Well-known models as they were published; first, the keys of all of them that change no number.
NO_MATTER = {
    "_name_or_path": "Phi-3-mini-4k-instruct", "_num_labels": 1, "activation_dropout": 0.0,
    "architectures": ["LlamaForCausalLM"], "attention_dropout": 0.0, "attn_pdrop": 0.1,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1,
    "cache_implementation": "hybrid", "classifier_dropout": 0.1, "dropout": 0.1, "embd_pdrop": 0.0,
    "eos_token_id": 2, "id2label": {"0": "LABEL_0"}, "init_std": 0.02, "initializer_range": 0.02,
    "is_llama_config": True, "label2id": {"LABEL_0": 0}, "layerdrop": 0.0, "pad_token_id": -1,
    "prefix": "</s>", "pretraining_tp": 1, "resid_pdrop": 0.0, "summary_activation": None,
    "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "torch_dtype": "float16", "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
    "transformers_version": "4.31.0.dev0", "use_cache": True,
}  # fmt: skip
LLAMA_2 = NO_MATTER | {
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
    "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
LLAMA_1 = NO_MATTER | {
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
    "max_sequence_length": 2048, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 32, "rms_norm_eps": 1e-06, "vocab_size": 32000,
}  # fmt: skip
LLAMA_3_2 = NO_MATTER | {
    "attention_bias": False, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256,
}  # fmt: skip
SMOLLM_2 = NO_MATTER | {
    "attention_bias": False, "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
    "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "vocab_size": 49152,
}  # fmt: skip
MISTRAL_1 = NO_MATTER | {
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
MISTRAL_3 = MISTRAL_1 | {"rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768}
QWEN_2_5 = NO_MATTER | {
    "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944,
    "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2",
    "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072,
    "tie_word_embeddings": False, "use_mrope": False, "use_sliding_window": False,
    "vocab_size": 152064,
}  # fmt: skip
QWEN_3 = NO_MATTER | {
    "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
    "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
GEMMA_2 = NO_MATTER | {
    "attention_bias": False, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 3584, "intermediate_size": 14336, "max_position_embeddings": 8192,
    "model_type": "gemma2", "num_attention_heads": 16, "num_hidden_layers": 42,
    "num_key_value_heads": 8, "query_pre_attn_scalar": 224, "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096,
    "vocab_size": 256000,
}  # fmt: skip
GEMMA_3 = NO_MATTER | {
    "attention_bias": False, "attn_logit_softcapping": None, "final_logit_softcapping": None,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
    "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
    "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "vocab_size": 262144,
}  # fmt: skip
PHI_3 = NO_MATTER | {
    "attention_bias": False, "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
    "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047,
    "tie_word_embeddings": False, "vocab_size": 32064,
}  # fmt: skip
PYTHIA = NO_MATTER | {
    "hidden_act": "gelu", "hidden_size": 768, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 12,
    "num_hidden_layers": 12, "rotary_emb_base": 10000, "rotary_pct": 0.25,
    "tie_word_embeddings": False, "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip
GPT_2 = NO_MATTER | {
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
    "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    "vocab_size": 50257,
}  # fmt: skip
DISTILGPT_2 = GPT_2 | {"n_layer": 6}
OPT_125M = NO_MATTER | {
    "activation_function": "relu", "do_layer_norm_before": True, "ffn_dim": 3072,
    "hidden_size": 768, "max_position_embeddings": 2048, "model_type": "opt",
    "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 50272,
    "word_embed_proj_dim": 768,
}  # fmt: skip

LLAMA3_ROPE = Rope(5e5, 64, "llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)
# The published configuration, facts that follow from it, the blocks' windows, and their ropes.
WELL_KNOWN: dict[str, tuple[dict[str, Any], dict[str, Any], list[int | None], Rope | None]] = {
    "Llama 1": (LLAMA_1, {"max_position_embeddings": 2048, "num_key_value_heads": 32},
                [None] * 32, Rope(1e4, 128)),
    "Llama 2": (LLAMA_2, {"head_dim": 128, "norm_eps": 1e-5}, [None] * 32, Rope(1e4, 128)),
    "Llama 3.2": (LLAMA_3_2, {"head_dim": 64, "num_key_value_heads": 8}, [None] * 16, LLAMA3_ROPE),
    "SmolLM2": (SMOLLM_2, {"head_dim": 64, "activation": "silu"}, [None] * 30, Rope(1e5, 64)),
    "Mistral 0.1": (MISTRAL_1, {"norm": "rms", "gated": True}, [4096] * 32, Rope(1e4, 128)),
    "Mistral 0.3": (MISTRAL_3, {"head_dim": 128}, [None] * 32, Rope(1e6, 128)),
    "Qwen2.5": (QWEN_2_5, {"head_dim": 128}, [None] * 28, Rope(1e6, 128)),
    "Qwen3": (QWEN_3, {"head_dim": 128, "hidden_size": 1024}, [None] * 28, Rope(1e6, 128)),
    "Gemma 2": (GEMMA_2, {"attention_scale": 224**-0.5, "attn_soft_cap": 50.0},
                [4096, None] * 21, Rope(1e4, 256)),
    "Gemma 3": (GEMMA_3, {"attention_scale": 1 / 16, "attn_soft_cap": None},
                (([512] * 5 + [None]) * 5)[:26], None),
    "Phi-3": (PHI_3, {"head_dim": 96}, [2047] * 32, Rope(1e4, 96)),
    "Pythia": (PYTHIA, {"parallel_residual": True, "activation": "gelu", "norm": "layer"},
               [None] * 12, Rope(1e4, 16)),
    "GPT-2": (GPT_2, {"intermediate_size": 3072, "activation": "gelu_tanh", "gated": False},
              [None] * 12, None),
    "DistilGPT-2": (DISTILGPT_2, {"num_blocks": 6}, [None] * 6, None),
    "OPT": (OPT_125M, {"position_offset": 2, "norm_eps": 1e-5, "activation": "relu"},
            [None] * 12, None),
}  # fmt: skip
PUBLISHED = {name: published for name, (published, *_) in WELL_KNOWN.items()}


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_well_known_configurations_are_read(name: str) -> None:
    published, facts, windows, rope = WELL_KNOWN[name]
    config = read_config(published).config
    assert {key: getattr(config, key) for key in facts} == facts
    ropes = dict.fromkeys(windows, rope)
    if name == "Gemma 3":
        ropes = {512: Rope(1e4, 256), None: Rope(1e6, 256)}
    assert config.blocks == tuple(BlockKind(window, ropes[window]) for window in windows)


def test_the_tied_head_and_the_biases_of_well_known_models() -> None:
    tied = {name for name, published in PUBLISHED.items() if read_config(published).tied}
    assert tied == {
        "Llama 3.2", "SmolLM2", "Qwen3", "Gemma 2", "Gemma 3", "GPT-2", "DistilGPT-2", "OPT",
    }  # fmt: skip
    assert read_config(config_of("gemma2", tie_word_embeddings=...)).tied
    assert not read_config(config_of("llama", tie_word_embeddings=...)).tied
    plain = {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
    biased = {name: read_config(published).biased for name, published in PUBLISHED.items()}
    assert biased["Qwen2.5"] == {"q_proj", "k_proj", "v_proj"}
    assert biased["Pythia"] == biased["GPT-2"] == biased["OPT"] == plain
    assert biased["Llama 2"] == biased["Qwen3"] == biased["Gemma 3"] == biased["Phi-3"] == set()


# Windows and omitted keys


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
    ("gemma3", {"sliding_window_pattern": 3}, [5] * 5 + [None, 5]),  # `layer_types` decides
    ("granite_swa", {"layer_types": ...}, [None, 5, 5]),
    (
        "granite_swa",
        {"layer_types": ..., "num_hidden_layers": 6, "layer_rope_theta": None},
        [None, 5, 5, 5, None, 5],
    ),
]


@pytest.mark.parametrize(("case", "changes", "windows"), WINDOWS)
def test_windows(case: str, changes: dict[str, Any], windows: list[int | None]) -> None:
    blocks = read_config(config_of(case, **changes)).config.blocks
    assert [kind.window for kind in blocks] == windows


LOCAL, GLOBAL = BlockKind(5, Rope(1e4, 10)), BlockKind(None, Rope(1e6, 10))
WIDE = {"num_key_value_heads": ..., "num_attention_heads": 16}
MEANS: list[tuple[str, dict[str, Any], str, Any]] = [
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
    (
        "granite_swa",
        {"rope_parameters": ..., "layer_rope_theta": [9.0, 0, 0.0]},
        "blocks",
        (BlockKind(None, Rope(9.0, 8)), BlockKind(5, None), BlockKind(5, None)),
    ),
    (
        "granite_swa",
        {"layer_rope_theta": ...},
        "blocks",
        (BlockKind(None, Rope(1e3, 8)), *(BlockKind(5, Rope(1e3, 8)),) * 2),
    ),
]


@pytest.mark.parametrize(("case", "changes", "name", "value"), MEANS)
def test_omitted_keys_mean_what_the_family_says(
    case: str, changes: dict[str, Any], name: str, value: Any
) -> None:
    assert getattr(read_config(config_of(case, **changes)).config, name) == value


# Refusals

WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a family nobody knows": ("llama", {"model_type": "rwkv"}, 'unknown model family "rwkv"'),
    "a family that is no name": ("llama", {"model_type": ["llama"]}, "unknown model family"),
    "no family": ("llama", {"model_type": ...}, "has no model_type"),
    "multimodal": ("llama", {"model_type": "gemma3", "text_config": {"a": 1}}, "multimodal"),
    "with vision": ("llama", {"vision_config": {"a": 1}}, "multimodal"),
    "quantised": ("llama", {"quantization_config": {"bits": 4}}, "quantised"),
    "quantised by MLX": ("llama", {"quantization": {"bits": 4}}, "quantised"),
    "a key nobody knows": ("llama", {"rope_interleaved": True}, "rope_interleaved: not understood"),
    "another family's key": ("llama", {"sliding_window": 4}, "sliding_window: not understood"),
    "another family's cap": ("llama", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
    "another family's residual": ("llama", {"use_parallel_residual": True}, "use_parallel"),
    "types where none exist": ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    "both directions": ("llama", {"is_causal": False}, "is_causal: only true"),
    "Gemma both ways": ("gemma3", {"use_bidirectional_attention": True}, "bidirectional"),
    "biases of Qwen2": ("qwen2", {"attention_bias": True}, "attention_bias: not understood"),
    "biases of Phi-3": ("phi3", {"attention_bias": True}, "attention_bias: only false"),
    "OPT 350m norms": ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before: only true"),
    "OPT 350m width": ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim"),
    "OPT without final norm": ("opt", {"_remove_final_layer_norm": True}, "only false"),
    "OPT without gains": ("opt", {"layer_norm_elementwise_affine": False}, "only true"),
    "GPT-2 scaled by block": (
        "gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    "GPT-2 unscaled": ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights: only true"),
    "GPT-2 with an encoder": ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    "an activation nobody knows": ("llama", {"hidden_act": "gelu_fast"}, 'hidden_act: "gelu_fast"'),
    "no activation": ("llama", {"hidden_act": None}, "hidden_act: null"),
    "Gemma's two activations": ("gemma2", {"hidden_act": "gelu"}, "hidden_act: .* contradicts"),
    "Gemma's two windows": ("gemma2", {"sliding_window_size": 7}, "sliding_window_size: 7"),
    "Gemma's private pattern": (
        "gemma3", {"layer_types": ..., "_sliding_window_pattern": 4}, "_sliding_window_pattern: 4"),
    "heads that do not divide": ("gpt2", {"n_head": 5}, "n_head: 5 does not divide 32"),
    "key heads that do not divide": ("llama", {"num_key_value_heads": 3}, "3 does not divide 4"),
    "no size": ("gpt2", {"n_embd": ...}, "n_embd: expected a positive integer, it is missing"),
    "null for a size": ("llama", {"vocab_size": None}, "vocab_size: .*, it is missing"),
    "a size in quotes": ("llama", {"hidden_size": "32"}, 'hidden_size: .*got "32"'),
    "a size with a point": ("llama", {"hidden_size": 32.0}, "hidden_size: .*got 32.0"),
    "true for a size": ("llama", {"num_hidden_layers": True}, "num_hidden_layers: .*got true"),
    "a negative size": ("llama", {"intermediate_size": -1}, "intermediate_size: .*got -1"),
    "a huge size": ("llama", {"vocab_size": 10**30}, "of at most 2147483647, got 1000"),
    "too many blocks": ("llama", {"num_hidden_layers": 10_001}, "of at most 10000"),
    "a list for a size": ("llama", {"hidden_size": [32]}, "hidden_size: .*got .32."),
    "zero eps": ("llama", {"rms_norm_eps": 0}, "rms_norm_eps: expected a positive number, got 0"),
    "true for eps": ("llama", {"rms_norm_eps": True}, "rms_norm_eps: .*got true"),
    "NaN eps": ("llama", {"rms_norm_eps": nan}, "rms_norm_eps: .*got NaN"),
    "infinite eps": ("llama", {"rms_norm_eps": inf}, "rms_norm_eps: .*got Infinity"),
    "an eps for OPT": ("opt", {"layer_norm_eps": 1e-3}, "layer_norm_eps: not understood"),
    "a flag in quotes": ("llama", {"attention_bias": "false"}, 'attention_bias: .*got "false"'),
    "residual in quotes": ("gpt_neox", {"use_parallel_residual": "no"}, "use_parallel_residual"),
    "null for a flag": ("llama", {"tie_word_embeddings": None}, "tie_word_embeddings: .*true or"),
    "a cap of zero": ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping: .*got 0"),
    "types too few": ("gemma2", {"layer_types": ["full_attention"]}, "expected 4 .*got 1 entries"),
    "types unknown": ("gemma2", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
    "types no list": ("gemma2", {"layer_types": 4}, "layer_types: .*got 4"),
    "types no names": ("gemma2", {"layer_types": [[]] * 4}, "layer_types"),
    "sliding without window": ("gemma2", {"sliding_window": None}, "2 blocks slide"),
    "sliding not in use": ("qwen2_sliding", {"use_sliding_window": False}, "2 blocks slide"),
    "a window of nothing": ("mistral", {"sliding_window": 0}, "sliding_window: .*got 0"),
    "a pattern of nothing": (
        "gemma3", {"layer_types": ..., "sliding_window_pattern": 0}, "sliding_window_pattern"),
    "a first block of no number": (
        "qwen2_sliding", {"layer_types": ..., "max_window_layers": None}, "max_window_layers"),
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 100.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 2.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def rope(**changes: Any) -> dict[str, Any]:
    return {"rope_parameters": PLAIN | changes}


WRONG_ROPE: dict[str, tuple[str, dict[str, Any], str]] = {
    "longrope without factors": (
        "phi3_longrope", rope(rope_type="longrope", long_factor=[1.0] * 4),
        "short_factor: expected a list of 4 numbers, got null"),
    "longrope with too few": (
        "phi3_longrope", rope(rope_type="longrope", short_factor=[1.0], long_factor=[1.0] * 4),
        "short_factor: expected a list of 4 numbers, got 1"),
    "longrope with words": (
        "phi3_longrope",
        rope(rope_type="longrope", short_factor=["x"] + [1.0] * 3, long_factor=[1.0] * 4),
        'short_factor: .*got "x"'),
    "longrope of two contexts": (
        "phi3_longrope", {"original_max_position_embeddings": 1}, "1 contradicts 8"),
    "su": ("llama", {"rope_parameters": ..., "rope_scaling": {"type": "su"}}, 'type "su" is not'),
    "proportional": ("llama", rope(rope_type="proportional"), '"proportional" is not'),
    "dynamic without factor": ("llama", rope(rope_type="dynamic"), "factor: .*is missing"),
    "dynamic in pairs": (
        "phi3", rope(rope_type="dynamic", factor=2.0, partial_rotary_factor=0.25), "more than 2"),
    "yarn from nothing": ("llama", rope(rope_type="yarn", factor=0.5), "at least 1, got 0.5"),
    "yarn without a base": ("llama", rope(rope_type="yarn", rope_theta=1), "theta above 1"),
    "yarn of a block without a base": (
        "granite_swa",
        {"layer_rope_theta": [1, 2, 3]} | rope(rope_type="yarn", factor=2.0),
        "theta above 1",
    ),
    "a base too few": ("granite_swa", {"layer_rope_theta": [1e4, 0]}, "list of 3 numbers, got 2"),
    "bases no list": ("granite_swa", {"layer_rope_theta": 1e4}, "list of 3 numbers, got 10000.0"),
    "a base that is no number": (
        "granite_swa", {"layer_rope_theta": [0, "1e4", 0]}, 'theta: .*at least 1, got "1e4"'),
    "a base below 1": ("granite_swa", {"layer_rope_theta": [0, 0, -2]}, "theta: .*got -2"),
    "yarn cut in words": ("llama", rope(rope_type="yarn", truncate="no"), "truncate: .*true or"),
    "yarn of no turns": ("llama", rope(rope_type="yarn", beta_fast=0), "beta_fast: .*got 0"),
    "yarn of a key": ("llama", rope(rope_type="yarn", beta=2), "not understood: .*beta"),
    "yarn from no context": (
        "llama", rope(rope_type="yarn", original_max_position_embeddings=0), "at least 2, got 0"),
    "queries that do not grow": (
        "ministral3", rope(rope_type="yarn"), "llama_4_scaling_beta: .*is missing"),
    "queries of a llama": ("llama", rope(llama_4_scaling_beta=0.1), "not understood: .*llama_4"),
    "no name": ("llama", rope(rope_type={}), "type {} is not one of"),
    "two names": ("llama", rope(type="linear"), 'and "linear"'),
    "not an object": ("llama", {"rope_parameters": [1]}, "rope_parameters: expected an object"),
    "scaling no object": ("llama", {"rope_scaling": "linear"}, "rope_scaling: expected an object"),
    "two places": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "contradicts"),
    "two thetas": ("llama", {"rope_theta": 7.0}, "rope_theta: 7.0 contradicts 10000.0"),
    "two bases": (
        "gpt_neox", {"rope_parameters": ..., "rotary_emb_base": 5, "rope_theta": 7}, "contradicts"),
    "the other word": ("gpt_neox", {"rope_parameters": ..., "rope_theta": 7}, "rope_theta: 7 con"),
    "two parts": ("gpt_neox", {"rotary_pct": 0.5}, "rotary_pct: 0.5 contradicts 0.25"),
    "theta below one": ("llama", rope(rope_theta=0.5), "at least 1"),
    "theta in quotes": ("llama", rope(rope_theta="1"), "rope_theta"),
    "part of a llama": ("llama", rope(partial_rotary_factor=0.5), "only 1.0"),
    "part beside a llama": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "an odd part": ("phi3", rope(partial_rotary_factor=0.4), "3 of 8 channels"),
    "more than all": ("phi3", rope(partial_rotary_factor=1.5), "at most 1, got 1.5"),
    "linear without factor": ("llama", rope(rope_type="linear"), "factor: .*is missing"),
    "a factor below one": ("llama", rope(rope_type="linear", factor=0.5), "at least 1"),
    "a factor of nothing": ("llama", rope(factor=2.0), "not understood: .*factor"),
    "llama3 without length": (
        "llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": None}},
        "original_max_position_embeddings: .*missing"),
    "llama3 of two lengths": (
        "llama", {"rope_parameters": LLAMA3, "original_max_position_embeddings": 32},
        "original_max_position_embeddings: 32 contradicts 64"),
    "llama3 upside down": (
        "llama", {"rope_parameters": LLAMA3 | {"high_freq_factor": 0.9}}, "is below"),
    "one rope for Gemma 3": ("gemma3", {"rope_parameters": PLAIN}, "expected sliding_attention"),
    "a rope for no type": (
        "gemma3", {"rope_parameters": {"linear_attention": PLAIN}}, '"linear_attention"'),
    "a rope that is none": ("gemma3", {"rope_parameters": {"full_attention": 5}}, "full_attention"),
    "ropes by type for one": (
        "gemma2", {"rope_parameters": {"full_attention": PLAIN}}, "not understood: .*full_att"),
    "Gemma 3's two places": (
        "gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 9.0}}, "contradicts"),
    "Gemma 3's two bases": ("gemma3", {"rope_local_base_freq": 9.0}, "rope_local_base_freq: 9.0"),
}  # fmt: skip


@pytest.mark.parametrize("around", [{}, {"text_config": {"hidden_size": 8}}])
@pytest.mark.parametrize("model_type", REFUSED)
def test_a_family_out_of_reach_is_refused_by_name(model_type: str, around: dict[str, Any]) -> None:
    reason, way_out = REFUSED[model_type]
    entries = {"model_type": model_type, "quantization_config": {"bits": 4}} | around
    error = refusal_of(read_config, entries, "config.json", says=reason, remedy=way_out)
    assert model_type in error.problem
    assert not REFUSED.keys() & FAMILIES.keys()
    assert way_out.rpartition(" ")[2] in FAMILIES  # where the reader is sent


@pytest.mark.parametrize("name", WRONG | WRONG_ROPE)
def test_a_mistake_is_refused_in_one_line(name: str) -> None:
    case, changes, pattern = (WRONG | WRONG_ROPE)[name]
    problem = refusal(case, **changes)
    assert re.search(pattern, problem), problem
    lines = 2 if name in ("one rope for Gemma 3", "a pattern of nothing") else 1
    assert problem.count("\n  ") <= lines


def test_everything_wrong_is_listed_at_once() -> None:
    wrong = {"vocab_size": -1, "rms_norm_eps": "x", "hidden_act": "swiglu", "attention_bias": 1}
    rope = PLAIN | {"rope_type": "ntk"}
    problem = refusal("llama", **wrong, num_experts=8, rope_parameters=rope)
    for key in (*wrong, "num_experts", "ntk"):
        assert key in problem, key
    assert problem.count("\n  ") == 6


def test_values_in_messages_are_cut_short() -> None:
    assert (shown(None), shown("silu")) == ("null", '"silu"')
    assert shown([1] * 100) == "[1, 1, 1, 1, 1, 1, ...]"
    assert len(shown("x" * 1000)) == 80


def test_the_file_is_named() -> None:
    with pytest.raises(RefimplError, match=r"a/config\.json does not describe"):
        read_config(config_of("llama", vocab_size=0), "a/config.json")


@pytest.mark.parametrize("value", [None, False, [], {}, 0])
def test_unknown_keys_with_nothing_in_them_are_no_matter(value: Any) -> None:
    assert read_config(config_of("llama", something_new=value)) == read_config(config_of("llama"))


# Whatever a file says, the answer is a configuration or a refusal

NUMBERS = [0, -1, 1, 2, 3, 4, 8, 32, 10**9, 10**30, 10**400, -(10**400)]
NUMBERS += [0.0, 0.5, 1.5, 1e308, 5e-324, nan, inf, -inf]
WORDS = ["", "32", "silu", "gelu", "linear", "llama3", "default", "type", "\ud800"]
LISTS = [["full_attention"] * 4, ["sliding_attention"] * 3, [[]]]
EDGES = st.sampled_from(NUMBERS) | st.sampled_from(WORDS) | st.sampled_from(LISTS)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | EDGES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = sorted(
    {key for case in CASES for key in config_of(case)}
    | {key for family in FAMILIES.values() for key in family.defaults}
    | {key for published in PUBLISHED.values() for key in published}
)
INNER = [*LLAMA3, "type", "partial_rotary_factor", *BY_KIND]


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A fixture's configuration with keys deleted, added and replaced, also inside its ropes."""
    config = config_of(draw(st.sampled_from(CASES)))
    for _ in range(draw(st.integers(1, 4))):
        places = [config, *(value for value in config.values() if isinstance(value, dict))]
        place = draw(st.sampled_from(places))
        key = draw(st.sampled_from(KEYS if place is config else INNER))
        if draw(st.booleans()):
            place[key] = draw(VALUES)
        else:
            place.pop(key, None)
    return config


@given(damaged())
def test_any_configuration_is_read_or_refused(config: dict[str, Any]) -> None:
    try:
        hub = read_config(config)
    except RefimplError as error:
        str(error).encode("utf-8", "backslashreplace")
        return
    assert isinstance(hub, HubModel)
    for kind in set(hub.config.blocks):
        if kind.rope is not None:
            for inv_freq in (kind.rope.inv_freq(), kind.rope.inv_freq(10**6)):
                assert np.isfinite(inv_freq).all()
                assert inv_freq.shape == (kind.rope.rotary_dim // 2,)


# The same, as transformers understands it


def understood_by_transformers(published: Mapping[str, Any]) -> Config:
    """A `Config` made of what transformers' own configuration class says."""
    transformers = pytest.importorskip("transformers")
    rest = copy.deepcopy(dict(published))
    theirs = transformers.AutoConfig.for_model(rest.pop("model_type"), **rest)
    family = FAMILIES[theirs.model_type]

    def first(*names: str, default: Any = None) -> Any:
        return next(
            (getattr(theirs, n) for n in names if getattr(theirs, n, None) is not None), default
        )

    heads, hidden = theirs.num_attention_heads, theirs.hidden_size
    head_dim = first("head_dim", default=hidden // heads)
    activation = first("hidden_activation", "activation_function", "hidden_act", "activation")
    tanh = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    return Config(
        family=theirs.model_type,
        vocab_size=theirs.vocab_size,
        hidden_size=hidden,
        intermediate_size=first(
            "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", default=4 * hidden
        ),
        num_attention_heads=heads,
        num_key_value_heads=their_kv_heads(theirs),
        head_dim=head_dim,
        max_position_embeddings=their_limit(theirs),
        alibi=their_alibi(theirs, head_dim),
        norm=family.norm,
        norm_eps=first(
            "rms_norm_eps",
            "layer_norm_eps",
            "layer_norm_epsilon",
            "norm_epsilon",
            "norm_eps",
            default=1e-5,
        ),
        activation=FIXED.get(theirs.model_type, tanh.get(activation, activation)),
        gated="gate_proj" in family.names,
        attention_scale=first(
            "attention_multiplier",
            default=first("query_pre_attn_scalar", default=head_dim) ** -0.5,
        ),
        blocks=tuple(their_blocks(theirs, head_dim)),
        parallel_residual=is_parallel(theirs),
        # Gemma 3's attention never applies it
        attn_soft_cap=None if "gemma3" in theirs.model_type else first("attn_logit_softcapping"),
        final_soft_cap=first("final_logit_softcapping"),
        embed_scale=first(
            "embedding_multiplier",
            default=sqrt(hidden) if theirs.model_type.startswith("gemma") else 1.0,
        ),
        residual_scale=first("residual_multiplier", default=1.0),
        logit_scale=their_logit_scale(theirs),
        qkv_limit=first("clip_qkv"),
        weightless_norms=("attn_norm", "mlp_norm", "final_norm")
        if theirs.model_type == "olmo"
        else (),
        position_offset=2 if theirs.model_type == "opt" else 0,
    )


FIXED = {"bloom": "gelu_tanh_8", "mpt": "gelu"}  # activations that are no key
INTERLEAVED = ("cohere", "cohere2", "ernie4_5", "glm", "glm4", "helium")
PARALLEL = ("cohere", "cohere2", "gptj", "phi")


def is_parallel(theirs: Any) -> bool:
    """Whether transformers' blocks of this configuration are parallel."""
    if theirs.model_type == "falcon":
        return bool(theirs.new_decoder_architecture or theirs.parallel_attn)
    return theirs.model_type in PARALLEL or getattr(theirs, "use_parallel_residual", False)


def their_logit_scale(theirs: Any) -> float:
    """What transformers' model multiplies logits by."""
    scale: float = getattr(theirs, "logit_scale", getattr(theirs, "logits_scaling", 1.0))
    return 1 / scale if theirs.model_type.startswith("granite") else scale


def they_rotate(theirs: Any, index: int, kind: str) -> bool:
    """Whether transformers' model rotates in a block."""
    if theirs.model_type == "smollm3":
        return bool(theirs.no_rope_layers[index])
    if theirs.model_type == "granite_swa":
        return bool(theirs.layer_rope_theta[index])
    if theirs.model_type == "exaone4":
        return theirs.sliding_window is None or kind == "sliding_attention"
    return theirs.model_type != "cohere2" or kind == "sliding_attention"


def their_kv_heads(theirs: Any) -> int:
    """Key and value heads of transformers' model of this configuration."""
    if theirs.model_type == "falcon":
        grouped = theirs.new_decoder_architecture or not theirs.multi_query
        return theirs.num_kv_heads if grouped else 1
    return getattr(theirs, "num_key_value_heads", theirs.num_attention_heads)


def their_blocks(theirs: Any, head_dim: int) -> Iterator[BlockKind]:
    """Windows and ropes as transformers' models look them up."""
    everywhere = BY_KIND[bool(getattr(theirs, "sliding_window", None))]
    types = getattr(theirs, "layer_types", None) or [everywhere] * theirs.num_hidden_layers
    for index, kind in enumerate(types):
        window = theirs.sliding_window if kind == "sliding_attention" else None
        rope = dict(getattr(theirs, "rope_parameters", None) or {})
        if theirs.model_type == "granite_swa":
            rope["rope_theta"] = theirs.layer_rope_theta[index]
        if theirs.model_type == "gptj":
            yield BlockKind(window, Rope(1e4, theirs.rotary_dim, interleaved=True))
            continue
        if not rope or getattr(theirs, "alibi", False) or not they_rotate(theirs, index, kind):
            yield BlockKind(window, None)
            continue
        rope = {key: value for key, value in rope.get(kind, rope).items() if key != "type"}
        theta, part = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", 1.0)
        name = rope.pop("rope_type", "default")
        if alpha := rope.pop("alpha", None):  # HunYuan: their rotary embedding reads nothing else
            yield BlockKind(window, Rope(theta * alpha ** (head_dim / (head_dim - 2)), head_dim))
            continue
        rope["interleaved"] = theirs.model_type in INTERLEAVED
        original, beta = rope.get(ORIGINAL, 8192), rope.pop("llama_4_scaling_beta", None)
        for key in ("mscale", "mscale_all_dim"):
            rope.pop(key, None)
        if name in ("yarn", "longrope", "dynamic"):
            utils = pytest.importorskip("transformers.modeling_rope_utils")
            _, rope["attention_factor"] = utils.ROPE_INIT_FUNCTIONS[name](theirs)
            longest = theirs.max_position_embeddings
            if name == "dynamic":
                rope[ORIGINAL] = longest
            else:
                rope.setdefault("factor", longest / original)
        rope |= {key: tuple(rope[key]) for key in ("short_factor", "long_factor") if key in rope}
        warmth = None if beta is None else Temperature(beta, original)
        turned = Rope(theta, int(head_dim * part), name, **rope)
        yield BlockKind(window, turned, temperature=warmth)


ORIGINAL = "original_max_position_embeddings"


def their_limit(theirs: Any) -> int:
    """The longest sequence that transformers' model of this configuration is for."""
    if theirs.model_type == "bloom":
        return int(getattr(theirs, "seq_length", 2048))
    rope = getattr(theirs, "rope_parameters", None) or {}
    dynamic = rope.get("rope_type") == "dynamic"
    limit = theirs.max_seq_len if theirs.model_type == "mpt" else theirs.max_position_embeddings
    return int(limit * rope["factor"]) if dynamic else int(limit)


def their_alibi(theirs: Any, head_dim: int) -> Alibi | None:
    """The slopes that transformers computes, and how Falcon uses them."""
    if theirs.model_type not in ("bloom", "mpt") and not getattr(theirs, "alibi", False):
        return None
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    exact = np.log2(bloom._get_alibi_slopes(theirs.num_attention_heads, "cpu").numpy())
    slopes = tuple(2.0 ** (np.rint(exact * 64) / 64))  # they are powers of a root of 2
    falcon = theirs.model_type == "falcon"
    return Alibi(slopes, head_dim**-0.5 if falcon else 1.0, falcon)


OMITTED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 3.0}}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma2", dict.fromkeys(
        ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "head_dim",
         "rms_norm_eps", "sliding_window", "hidden_activation"), ...)),
    ("gemma3", {"rope_parameters": ..., "rope_theta": 9e5, "rope_local_base_freq": 9e3,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ("gemma3", {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}},
                "rope_theta": 9e5, "rope_local_base_freq": 9e3}),
    ("phi3", {"rope_parameters": ..., "partial_rotary_factor": 0.5}),
    ("phi3", dict.fromkeys(("rope_parameters", "sliding_window", "rms_norm_eps"), ...)),
    ("gpt_neox", {"rope_parameters": ..., "rotary_pct": 0.5}),
    ("gpt_neox", {"rope_parameters": ..., "rotary_emb_base": 77}),
    ("gpt_neox", dict.fromkeys(
        ("rope_parameters", "layer_norm_eps", "hidden_act", "use_parallel_residual",
         "max_position_embeddings"), ...)),
    ("gpt2", dict.fromkeys(
        ("n_inner", "layer_norm_epsilon", "activation_function", "n_positions"), ...)),
    ("opt", dict.fromkeys(
        ("activation_function", "max_position_embeddings", "word_embed_proj_dim",
         "do_layer_norm_before"), ...)),
]  # fmt: skip
CHANGED = [(case, changes) for case, changes, *_ in (*WINDOWS, *MEANS, *OMITTED)]


@pytest.mark.torch
@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_well_known_models_the_same(name: str) -> None:
    assert read_config(PUBLISHED[name]).config == understood_by_transformers(PUBLISHED[name])


def nested(case: str) -> bool:
    """Whether a configuration has parts that are not looked up here: experts, MPT's attention.

    The traces of these fixtures are compared with transformers, in tests/model/test_forward.py.
    """
    family = FAMILIES[config_of(case)["model_type"]]
    return family.model_type == "mpt" or any("experts" in role for role in family.names)


@pytest.mark.torch
@pytest.mark.parametrize("type_key", ["type", "rope_type", None])
@pytest.mark.parametrize("case", [case for case in CASES if not nested(case)])
def test_transformers_reads_both_spellings_the_same(case: str, type_key: str | None) -> None:
    config = config_of(case)
    if type_key is not None:
        config = as_old_files_spell_it(config, type_key)
    if case in ("gemma3", "olmo3") and type_key == "type":
        pytest.skip("transformers 5.24 sets rope_type beside the type, which it then ignores")
    assert read_config(config).config == understood_by_transformers(config)


@pytest.mark.torch
@pytest.mark.parametrize(("case", "changes"), CHANGED)
def test_transformers_understands_omitted_keys_the_same(case: str, changes: dict[str, Any]) -> None:
    config = config_of(case, **changes)
    assert read_config(config).config == understood_by_transformers(config)


@pytest.mark.torch
@pytest.mark.parametrize("high", [4.0, 1.0])  # 1: all waves are stretched or not, none in part
def test_transformers_stretches_llama_3_the_same(high: float) -> None:
    transformers = pytest.importorskip("transformers")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    published = copy.deepcopy(LLAMA_3_2)
    published["rope_scaling"]["high_freq_factor"] = high
    rest = copy.deepcopy({key: value for key, value in published.items() if key != "model_type"})
    theirs, _ = rope_utils.ROPE_INIT_FUNCTIONS["llama3"](transformers.LlamaConfig(**rest))
    rope = read_config(published).config.blocks[0].rope
    assert rope is not None
    np.testing.assert_allclose(rope.inv_freq(), theirs.numpy(), rtol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_transformers_ties_the_same_heads(case: str) -> None:
    transformers = pytest.importorskip("transformers")
    for changes in ({}, {"tie_word_embeddings": ...}):
        config = config_of(case, **changes)
        theirs = transformers.AutoConfig.for_model(**config)
        assert read_config(config).tied == theirs.tie_word_embeddings
