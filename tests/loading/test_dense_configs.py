"""Configurations of further dense families: as published, spelled in two ways, and wrong."""

import re
from typing import Any

import pytest
from checkpoints import config_of
from refusals import refusal_of
from test_config import understood_by_transformers

from refimpl.loading.config_json import read_config
from refimpl.model.config import BlockKind, Rope

GEMMA = {
    "attention_bias": False, "head_dim": 256, "hidden_act": "gelu", "hidden_activation": None,
    "hidden_size": 2048, "intermediate_size": 16384, "max_position_embeddings": 8192,
    "model_type": "gemma", "num_attention_heads": 8, "num_hidden_layers": 18,
    "num_key_value_heads": 1, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0,
    "vocab_size": 256000,
}  # fmt: skip
SMOLLM_3 = {
    "attention_bias": False, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36, "max_position_embeddings": 65536,
    "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3",
    "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16,
    "num_hidden_layers": 36, "num_key_value_heads": 4, "pretraining_tp": 2, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
    "use_sliding_window": False, "vocab_size": 128256,
}  # fmt: skip
GRANITE = {
    "attention_bias": False, "attention_multiplier": 0.015625, "embedding_multiplier": 12.0,
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "logits_scaling": 8.0,
    "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "granite",
    "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
    "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 5000000.0, "tie_word_embeddings": True, "vocab_size": 49155,
}  # fmt: skip
OLMO_1 = {
    "attention_bias": False, "clip_qkv": None, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 8192, "max_position_embeddings": 2048, "model_type": "olmo",
    "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16,
    "pretraining_tp": 1, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "vocab_size": 50304,
}  # fmt: skip
OLMO_2 = {
    "attention_bias": False, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
    "max_position_embeddings": 4096, "model_type": "olmo2", "num_attention_heads": 16,
    "num_hidden_layers": 16, "num_key_value_heads": 16, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 500000, "tie_word_embeddings": False, "vocab_size": 100352,
}  # fmt: skip
STARCODER_2 = {
    "embedding_dropout": 0.1, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3072,
    "intermediate_size": 12288, "max_position_embeddings": 16384, "mlp_type": "default",
    "model_type": "starcoder2", "norm_epsilon": 1e-05, "norm_type": "layer_norm",
    "num_attention_heads": 24, "num_hidden_layers": 30, "num_key_value_heads": 2,
    "residual_dropout": 0.1, "rope_theta": 999999.4420358813, "sliding_window": 4096,
    "use_bias": True, "vocab_size": 49152,
}  # fmt: skip
MINITRON = {
    "attention_bias": False, "head_dim": 128, "hidden_act": "relu2", "hidden_size": 3072,
    "intermediate_size": 9216, "kv_channels": 128, "max_position_embeddings": 4096,
    "mlp_bias": False, "model_type": "nemotron", "norm_eps": 1e-05, "num_attention_heads": 24,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "partial_rotary_factor": 0.5,
    "rope_theta": 10000, "tie_word_embeddings": False, "vocab_size": 256000,
}  # fmt: skip
EXAONE_3_5 = {
    "activation_function": "silu", "embed_dropout": 0.0, "head_dim": 80, "hidden_size": 2560,
    "intermediate_size": 7168, "layer_norm_epsilon": 1e-05, "max_position_embeddings": 32768,
    "model_type": "exaone", "num_attention_heads": 32, "num_key_value_heads": 8, "num_layers": 30,
    "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 1000000, "tie_word_embeddings": True, "vocab_size": 102400,
}  # fmt: skip
EXAONE_4 = {
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 27392,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16,
    "max_position_embeddings": 131072, "model_type": "exaone4", "num_attention_heads": 40,
    "num_hidden_layers": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 1000000, "sliding_window": 4096, "sliding_window_pattern": "LLLG",
    "tie_word_embeddings": False, "vocab_size": 102400,
}  # fmt: skip
HUNYUAN = {
    "add_classification_head": False, "attention_bias": False, "attention_head_dim": 128,
    "cla_share_factor": 2, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "max_position_embeddings": 262144, "mlp_bias": False,
    "model_type": "hunyuan_v1_dense", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "type": "dynamic"},
    "rope_theta": 10000.0, "tie_word_embeddings": True, "use_cla": False, "use_qk_norm": True,
    "vocab_size": 128167,
}  # fmt: skip
APERTUS = {
    "attention_bias": False, "hidden_act": "xielu", "hidden_dropout": 0.0, "hidden_size": 4096,
    "intermediate_size": 21504, "max_position_embeddings": 65536, "mlp_bias": False,
    "model_type": "apertus", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "post_norm": False, "qk_norm": True, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3",
                     "type": "llama3"},
    "rope_theta": 12000000, "tie_word_embeddings": False, "vocab_size": 131072,
}  # fmt: skip
LONG = Rope(1e6, 128, "llama3", factor=16.0, original_max_position_embeddings=8192)

