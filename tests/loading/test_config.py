"""How `config.json` is read: old and new spellings, and every refusal."""

import re
from collections.abc import Mapping
from dataclasses import replace
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from checkpoints import config_of
from config_tables import MEANS, PUBLISHED, ROTATING, WINDOWS, WRONG, published
from conftest import FIXTURES
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal_of
from strategies import json_like

from refimpl import RefimplError
from refimpl.loading.config_json import ConfigFacts, read_config
from refimpl.loading.config_keys import Keys
from refimpl.loading.families import FAMILIES, REFUSED
from refimpl.model.config import NO_MIXER, Config

CASES = sorted(path.parent.name for path in FIXTURES.glob("*/config.json"))
BY_KIND = ("full_attention", "sliding_attention")
TWO = {
    "expected sliding_attention",
    "sliding_window_pattern",
}  # mistakes that two keys show
# What the fixtures' blocks are can be said in `layer_types` only
NO_OLD_RULE = (
    "ministral",
    "olmo3",
    "exaone_moe",
    "granitemoehybrid",
    "lfm2",
    "lfm2_moe",
    "afmoe",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "qwen3_next",
    "olmo_hybrid",
)
NEWER = (  # than the old spelling
    "mellum",
    "gemma4",
    "gemma4_experts",
    "gemma4_small",
    "gemma4_unified",
    "lfm3",
)
OLD_CASES = [case for case in CASES if case not in NEWER]


def config(case: str, changes: Mapping[str, Any]) -> Config:
    return read_config(config_of(case, **changes)).config


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
        if types is not None:
            old["sliding_window_pattern"] = old.pop("_sliding_window_pattern")
            assert types[: old["sliding_window_pattern"]].index("full_attention") == 5
    scaling = {key: value for key, value in rope.items() if key != "rope_type"}
    family = FAMILIES[old["model_type"]]
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in scaling:
            old[family.spelling(key)] = scaling.pop(key)
    old["rope_scaling"] = scaling | {type_key: rope["rope_type"]} if scaling else None
    if "hidden_activation" in old:
        old["hidden_act"] = old["hidden_activation"]
    derived = {"head_dim": 8, "num_key_value_heads": old.get("num_attention_heads")}
    for key, value in derived.items():
        if old["model_type"] in ("llama", "phi3") and old.get(key) == value:
            del old[key]
    return old


def test_letters_say_what_the_blocks_of_nemotron_are() -> None:
    letters = {
        "layers_block_type": ...,
        "hybrid_override_pattern": "ME*-",
        "num_hidden_layers": 4,
    }
    assert config("nemotron_h", letters) == config("nemotron_h", {})
    both = config_of("nemotron_h", hybrid_override_pattern="M*E-")
    assert "hybrid_override_pattern" in refusal_of(lambda: read_config(both)).problem
    unknown = config_of("nemotron_h", **letters | {"hybrid_override_pattern": "ME*X"})
    assert (
        "layers_block_type: expected 4 entries"
        in refusal_of(lambda: read_config(unknown)).problem
    )
    dense = config("nemotron_h", letters | {"hybrid_override_pattern": "M-*-"})
    assert dense.experts is None


@pytest.mark.parametrize("type_key", ["type", "rope_type"])
@pytest.mark.parametrize("case", OLD_CASES)
def test_old_and_new_spellings_say_the_same(case: str, type_key: str) -> None:
    new = config_of(case)
    old = as_old_files_spell_it(new, type_key)
    assert "rope_parameters" not in old
    assert "layer_types" not in old or old["model_type"] in NO_OLD_RULE
    assert read_config(old) == read_config(new)
    assert new == config_of(case)  # reading changes nothing


def test_two_spellings_of_a_key() -> None:
    full = {"rope_type": "linear", "factor": 4.0}
    beside = {"rope_theta": 3000.0, "rope_local_base_freq": 50.0}
    split = config_of("gemma3", rope_parameters={"full_attention": full}, **beside)
    assert read_config(split) == read_config(config_of("gemma3"))
    spelled = config_of(
        "internlm3", attention_bias=..., mlp_bias=..., qkv_bias=True, bias=True
    )
    assert read_config(spelled) == read_config(config_of("internlm3"))
    old = {"num_layers": 2, "layer_norm_epsilon": 1e-3, "activation_function": "silu"}
    new = dict.fromkeys(("num_hidden_layers", "rms_norm_eps", "hidden_act"), ...)
    assert read_config(config_of("exaone", **old, **new)) == read_config(
        config_of("exaone")
    )
    assert read_config(config_of("exaone", **old)) == read_config(config_of("exaone"))


def test_what_published_models_imply() -> None:
    maverick = read_config(published("llama-4-maverick")).config
    assert [kind.mixture for kind in maverick.blocks] == [False, True] * 24
    assert (maverick.weightless_norms, maverick.intermediate_size) == ((), 16384)
    omitted = (
        "layer_types",
        "rope_scaling",
        "rope_theta",
        "swiglu_limit",
        "rms_norm_eps",
        "head_dim",
        "sliding_window",
        "attention_bias",
        "num_key_value_heads",
    )
    whole = published("gpt-oss")
    short = {key: value for key, value in whole.items() if key not in omitted}
    assert read_config(short) == read_config(whole)
    for case, tied in (("gemma2", True), ("llama", False)):
        assert read_config(config_of(case, tie_word_embeddings=...)).tied == tied


@pytest.mark.parametrize(("case", "changes", "windows"), WINDOWS)
def test_windows(case: str, changes: dict[str, Any], windows: list[int | None]) -> None:
    assert [kind.window for kind in config(case, changes).blocks] == windows


