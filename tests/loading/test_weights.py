"""How weights are read: values that are not finite, any dtype and address, little memory."""

import json
import shutil
import struct
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from checkpoints import (
    altered,
    arrays_of,
    config_of,
    needs_proc,
    read_all,
    resident,
    same_weights,
    sparse,
    write,
    write_raw,
)
from conftest import FIXTURES
from refusals import refusal_of
from tables import cases

from refimpl import Model, forward, read_model
from refimpl.model import weight
from refimpl.model.ops import bits_of
from refimpl.model.weight import STORED_DTYPES, widened

LAYER = "model.layers.0."


def same_logits(model: Model, other: Model) -> None:
    """Products in another layout are rounded otherwise."""
    logits = [
        forward(m, [[1, 5, 7, 2]], dtype="float64").logits for m in (model, other)
    ]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-11)


BAD: dict[str, tuple[str, str, str]] = dict(cases("loading", "not_finite"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", BAD)
def test_nan_and_inf_are_found_and_counted(
    name: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight, "CHUNK", 100)  # so that the count is a sum
    case, tensor, place = BAD[name]
    damaged = arrays_of(case)[tensor].copy()
    damaged.reshape(-1)[[3, -1]] = value
    if "attn" in tensor:  # within one of the fused roles
        damaged[:, -2:] = 0
        damaged.reshape(-1)[[3, 4]] = value
    model = read_model(
        altered(tmp_path / "m", case, lambda a: a.update({tensor: damaged}))
    )
    problem = f"{tensor} holds 2 NaN or Inf"
    for dtype in ("float32", "float64"):
        refusal_of(read_all, model, dtype, says=problem)
        if place == "head":
            refusal_of(model.head, dtype, says=problem)
    if place == "block":
        model.check_finite()  # which does not check the blocks
    else:
        refusal_of(model.check_finite, says="holds 2 NaN or Inf")


def test_the_rows_of_a_head_that_are_read_are_checked(tmp_path: Path) -> None:
    head = arrays_of("llama")["lm_head.weight"].copy()
    head[100, 5] = np.inf
    path = altered(
        tmp_path / "m", "llama", lambda a: a.update({"lm_head.weight": head})
    )
    model = read_model(path)
    assert model.head("float32", slice(0, 100))["lm_head.weight"].shape == (100, 32)
    refusal_of(
        model.head,
        "float32",
        slice(50, 150),
        says="holds 1 NaN or Inf among 8448 weights",
    )


@pytest.mark.parametrize(
    ("tensor", "value"),
    [(f"{LAYER}mlp.up_proj.weight", 1e39), ("lm_head.weight", -1e300)],
)
def test_doubles_beyond_the_range_of_floats(
    tensor: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight, "CHUNK", 100)  # so that the count is a sum
    wide = arrays_of("llama")[tensor].astype(np.float64)
    wide[[1, -1], 1] = value
    model = read_model(
        altered(tmp_path / "m", "llama", lambda a: a.update({tensor: wide}))
    )
    problem = f"{tensor} holds 2 weights of {wide.size} that float32 cannot hold"
    refusal_of(read_all, model, "float32", says=problem, remedy="--dtype float64")
    read_all(model, "float64")
    model.check_finite()


def test_the_offset_of_a_norm_is_added_on_reading() -> None:
    stored = arrays_of("gemma2")[f"{LAYER}input_layernorm.weight"].astype(np.float64)
    read = read_model(FIXTURES / "gemma2").block(0, "float64")["attn_norm.weight"]
    np.testing.assert_array_equal(read, stored + 1)


@pytest.mark.parametrize(
    "dtypes", [["F64"], ["F32"], ["F16"], ["BF16"], list(STORED_DTYPES)]
)
@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox", "gemma2", "phi3"])
def test_the_same_values_in_any_dtypes(
    case: str, dtypes: list[str], tmp_path: Path
) -> None:
    # bfloat16 and float16 both hold these values: 8 bits, and not too small
    values = {
        name: (np.round(array.astype(np.float64) * 32) / 32).clip(-3, 3)
        for name, array in arrays_of(case).items()
    }
    expected = read_model(write(tmp_path / "m", values, config_of(case)))
    stored = {
        name: array.astype(STORED_DTYPES[dtype])
        for (name, array), dtype in zip(values.items(), cycle(dtypes), strict=False)
    }
    model = read_model(write(tmp_path / "n", stored, config_of(case)))
    assert {w.stored.dtype for w in model.weights.values()} == {*dtypes}
    same_weights(model, expected)
    for computed in ("float32", "float64"):
        block = model.block(1, computed)
        assert {array.dtype.name for array in block.values()} == {computed}
        assert {array.flags.aligned for array in block.values()} == {True}
        assert {array.dtype.name for array in model.head(computed).values()} == {
            computed
        }
    same_logits(model, expected)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # a NaN that signals
@pytest.mark.parametrize("finite", [True, False])
def test_every_float16_is_the_same_number_in_float32(finite: bool) -> None:
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)] if finite else half
    for x in (half, half[::-3], half.reshape(64, -1).T, half[:0]):
        np.testing.assert_array_equal(
            bits_of(widened(x)), bits_of(x.astype(np.float32))
        )


