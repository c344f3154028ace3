"""Configurations as transformers' own classes understand them."""

import copy
from collections.abc import Iterator, Mapping
from math import sqrt
from typing import Any

import numpy as np
import pytest
from checkpoints import config_of
from config_tables import LLAMA_4, MEANS, OMITTED, ROTATING, WELL_KNOWN, WINDOWS, published
from test_config import BY_KIND, CASES, as_old_files_spell_it

from refimpl.loading.config_json import read_config
from refimpl.loading.families import FAMILIES
from refimpl.model.config import Alibi, BlockKind, Config, Experts, Rope, Temperature

pytestmark = pytest.mark.torch


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
ORIGINAL = "original_max_position_embeddings"


def is_parallel(theirs: Any) -> bool:
    if theirs.model_type == "falcon":
        return bool(theirs.new_decoder_architecture or theirs.parallel_attn)
    return theirs.model_type in PARALLEL or getattr(theirs, "use_parallel_residual", False)


def their_logit_scale(theirs: Any) -> float:
    scale: float = getattr(theirs, "logit_scale", getattr(theirs, "logits_scaling", 1.0))
    return 1 / scale if theirs.model_type.startswith("granite") else scale


def they_rotate(theirs: Any, index: int, kind: str) -> bool:
    if theirs.model_type == "smollm3":
        return bool(theirs.no_rope_layers[index])
    if theirs.model_type == "granite_swa":
        return bool(theirs.layer_rope_theta[index])
    if theirs.model_type == "exaone4":
        return theirs.sliding_window is None or kind == "sliding_attention"
    return theirs.model_type != "cohere2" or kind == "sliding_attention"


def their_kv_heads(theirs: Any) -> int:
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


# Not looked up here: experts. Their traces are compared in tests/model/test_forward.py.
LOOKED_UP = [name for name in WELL_KNOWN if name not in ("gpt-oss", "llama-4-scout")]
CHANGED = [(case, changes) for case, changes, *_ in (*WINDOWS, *ROTATING, *MEANS, *OMITTED)]


@pytest.mark.parametrize("name", LOOKED_UP)
def test_well_known_models(name: str) -> None:
    assert read_config(published(name)).config == understood_by_transformers(published(name))


def nested(case: str) -> bool:
    """Whether a configuration has parts that are not looked up here: experts, MPT's attention."""
    family = FAMILIES[config_of(case)["model_type"]]
    return family.model_type == "mpt" or any("experts" in role for role in family.names)


@pytest.mark.parametrize("type_key", ["type", "rope_type", None])
@pytest.mark.parametrize("case", [case for case in CASES if not nested(case)])
def test_both_spellings(case: str, type_key: str | None) -> None:
    config = config_of(case)
    if type_key is not None:
        config = as_old_files_spell_it(config, type_key)
    if case in ("gemma3", "olmo3") and type_key == "type":
        pytest.skip("transformers 5.24 sets rope_type beside the type, which it then ignores")
    assert read_config(config).config == understood_by_transformers(config)


@pytest.mark.parametrize(("case", "changes"), CHANGED)
def test_changed_and_omitted_keys(case: str, changes: dict[str, Any]) -> None:
    config = config_of(case, **changes)
    assert read_config(config).config == understood_by_transformers(config)


@pytest.mark.parametrize("high", [4.0, 1.0])  # 1: all waves are stretched or not, none in part
def test_the_scaling_of_llama_3(high: float) -> None:
    transformers = pytest.importorskip("transformers")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    entries = copy.deepcopy(published("llama-3.2"))
    entries["rope_scaling"]["high_freq_factor"] = high
    rest = copy.deepcopy({key: value for key, value in entries.items() if key != "model_type"})
    theirs, _ = rope_utils.ROPE_INIT_FUNCTIONS["llama3"](transformers.LlamaConfig(**rest))
    rope = read_config(entries).config.blocks[0].rope
    assert rope is not None
    np.testing.assert_allclose(rope.inv_freq(), theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_tied_heads(case: str) -> None:
    transformers = pytest.importorskip("transformers")
    for changes in ({}, {"tie_word_embeddings": ...}):
        config = config_of(case, **changes)
        theirs = transformers.AutoConfig.for_model(**config)
        assert read_config(config).tied == theirs.tie_word_embeddings


@pytest.mark.parametrize("changes", LLAMA_4)
def test_llama_4(changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    entries = {k: v for k, v in (published("llama-4-scout") | changes).items() if v is not ...}
    theirs = transformers.Llama4TextConfig(
        **{k: v for k, v in entries.items() if k != "model_type"}
    )
    config = read_config(entries).config
    experts, chunk = config.experts, theirs.attention_chunk_size
    assert experts is not None
    assert experts == Experts(
        theirs.num_local_experts, theirs.num_experts_per_tok, theirs.intermediate_size,
        theirs.intermediate_size, "sigmoid", normalised=False, of_inputs=True,
    )  # fmt: skip
    assert config.intermediate_size == theirs.intermediate_size_mlp
    assert (config.head_dim, config.num_key_value_heads, config.norm_eps) == (
        theirs.head_dim, theirs.num_key_value_heads, theirs.rms_norm_eps,
    )  # fmt: skip
    assert config.max_position_embeddings == theirs.max_position_embeddings
    assert bool(config.weightless_norms) == theirs.use_qk_norm
    for i, kind in enumerate(config.blocks):
        rotates, name = bool(theirs.no_rope_layers[i]), theirs.layer_types[i]
        assert (kind.rope is not None) == rotates
        assert kind.rope is None or kind.rope.theta == theirs.rope_parameters["rope_theta"]
        assert kind.chunked == (name == "chunked_attention")
        assert kind.window == (chunk if kind.chunked else None)
        assert kind.mixture == (i in theirs.moe_layers)
        warmth = Temperature(theirs.attn_scale, theirs.floor_scale, offset=1)
        tuned = theirs.attn_temperature_tuning and not rotates
        assert kind.temperature == (warmth if tuned else None)
