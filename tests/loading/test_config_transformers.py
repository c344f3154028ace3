"""Configurations as transformers' own models understand them: equal logits of equal weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import config_of
from config_tables import (
    LLAMA_4,
    MEANS,
    OMITTED,
    PUBLISHED,
    ROTATING,
    STATES,
    WINDOWS,
    published,
)
from gates import GATES, worst_token
from test_config import CASES, OLD_CASES, as_old_files_spell_it
from transformers_forward import random_model

from refimpl import forward, read_model
from refimpl.loading.config_json import COMPOSITES, read_config, text_entries
from refimpl.loading.families import ALIASES, FAMILIES, REFUSED

pytestmark = pytest.mark.torch
IDS = np.arange(2, 26).reshape(2, 12)  # longer than the windows of the fixtures
# Taken from a fixture; its numbers of the vocabulary, and float32, which xIELU would compute in
SIZES = {
    "hidden_size",
    "intermediate_size",
    "intermediate_size_mlp",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
    "n_embd",
    "n_embed",
    "n_inner",
    "n_layer",
    "n_head",
    "ffn_dim",
    "ffn_hidden_size",
    "word_embed_proj_dim",
    "rotary_dim",
    "partial_rotary_factor",
    "num_layers",
    "num_local_experts",
    "pad_token_id",
    "attention_head_dim",
    "bos_token_id",
    "eos_token_id",
    "torch_dtype",
    "dtype",
    "d_model",
    "n_heads",
    "n_layers",
    "block_dim",
    "block_ff_dim",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "num_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_experts_per_tok",
    "moe_k",
    "moe_topk",
    "n_group",
    "topk_group",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "experts_per_token",
    "mamba_n_heads",
    "mamba_n_groups",
    "mamba_d_head",
    "mamba_d_state",
    "mamba_d_ssm",
    "expert_hidden_dim",
    "top_k_experts",
    "num_experts_per_token",
    "num_expert_group",
    "vocab_size_per_layer_input",
    "hidden_size_per_layer_input",
}
KEYS_OF_SIZES = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"}
KEYS_OF_SIZES |= {"num_attention_heads", "n_embd", "n_layer", "n_head"}
FEW = {"num_hidden_layers": 4}  # blocks of Llama 4: the last has no positions
CHANGED = [
    (case, changes) for case, changes, *_ in (*WINDOWS, *ROTATING, *MEANS, *OMITTED)
]


def check_logits(config: dict[str, Any], folder: Path) -> None:
    """Write a model of transformers with this configuration, and compare what both compute."""
    pytest.importorskip("torch").manual_seed(0)
    made, logits = random_model(config, IDS, folder)
    model, limit = read_model(folder), getattr(made, "max_position_embeddings", None)
    assert (
        worst_token(forward(model, IDS, dtype="f8").logits, logits) < GATES["float64"]
    )
    stretched = "dynamic" in json.dumps(config)
    assert stretched or limit in (None, model.config.max_position_embeddings)


def small(entries: dict[str, Any], **sizes: Any) -> dict[str, Any]:
    """A configuration in the sizes of a fixture of its family."""
    parts = (
        "enable_moe_block",
        "num_kv_shared_layers",
    )  # which the fixtures of a family have or not
    fixtures = (
        x for x in map(config_of, CASES) if x["model_type"] == entries["model_type"]
    )
    has = [bool(entries.get(part)) for part in parts]
    fixture = next(x for x in fixtures if [bool(x.get(part)) for part in parts] == has)
    sizes = {key: fixture[key] for key in SIZES & fixture.keys()} | sizes
    sizes = {key: x for key, x in sizes.items() if entries.get(key, ...) is not None}
    count = sizes.get("num_hidden_layers", 0)
    kinds = entries.get("layer_types") or []
    last = kinds[-count:]
    if fixture.get("num_kv_shared_layers"):  # of which each kind is before
        sizes |= {key: fixture[key] for key in ("num_kv_shared_layers", "layer_types")}
    if {*last} != {*kinds}:  # one of each kind
        last = (sorted({*kinds}, reverse=True) * count)[:count]
    lists = {
        key: last if key == "layer_types" else x[:count]
        for key, x in entries.items()
        if isinstance(x, list) and len(x) == entries.get("num_hidden_layers")
        if key not in SIZES | {*sizes}
    }
    if "hybrid_override_pattern" in entries:
        lists["hybrid_override_pattern"] = "ME*"
    if "linear_attn_config" in entries:
        lists["linear_attn_config"] = STATES
    return {key: x for key, x in entries.items() if key not in SIZES} | sizes | lists


@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED if "reads" in PUBLISHED[name]]
)
def test_published_configurations(name: str, tmp_path: Path) -> None:
    entries = published(name)
    text = dict(text_entries(entries, "config.json") or entries)
    text.pop("quantization_config", None)
    text["model_type"] = (FAMILIES | ALIASES)[text["model_type"]].model_type
    # A quarter of 16 channels, and each fourth block
    config = small(
        text, **({"head_dim": 16} | FEW if "full_attention_interval" in text else {})
    )
    rope = config.get("rope_scaling")
    if rope and "long_factor" in rope:
        model = read_config(config | {"rope_scaling": None}).config.blocks[0].rope
        factors = {
            key: rope[key][: model.rotary_dim // 2] for key in rope if "_factor" in key
        }
        config["rope_scaling"] = rope | factors
    check_logits(config, tmp_path)


@pytest.mark.parametrize("type_key", ["type", "rope_type"])
@pytest.mark.parametrize("case", OLD_CASES)
def test_old_spellings(case: str, type_key: str, tmp_path: Path) -> None:
    if case in ("gemma3", "olmo3") and type_key == "type":
        pytest.skip(
            "transformers 5.24 sets rope_type beside the type, which it then ignores"
        )
    check_logits(as_old_files_spell_it(config_of(case), type_key), tmp_path)


@pytest.mark.parametrize(("case", "changes"), CHANGED)
def test_changed_and_omitted_keys(
    case: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    if case in ("gemma2", "ministral") and changes.get("sliding_window", 0) is None:
        pytest.skip("transformers does not run these without a window")
    check_logits(config_of(case, **changes), tmp_path)


@pytest.mark.parametrize("changes", LLAMA_4)
def test_llama_4(changes: dict[str, Any], tmp_path: Path) -> None:
    entries = published("llama-4-scout") | changes
    config = small({key: x for key, x in entries.items() if x is not ...}, **FEW)
    check_logits(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "case"), [("iquestcoder", "llama"), ("gpt-sw3", "gpt2")]
)
def test_types_that_another_class_computes(
    name: str, case: str, tmp_path: Path
) -> None:
    check_logits(config_of(case, model_type=name), tmp_path)


@pytest.mark.parametrize("name", ALIASES)
def test_what_files_of_such_a_type_omit(name: str) -> None:
    auto = pytest.importorskip("transformers.models.auto.configuration_auto")
    if name not in auto.CONFIG_MAPPING:
        pytest.skip("transformers has no class for it")
    theirs = auto.CONFIG_MAPPING[name]().to_dict() | {"model_type": name}
    needed = {"model_type", *KEYS_OF_SIZES} | {"tie_word_embeddings"}
    few = {key: x for key, x in theirs.items() if key in needed}
    assert read_config(few) == read_config(theirs)


def test_no_decoder_of_transformers_is_unknown() -> None:
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    types = set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert (
        types - FAMILIES.keys() - ALIASES.keys() - REFUSED.keys() - {*COMPOSITES}
        == set()
    )