# The published configuration, facts that follow from it, and the kinds of its first four blocks.
WELL_KNOWN: dict[str, tuple[dict[str, Any], dict[str, Any], list[BlockKind]]] = {
    "Gemma": (GEMMA, {"activation": "gelu_tanh", "embed_scale": 2048**0.5, "head_dim": 256},
              [BlockKind(None, Rope(1e4, 256))] * 4),
    "SmolLM3": (SMOLLM_3, {"head_dim": 128, "num_blocks": 36},
                [BlockKind(None, Rope(5e6, 128))] * 3 + [BlockKind(None, None)]),
    "Granite 3.1": (GRANITE, {"embed_scale": 12, "residual_scale": 0.22, "logit_scale": 1 / 8,
                              "attention_scale": 1 / 64}, [BlockKind(None, Rope(5e6, 64))] * 4),
    "OLMo": (OLMO_1, {"norm": "layer", "norm_eps": 1e-5, "qkv_limit": None,
                      "weightless_norms": ("attn_norm", "mlp_norm", "final_norm")},
             [BlockKind(None, Rope(1e4, 128))] * 4),
    "OLMo 7B": (OLMO_1 | {"clip_qkv": 8.0}, {"qkv_limit": 8},
                [BlockKind(None, Rope(1e4, 128))] * 4),
    "OLMo 2": (OLMO_2, {"norm": "rms", "weightless_norms": ()},
               [BlockKind(None, Rope(5e5, 128))] * 4),
    "StarCoder2": (STARCODER_2, {"norm": "layer", "activation": "gelu_tanh", "gated": False},
                   [BlockKind(4096, Rope(999999.4420358813, 128))] * 4),
    "Minitron": (MINITRON, {"norm": "layer", "activation": "relu2", "gated": False},
                 [BlockKind(None, Rope(1e4, 64))] * 4),
    "EXAONE 3.5": (EXAONE_3_5, {"num_blocks": 30, "norm_eps": 1e-5, "activation": "silu"},
                   [BlockKind(None, Rope(1e6, 80, "llama3", factor=8.0))] * 4),
    "EXAONE 4": (EXAONE_4, {"head_dim": 128, "num_blocks": 64},
                 [BlockKind(4096, LONG)] * 3 + [BlockKind(None, None)]),
    "HunYuan": (HUNYUAN, {"head_dim": 128},
                [BlockKind(None, Rope(1e4 * 1000 ** (128 / 126), 128))] * 4),
    "Apertus": (APERTUS, {"activation": "xielu", "gated": False},
                [BlockKind(None, Rope(12e6, 128, "llama3", factor=8.0))] * 4),
}  # fmt: skip


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_well_known_configurations_are_read(name: str) -> None:
    published, facts, kinds = WELL_KNOWN[name]
    config = read_config(published).config
    assert {key: getattr(config, key) for key in facts} == facts
    assert config.blocks[:4] == tuple(kinds)