@pytest.mark.parametrize(("case", "changes", "rotates"), ROTATING)
def test_which_blocks_rotate(
    case: str, changes: dict[str, Any], rotates: list[bool]
) -> None:
    assert [kind.rope is not None for kind in config(case, changes).blocks] == rotates


@pytest.mark.parametrize(("case", "changes", "name", "value"), MEANS)
def test_what_keys_mean(
    case: str, changes: dict[str, Any], name: str, value: Any
) -> None:
    found = getattr(config(case, changes), name)
    if name == "blocks":  # but for what mixes their tokens
        found = tuple(replace(kind, mixer=NO_MIXER) for kind in found)
    assert found == value


def test_a_flag_decides_whether_a_role_exists() -> None:
    with_norms = read_config(config_of("hyperclovax")).names
    without = read_config(config_of("hyperclovax", use_post_norm=False)).names
    assert with_norms.keys() - without.keys() == {"attn_post_norm", "mlp_post_norm"}


@pytest.mark.parametrize("around", [{}, {"text_config": {"hidden_size": 8}}])
@pytest.mark.parametrize("model_type", REFUSED)
def test_a_family_out_of_reach_is_refused_by_name(
    model_type: str, around: dict[str, Any]
) -> None:
    entries = {"model_type": model_type, "quantization_config": {"bits": 4}} | around
    error = refusal_of(read_config, entries, "config.json", says=REFUSED[model_type])
    assert model_type in error.problem
    assert not REFUSED.keys() & FAMILIES.keys()
    assert error.remedy.rpartition(" ")[2] in FAMILIES  # where the reader is sent


@pytest.mark.parametrize(("case", "changes", "pattern"), WRONG)
def test_a_mistake_is_refused_in_one_line(
    case: str, changes: dict[str, Any], pattern: str
) -> None:
    problem = refusal_of(read_config, config_of(case, **changes)).problem
    assert re.search(pattern, problem), problem
    assert problem.count("\n  ") <= (2 if pattern in TWO else 1)


@pytest.mark.parametrize("case", ["gemma4", "gemma3", "qwen3_next", "lfm2"])
@pytest.mark.parametrize("more", [-1, 1])
def test_another_number_of_blocks_than_kinds_is_refused(case: str, more: int) -> None:
    entries = config_of(case)
    entries["num_hidden_layers"] += more
    refusal_of(read_config, entries, "config.json", says="layer_types: expected")


def test_everything_wrong_is_listed_at_once() -> None:
    wrong = {
        "vocab_size": -1,
        "rms_norm_eps": "x",
        "hidden_act": "swiglu",
        "attention_bias": 1,
    }
    ropes = {"rope_type": "ntk", "rope_theta": 100.0}
    entries = config_of("llama", **wrong, num_experts=8, rope_parameters=ropes)
    says = "a/config.json does not describe"
    problem = refusal_of(read_config, entries, "a/config.json", says=says).problem
    for key in (*wrong, "num_experts", "ntk"):
        assert key in problem, key
    assert problem.count("\n  ") == 6


@pytest.mark.parametrize("value", [None, False, [], {}, 0])
def test_unknown_keys_with_nothing_in_them_are_no_matter(value: Any) -> None:
    assert read_config(config_of("llama", something_new=value)) == read_config(
        config_of("llama")
    )


def test_a_keyword_of_a_family_is_a_field_or_a_key_that_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, get = set[str](), Keys.get
    monkeypatch.setattr(
        Keys, "get", lambda keys, key, *more: read.add(key) or get(keys, key, *more)
    )
    for case in CASES:
        read_config(config_of(case))
    stated = {
        name
        for family in FAMILIES.values()
        for name, key in family.keys.items()
        if key.read
    }
    elsewhere = {"alpha", "max_window_layers"}  # beside other keys
    assert (
        stated - read == elsewhere
    )  # a misspelt field would be a key that nothing reads


# Whatever a file says, the answer is a configuration or a refusal

NUMBERS = [0, -1, 1, 2, 3, 4, 8, 32, 10**9, 10**30, 10**400, -(10**400)]
NUMBERS += [0.0, 0.5, 1.5, 1e308, 5e-324, nan, inf, -inf]
WORDS = ["", "32", "silu", "gelu", "linear", "llama3", "default", "type", "\ud800"]
LISTS = [["full_attention"] * 4, ["sliding_attention"] * 3, [[]]]
EDGES = st.sampled_from(NUMBERS) | st.sampled_from(WORDS) | st.sampled_from(LISTS)
VALUES = json_like(EDGES, st.text(max_size=5))
KEYS = sorted(
    {key for case in CASES for key in config_of(case)}
    | {key for family in FAMILIES.values() for key in family.keys}
    | {key for name in PUBLISHED for key in published(name)}
)
INNER = ["rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"]
INNER += ["original_max_position_embeddings", "type", "partial_rotary_factor", *BY_KIND]


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A fixture's configuration with keys deleted, added and replaced, also inside its ropes."""
    config = config_of(draw(st.sampled_from(CASES)))
    for _ in range(draw(st.integers(1, 4))):
        places = [
            config,
            *(value for value in config.values() if isinstance(value, dict)),
        ]
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
    assert isinstance(hub, ConfigFacts)
    for kind in set(hub.config.blocks):
        if kind.rope is not None:
            for inv_freq in (kind.rope.inv_freq(), kind.rope.inv_freq(10**6)):
                assert np.isfinite(inv_freq).all()
                assert inv_freq.shape == (kind.rope.rotary_dim // 2,)