@pytest.mark.parametrize("case", ["llama", "llama3", "mistral", "qwen3", "gpt2"])
@pytest.mark.parametrize("pad", [1, 2, 3, 7])
def test_tensors_at_odd_addresses(case: str, pad: int, tmp_path: Path) -> None:
    content = (FIXTURES / case / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    spaces = " " * ((pad - len(json.dumps(header))) % 8)
    path = write_raw(
        tmp_path / "model.safetensors", header, content[8 + length :], spaces
    )
    shutil.copy(FIXTURES / case / "config.json", tmp_path)
    model, expected = read_model(path), read_model(FIXTURES / case)
    assert {weight.stored.offset % 8 for weight in model.weights.values()} & {
        1,
        2,
        3,
        5,
        7,
    }
    same_weights(model, expected)
    assert all(array.flags.aligned for array in model.block(0, "float64").values())
    same_logits(model, expected)


def test_weights_cannot_be_written_to() -> None:
    model = read_model(FIXTURES / "llama")
    for array in (*model.block(0, "float32").values(), *model.embedding().values()):
        assert not np.asarray(array).flags.writeable


@needs_proc
def test_opening_reads_no_weight(tmp_path: Path) -> None:
    config = config_of(
        "llama", hidden_size=4096, intermediate_size=8192, vocab_size=32000
    )
    folder = sparse(
        tmp_path / "m", config | {"num_hidden_layers": 12, "num_attention_heads": 32}
    )
    assert (folder / "model.safetensors").stat().st_size > 5e9
    before, started = resident(), time.perf_counter()
    model = read_model(folder)
    embedding = model.embedding()
    assert time.perf_counter() - started < 2
    assert resident() - before < 20e6
    assert embedding["embed.weight"].shape == (32000, 4096)


@needs_proc
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_one_block_is_in_memory_at_a_time(dtype: str, tmp_path: Path) -> None:
    config = config_of(
        "llama", hidden_size=512, intermediate_size=2304, vocab_size=16000
    )
    folder = sparse(
        tmp_path / "m", config | {"num_hidden_layers": 12}, dtype
    )  # 206 or 103 MB
    model = read_model(folder)
    size = STORED_DTYPES[dtype].itemsize
    stored, computed = (
        model.config.block_sizes[0] * x for x in (size, 4)
    )  # at most 14 MB
    model.block(0, "float32")
    before, most = resident(), 0
    for i in range(model.config.num_blocks):
        weights_of_block = model.block(i, "float32")
        assert all(not array.any() for array in weights_of_block.values())
        most = max(most, resident())
        del weights_of_block
    assert most - before < 1.5 * (stored + (computed if size < 4 else 0))
    head = model.head("float32", slice(0, 10))
    assert head["lm_head.weight"].shape == (10, 512)
    assert resident() - before < stored / 2


@needs_proc
def test_looking_through_the_embedding_keeps_little_of_it(tmp_path: Path) -> None:
    config = config_of(
        "llama", hidden_size=512, vocab_size=100_000, num_hidden_layers=1
    )
    model = read_model(sparse(tmp_path / "m", config | {"tie_word_embeddings": True}))
    before = resident()
    model.check_finite("float64")
    assert resident() - before < 60e6  # of 205 MB