WINDOWS: list[tuple[str, dict[str, Any], list[int | None]]] = [
    ("ministral", {"layer_types": ...}, [5, 5]),
    ("ministral", {"layer_types": ..., "sliding_window": None}, [None, None]),
    ("starcoder2", {"sliding_window": ...}, [None, None]),
    ("smollm3", {"layer_types": ...}, [None, 5, None]),
    ("smollm3", {"layer_types": ..., "use_sliding_window": False}, [None] * 3),
    ("olmo3", {"layer_types": ..., "num_hidden_layers": 5}, [5, 5, 5, None, 5]),
    ("exaone4", {"layer_types": ..., "sliding_window_pattern": ..., "num_hidden_layers": 5},
     [5, 5, 5, None, 5]),
]  # fmt: skip


@pytest.mark.parametrize(("case", "changes", "windows"), WINDOWS)
def test_windows(case: str, changes: dict[str, Any], windows: list[int | None]) -> None:
    blocks = read_config(config_of(case, **changes)).config.blocks
    assert [kind.window for kind in blocks] == windows


ROTATING: list[tuple[str, dict[str, Any], list[bool]]] = [
    ("smollm3", {}, [True, False, True]),
    ("smollm3", {"no_rope_layers": [0, 1, 1, 0]}, [False, True, True]),
    ("smollm3", {"no_rope_layers": ...}, [True, True, True]),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}, [True, False, True]),
    ("exaone4", {}, [True, False]),
    ("exaone4", {"layer_types": ["full_attention"] * 2}, [False, False]),
    ("exaone4", {"layer_types": ["full_attention"] * 2, "sliding_window": None}, [True, True]),
]


@pytest.mark.parametrize(("case", "changes", "rotates"), ROTATING)
def test_which_blocks_rotate(case: str, changes: dict[str, Any], rotates: list[bool]) -> None:
    blocks = read_config(config_of(case, **changes)).config.blocks
    assert [kind.rope is not None for kind in blocks] == rotates


def test_two_spellings_of_a_key() -> None:
    spelled = config_of("internlm3", attention_bias=..., mlp_bias=..., qkv_bias=True, bias=True)
    assert read_config(spelled) == read_config(config_of("internlm3"))
    old = {"num_layers": 2, "layer_norm_epsilon": 1e-3, "activation_function": "silu"}
    new = dict.fromkeys(("num_hidden_layers", "rms_norm_eps", "hidden_act"), ...)
    assert read_config(config_of("exaone", **old, **new)) == read_config(config_of("exaone"))
    assert read_config(config_of("exaone", **old)) == read_config(config_of("exaone"))


MEANS: list[tuple[str, dict[str, Any], str, Any]] = [
    ("gemma", {"hidden_act": "gelu"}, "activation", "gelu_tanh"),
    ("granite", {"attention_multiplier": ...}, "attention_scale", 1.0),
    ("granite", {"logits_scaling": ...}, "logit_scale", 1.0),
    ("granite", {"logits_scaling": 4}, "logit_scale", 0.25),
    ("hyperclovax", {"attention_multiplier": ...}, "attention_scale", 12**-0.5),
    ("hyperclovax", {"logits_scaling": 4}, "logit_scale", 4),
    ("olmo", {"clip_qkv": ...}, "qkv_limit", None),
    ("apertus", {"rope_parameters": ...}, "blocks",
     (BlockKind(None, Rope(12e6, 8, "llama3", factor=8.0)),) * 2),
    ("nemotron", {"rope_parameters": ...}, "blocks", (BlockKind(None, Rope(1e4, 6)),) * 2),
]  # fmt: skip


