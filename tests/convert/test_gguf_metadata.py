"""What each key of a GGUF file's metadata means: as llama.cpp reads it, or refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import gguf_file
from refusals import refusal_of

from refimpl import Model, read_model
from refimpl.convert.conversion import convert
from refimpl.convert.gguf_config import ROPE_FACTORS
from refimpl.model.config import Config
from refimpl.model.position_tables import Rope

Change = Callable[[gguf.GGUFWriter], object]
LINEAR = gguf.RopeScalingType.LINEAR


def converted(path: Path) -> Model:
    convert(path, path.parent / "out")
    return read_model(path.parent / "out")


def numbers(**values: float) -> Change:
    """Add numbers, in float32; `__` is a dot in a key."""
    return lambda writer: [
        writer.add_float32(f"{writer.arch}.{key.replace('__', '.')}", value)
        for key, value in values.items()
    ]


def without(*keys: str) -> Change:
    return lambda writer: [
        writer.kv_data[0].pop(f"{writer.arch}.{key}") for key in keys
    ]


def both(*changes: Change) -> Change:
    return lambda writer: [change(writer) for change in changes]


def ropes(config: Config) -> set[Rope | None]:
    return {kind.rope for kind in config.blocks}


SCALED = Rope(5e5, 8, "llama3", 32.0)
FACTORS = (Rope(5e5, 8).inv_freq() / SCALED.inv_freq()).astype("f4")
PLAIN, STRETCHED = {Rope(3000.0, 8)}, {Rope(3000.0, 8, "linear", 2.0)}
MEANS: dict[str, tuple[str, Change, Callable[[Config], Any], Any]] = {
    "a factor without a type": (
        "llama",
        numbers(rope__scaling__factor=2),
        ropes,
        STRETCHED,
    ),
    "a factor of type none": (
        "llama",
        both(
            numbers(rope__scaling__factor=2),
            lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.NONE),
        ),
        ropes,
        PLAIN,
    ),
    "a type without a factor": (
        "llama",
        lambda w: w.add_rope_scaling_type(LINEAR),
        ropes,
        PLAIN,
    ),
    "a factor of 0": ("llama", numbers(rope__scaling__factor=0), ropes, PLAIN),
    "no base": ("smollm3", without("rope.freq_base"), ropes, {None, Rope(1e4, 8)}),
    "no base, of Gemma 3": (
        "gemma3",
        without("rope.freq_base"),
        ropes,
        {Rope(1e4, 10, "linear", 4.0), Rope(1e4, 10)},
    ),
    "a base for windows": (
        "gemma3",
        numbers(rope__freq_base_swa=5000),
        ropes,
        {Rope(3000.0, 10, "linear", 4.0), Rope(5000.0, 10)},
    ),
    "the factors of Llama 3": (
        "llama",
        both(
            without("rope.freq_base"),
            lambda w: w.add_rope_freq_base(5e5),
            lambda w: w.add_tensor(ROPE_FACTORS, FACTORS),
        ),
        ropes,
        {SCALED},
    ),
    "no window": (
        "phi3",
        both(without("attention.sliding_window"), lambda w: w.add_sliding_window(0)),
        lambda c: {kind.window for kind in c.blocks},
        {None},
    ),
    "a magnitude of 1": (
        "phi3",
        numbers(rope__scaling__attn_factor=1),
        ropes,
        {Rope(3000.0, 8)},
    ),
    "a soft cap of Gemma 3": (
        "gemma3",
        numbers(attn_logit_softcapping=2.5),
        lambda c: c.attn_soft_cap,
        None,
    ),
    "the epsilon of other norms": (
        "llama",
        numbers(attention__layer_norm_epsilon=0.5),
        lambda c: c.norm_eps,
        1e-3,
    ),
    "no experts": (
        "llama",
        both(lambda w: w.add_expert_count(0), lambda w: w.add_expert_used_count(0)),
        lambda c: c.experts,
        None,
    ),
}


@pytest.mark.parametrize("name", MEANS)
def test_metadata_means_what_llama_cpp_computes(name: str, tmp_path: Path) -> None:
    recipe, change, fact, expected = MEANS[name]
    assert (
        fact(converted(gguf_file(tmp_path, recipe, change=change)).config) == expected
    )


REFUSED: dict[str, tuple[str, Change, str]] = {
    "factors beside a factor": (
        "llama",
        both(
            numbers(rope__scaling__factor=2),
            lambda w: w.add_tensor(ROPE_FACTORS, FACTORS),
        ),
        "rope_freqs.weight: not the factors of Llama 3's scaling alone",
    ),
    "factors for fewer channels": (
        "llama",
        lambda w: w.add_tensor(ROPE_FACTORS, FACTORS[:2]),
        "rope_freqs.weight: not",
    ),
    "infinite factors": (
        "llama",
        lambda w: w.add_tensor(ROPE_FACTORS, np.full(4, np.inf, np.float32)),
        "rope_freqs.weight: not",
    ),
    "Granite without rotation": (
        "granite",
        lambda w: w.add_rope_scaling_finetuned(False),
        "finetuned: not understood",
    ),
    "Granite without a scale": (
        "granite",
        without("attention.scale"),
        "attention.scale: missing",
    ),
    "no epsilon": (
        "llama",
        without("attention.layer_norm_rms_epsilon"),
        "rms_epsilon: missing",
    ),
    "no context": ("llama", without("context_length"), "context_length: missing"),
    "no number of experts in use": (
        "qwen3moe",
        without("expert_used_count"),
        "expert_used_count: missing",
    ),
    "Gemma 3 without a window": (
        "gemma3",
        without("attention.sliding_window"),
        "attention.sliding_window: missing",
    ),
    "another magnitude": (
        "phi3",
        numbers(rope__scaling__attn_factor=1.5),
        "attn_factor: not understood",
    ),
    "a key nobody knows": (
        "llama",
        lambda w: w.add_uint32("llama.attention.magic", 1),
        "magic: not under",
    ),
    "experts": (
        "llama",
        lambda w: (w.add_expert_count(8), w.add_expert_used_count(2)),
        "experts.0.w1.weight: missing",
    ),
    "a name without a dot": (
        "llama",
        lambda w: (
            w.add_expert_count(1),
            w.add_expert_used_count(1),
            w.add_tensor("odd", np.zeros((2, 2, 2), np.float32)),
        ),
        "no role claims it",
    ),
    "longrope": (
        "llama",
        lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE),
        "got longrope",
    ),
    "yarn": (
        "qwen2",
        lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
        "got yarn",
    ),
    "factors of longrope": (
        "phi3",
        lambda w: w.add_tensor("rope_factors_long.weight", FACTORS),
        "no role claims it",
    ),
    "other heads": (
        "llama",
        lambda w: w.add_uint32("llama.attention.value_length", 4),
        "length: differs",
    ),
    "partial rotation": (
        "llama",
        lambda w: w.add_rope_dimension_count(4),
        "expected 8, got 4",
    ),
    "not causal": (
        "llama",
        lambda w: w.add_causal_attention(False),
        "attention.causal: not understood",
    ),
    "other factors": (
        "llama",
        lambda w: w.add_tensor("rope_freqs.weight", np.arange(1, 5, dtype=np.float32)),
        "not the factors of Llama 3",
    ),
    "a list of heads": (
        "llama",
        lambda w: w.add_head_count([4, 4, 2, 4]),
        "got [4, 4, 2, 4]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_metadata_without_a_certain_meaning_is_refused(
    name: str, tmp_path: Path
) -> None:
    recipe, change, says = REFUSED[name]
    refusal_of(converted, gguf_file(tmp_path, recipe, change=change), says=says)


@pytest.mark.parametrize("name", ["llama", "granitemoe"])
def test_a_value_of_another_type_is_refused(name: str, tmp_path: Path) -> None:
    kinds = gguf.GGUFValueType
    odd = {
        kinds.STRING: "x",
        kinds.ARRAY: ["x"],
        kinds.BOOL: True,
        kinds.FLOAT32: float("nan"),
    }
    path = gguf_file(tmp_path, name, tokenizer=True)
    prefix = (
        f"{name}.",
        "tokenizer.ggml.tok",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.bos",
    )
    keys = [x for x in gguf.GGUFReader(path).fields if x.startswith(prefix)]
    assert len(keys) > 10
    kind_of = {key: gguf.GGUFReader(path).fields[key].types[0] for key in keys}
    for key, right in kind_of.items():
        for kind in odd.keys() - {right}:

            def change(
                writer: gguf.GGUFWriter, key: str = key, kind: gguf.GGUFValueType = kind
            ) -> None:
                writer.kv_data[0].pop(key)
                writer.add_key_value(key, odd[kind], kind)

            refusal_of(
                converted, gguf_file(tmp_path, name, tokenizer=True, change=change)
            )