@pytest.mark.parametrize(("case", "changes", "name", "value"), MEANS)
def test_what_keys_mean(case: str, changes: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(read_config(config_of(case, **changes)).config, name) == value


def test_a_flag_decides_whether_a_role_exists() -> None:
    with_norms = read_config(config_of("hyperclovax")).names
    without = read_config(config_of("hyperclovax", use_post_norm=False)).names
    assert with_norms.keys() - without.keys() == {"attn_post_norm", "mlp_post_norm"}


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "two numbers of blocks": ("exaone", {"num_layers": 3}, "num_layers: 3 contradicts 2"),
    "two biases": ("internlm3", {"bias": False}, "bias: false contradicts true"),
    "no list of blocks": ("smollm3", {"no_rope_layers": 3}, "no_rope_layers: expected a list"),
    "a list of words": ("smollm3", {"no_rope_layers": ["1"] * 3}, "a list of 0 and 1"),
    "too few blocks": ("smollm3", {"no_rope_layers": [1, 0]}, "expected 3 entries, got 2"),
    "no interval": ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0},
                    "no_rope_layer_interval: expected a positive"),
    "windows that are off": (
        "smollm3", {"use_sliding_window": False}, "1 blocks slide, but it is null or not in use"),
    "letters for blocks": ("exaone4", {"layer_types": ..., "sliding_window_pattern": "LG"},
                           'sliding_window_pattern: expected a positive integer, got "LG"'),
    "OLMo 3 with another pattern": ("olmo3", {"sliding_window_pattern": 2}, "only 4"),
    "a multiplier of 0": ("granite", {"residual_multiplier": 0}, "residual_multiplier: .*got 0"),
    "a multiplier in quotes": ("granite", {"logits_scaling": "8"}, 'logits_scaling: .*got "8"'),
    "a limit below 0": ("olmo", {"clip_qkv": -1.0}, "clip_qkv: expected a positive number"),
    "post-norms in quotes": ("hyperclovax", {"use_post_norm": "no"}, "use_post_norm: .*true or"),
    "Apertus with another activation": ("apertus", {"hidden_act": "silu"}, 'only "xielu"'),
    "Apertus without norms of q and k": ("apertus", {"qk_norm": False}, "qk_norm: only true"),
    "xIELU elsewhere": ("arcee", {"hidden_act": "xielu"}, 'hidden_act: "xielu" is not one of'),
    "eps of OLMo": ("olmo", {"norm_eps": 1e-6}, "norm_eps: only 1e-05"),
    "a stretched base of another type": (
        "hunyuan_v1_dense", {"rope_parameters": {"rope_type": "linear", "alpha": 2.0}},
        'alpha needs type dynamic and head_dim above 2, got "linear"'),
    "a base stretched to nothing": (
        "hunyuan_v1_dense", {"rope_parameters": {"rope_type": "dynamic", "alpha": -1}},
        "alpha: expected a positive number"),
    "HunYuan with shared keys": ("hunyuan_v1_dense", {"use_cla": True}, "use_cla: only false"),
    "a stretched base elsewhere": (
        "llama", {"rope_parameters": {"rope_type": "linear", "alpha": 2.0, "factor": 2.0}},
        "not understood: .*alpha"),
    "a gated StarCoder2": ("starcoder2", {"mlp_type": "gated"}, 'mlp_type: only "default"'),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_refused_in_one_line(name: str) -> None:
    case, changes, pattern = WRONG[name]
    problem = refusal_of(read_config, config_of(case, **changes)).problem
    assert re.search(pattern, problem), problem
    assert problem.count("\n  ") <= 2


CHANGED = [(case, changes) for case, changes, *_ in (*WINDOWS, *ROTATING, *MEANS)]


@pytest.mark.torch
@pytest.mark.parametrize("name", WELL_KNOWN)
def test_transformers_reads_well_known_models_the_same(name: str) -> None:
    published = WELL_KNOWN[name][0]
    assert read_config(published).config == understood_by_transformers(published)


@pytest.mark.torch
@pytest.mark.parametrize(("case", "changes"), CHANGED)
def test_transformers_understands_the_keys_the_same(case: str, changes: dict[str, Any]) -> None:
    config = config_of(case, **changes)
    assert read_config(config).config == understood_by_transformers(config)
