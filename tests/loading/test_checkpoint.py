"""Models on disk: what is found, what is claimed, what is refused, and how little is read."""

import copy
import errno
import json
import os
import re
import shutil
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    altered,
    arrays_of,
    config_of,
    needs_proc,
    resident,
    sparse,
    write,
    write_raw,
)
from conftest import FIXTURES
from gates import CASES
from hypothesis import given
from hypothesis import strategies as st

from refimpl import Model, RefimplError, forward, read_model
from refimpl.loading import safetensors_file as tensors
from refimpl.loading import tensor_claims as claims
from refimpl.loading.config_json import read_config
from refimpl.loading.safetensors_file import DTYPES, SafetensorsFile, save_tensors
from refimpl.loading.tensor_claims import roles
from refimpl.model import weight as weights
from refimpl.model.ops import Array

LAYER = "model.layers.0."


def refusal(path: Path, config: Path | None = None) -> RefimplError:
    """What is said about a model that cannot be read."""
    with pytest.raises(RefimplError) as caught:
        read_model(path, config)
    assert caught.value.expected
    assert caught.value.remedy
    return caught.value


def same_weights(one: Model, other: Model) -> None:
    """All weights of two models have the same values."""
    assert one.config == other.config
    assert list(one.weights) == list(other.weights)
    for name in one.weights:
        left, right = (model.weights[name].read("float64") for model in (one, other))
        np.testing.assert_array_equal(left, right, err_msg=name)


def same_logits(one: Model, other: Model) -> None:
    """Two models compute the same, up to the rounding of products in another layout."""
    logits = [forward(model, [[1, 5, 7, 2]], dtype="float64").logits for model in (one, other)]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-11)


# Where a model is looked for


def test_a_folder_a_file_and_an_index_are_the_same_model() -> None:
    folder = read_model(FIXTURES / "llama")
    assert folder.name == "llama"
    assert folder.folder == FIXTURES / "llama"
    assert folder.stored_dtypes == ("F32",)
    for path in (
        str(FIXTURES / "llama"),
        FIXTURES / "llama" / "model.safetensors",
        FIXTURES / "llama_sharded",
        FIXTURES / "llama_sharded" / "model.safetensors.index.json",
    ):
        model = read_model(path)
        assert model.name == ("llama_sharded" if "sharded" in str(path) else "llama")
        assert model.folder.is_dir()
        same_weights(model, folder)
    assert len(read_model(FIXTURES / "llama_sharded").files) == 4


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(FIXTURES / "llama" / "config.json", tmp_path)
    shutil.copy(FIXTURES / "llama" / "model.safetensors", tmp_path / "blob")
    (tmp_path / "tiny.safetensors").symlink_to(tmp_path / "blob")
    assert read_model(tmp_path / "tiny.safetensors").name == "tiny"
    monkeypatch.chdir(tmp_path)
    assert read_model(".").name == tmp_path.name


def test_the_configuration_is_taken_by_option_then_beside_then_from_the_metadata(
    tmp_path: Path,
) -> None:
    arrays = arrays_of("llama")
    eps = {place: config_of("llama", rms_norm_eps=value) for place, value in
           (("option", 1e-4), ("beside", 1e-5), ("metadata", 1e-6))}  # fmt: skip
    path = tmp_path / "model.safetensors"
    save_tensors(path, arrays, {"config.json": json.dumps(eps["metadata"]), "format": "pt"})
    assert read_model(path).config.norm_eps == 1e-6
    assert read_model(tmp_path).config.norm_eps == 1e-6
    (tmp_path / "config.json").write_text(json.dumps(eps["beside"]))
    assert read_model(path).config.norm_eps == 1e-5
    (tmp_path / "other.json").write_text(json.dumps(eps["option"]))
    model = read_model(tmp_path, str(tmp_path / "other.json"))
    assert model.config.norm_eps == 1e-4
    assert model.config_file == eps["option"]
    (tmp_path / "other.json").unlink()
    assert "other.json: no such file" in refusal(path, tmp_path / "other.json").problem


def test_a_configuration_in_the_metadata_is_refused_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for text, said in (("{", "metadata of .*x.safetensors: not JSON"), ("[]", "not a JSON object")):
        save_tensors(path, {}, {"config.json": text})
        assert re.search(said, refusal(path).problem)
    save_tensors(path, {}, {"config.json": json.dumps(config_of("llama", vocab_size=0))})
    assert "in the metadata of" in refusal(path).problem


def test_without_a_configuration_the_error_says_what_is_missing(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "llama" / "model.safetensors", tmp_path)
    error = refusal(tmp_path)
    assert "no config.json beside it, and none in its metadata" in error.problem
    assert "head counts, rope theta and the norms' eps" in error.expected
    assert "--config" in error.remedy
    assert "other.json: no such file" in refusal(tmp_path, tmp_path / "other.json").problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b'{"vocab_size": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b'{"model_type": ' + b"[" * 900 + b"]" * 900 + b"}", "unknown model family"),
    ],
)
def test_a_configuration_that_is_none(text: bytes, said: str, tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "llama" / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_bytes(text)
    assert said in refusal(tmp_path).problem


# What is not a model


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "x", tmp_path / "x.safetensors", Path("a\0b")):
        assert "no such file or folder" in refusal(path).problem
    assert "File name too long" in refusal(tmp_path / ("x" * 5000)).problem


FOLDERS: dict[str, tuple[list[str], str, str]] = {
    "nothing": ([], "no .safetensors file in it", "check the path"),
    "something else": (["README.md", "vocab.txt"], "no .safetensors file", "check the path"),
    "pickles": (["pytorch_model.bin", "config.json"], "only pytorch_model.bin", "pickles run code"),
    "sharded pickles": (
        ["pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin", "pytorch_model.bin.index.json"],
        "only pytorch_model-1-of-2.bin, pytorch_model-2-of-2.bin",
        "save_pretrained",
    ),
    "gguf": (["m.Q4_K_M.gguf"], "only m.Q4_K_M.gguf", "gguf_file"),
    "TensorFlow": (["tf_model.h5"], "only tf_model.h5", "save_pretrained"),
    "an adapter": (["adapter_config.json", "adapter_model.safetensors"], "adapter", "merge"),
    "an old adapter": (["adapter_config.json", "adapter_model.bin"], "adapter", "merge"),
    "two files": (["a.safetensors", "b.safetensors"], "2 candidates: a.safetensors, b", "name the"),
    "two indices": (
        ["a.safetensors.index.json", "b.safetensors.index.json", "c.safetensors"],
        "2 candidates: a.safetensors.index.json, b.safetensors.index.json",
        "name the file",
    ),
    "shards without an index": (
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        "2 candidates",
        "index",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_without_one_model(name: str, tmp_path: Path) -> None:
    files, said, next_step = FOLDERS[name]
    for file in files:
        (tmp_path / file).write_bytes(b"")
    error = refusal(tmp_path)
    assert said in error.problem
    assert next_step in error.remedy


@pytest.mark.parametrize(
    ("name", "said", "next_step"),
    [
        ("model.gguf", ".gguf is not safetensors", "gguf_file"),
        ("pytorch_model.bin", ".bin is not safetensors", "pickles run code"),
        ("model.pth", ".pth is not safetensors", "pickles run code"),
        ("model.h5", ".h5 is not safetensors", "save_pretrained"),
        ("model.txt", ".txt is not safetensors", "save_pretrained"),
        ("model", "this file is not safetensors", "save_pretrained"),
        ("adapter_model.safetensors", "an adapter, not a model", "merge"),
    ],
)
def test_files_of_other_formats(name: str, said: str, next_step: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    error = refusal(tmp_path / name)
    assert said in error.problem
    assert next_step in error.remedy


def test_model_safetensors_goes_before_its_neighbours(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "llama", tmp_path / "m")
    (tmp_path / "m" / "consolidated.safetensors").write_bytes(b"")
    (tmp_path / "m" / "old.safetensors.index.json").write_bytes(b"")
    assert read_model(tmp_path / "m").config.num_blocks == 4


# What cannot be read


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert "no .safetensors file in it" in refusal(tmp_path / "model.safetensors").problem
    assert "model.safetensors: cannot be read" in refusal(tmp_path).problem
    (tmp_path / "model.safetensors").rmdir()
    shutil.copy(FIXTURES / "llama" / "model.safetensors", tmp_path)
    (tmp_path / "config.json").mkdir()
    assert "config.json: cannot be read (Is a directory)" in refusal(tmp_path).problem
    (tmp_path / "x.safetensors.index.json").mkdir()
    index = tmp_path / "x.safetensors.index.json"
    assert "no .safetensors file in it" in refusal(index).problem


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "."])
def test_what_may_not_be_read(name: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "llama", tmp_path / "m")
    (tmp_path / "m" / name).chmod(0)
    assert "ermission denied" in refusal(tmp_path / "m").problem
    (tmp_path / "m" / name).chmod(0o700)


@pytest.mark.parametrize("where", ["open", "iterdir", "is_dir", "read_bytes"])
def test_what_the_system_forbids(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, where, forbidden)
    assert "(Permission denied)" in refusal(FIXTURES / "llama").problem
    monkeypatch.undo()
    monkeypatch.setattr(tensors, "safe_open", forbidden)
    assert "(Permission denied)" in refusal(FIXTURES / "llama").problem


# Indices


def sharded(folder: Path, change: Callable[[dict[str, str]], object]) -> Path:
    """The sharded fixture with the map of its index changed."""
    shutil.copytree(FIXTURES / "llama_sharded", folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text("utf-8"))
    change(content["weight_map"])
    index.write_text(json.dumps(content), "utf-8")
    return folder


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "a/x.safetensors", "/x.safetensors", "..\\x.safetensors", "..", ""]
)
def test_an_index_names_no_files_outside_its_folder(name: str, tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "llama" / "model.safetensors", tmp_path / "x.safetensors")
    folder = sharded(tmp_path / "m", lambda where: where.update({"model.norm.weight": name}))
    error = refusal(folder)
    assert f"names files outside its folder: {name}" in error.problem
    assert "do not use this index" in error.remedy


def test_shards_may_be_links(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", lambda _: None)
    for shard in folder.glob("*.safetensors"):
        shard.rename(tmp_path / shard.name)
        shard.symlink_to(tmp_path / shard.name)
    same_weights(read_model(folder), read_model(FIXTURES / "llama"))


def test_an_index_and_its_shards_must_agree(tmp_path: Path) -> None:
    def change(where: dict[str, str]) -> None:
        where["model.extra.weight"] = where["model.norm.weight"]
        del where["lm_head.weight"]
        where["model.layers.0.mlp.up_proj.weight"] = "model-00004-of-00004.safetensors"

    problem = refusal(sharded(tmp_path / "m", change)).problem
    assert "model.extra.weight: in the index under model-" in problem
    assert re.search(r"lm_head.weight: in model-.*, in the index under nothing", problem)
    assert re.search(r"up_proj.weight: in the index under model-00004.*, not in that file", problem)
    assert re.search(
        r"up_proj.weight: in model-0000[123]-.*, in the index under model-00004", problem
    )
    assert problem.count("\n") == 4


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", lambda _: None)
    last = SafetensorsFile(folder / "model-00004-of-00004.safetensors")
    arrays = {name: stored.array for name, stored in last.tensors.items()}
    save_tensors(last.path, arrays | {"model.embed_tokens.weight": np.zeros((264, 32), "f4")})
    assert "model.embed_tokens.weight: in model-00004-of-00004" in refusal(folder).problem


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", lambda _: None)
    (folder / "model-00002-of-00004.safetensors").unlink()
    (folder / "model-00003-of-00004.safetensors").unlink()
    problem = refusal(folder).problem
    assert "not there: model-00002-of-00004.safetensors, model-00003-of" in problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "not an index of shards"),
        ('{"weight_map": {}}', "not an index of shards"),
        ('{"weight_map": ["a"]}', "not an index of shards"),
        ('{"weight_map": {"a": 1}}', "not an index of shards"),
        ('{"weight_map": {"a": ["b"]}}', "not an index of shards"),
        ('{"weight_map": {"a": "x\\u0000.safetensors"}}', "shards that are not there"),
        ('{"weight_map": {"a": "pytorch_model-1.bin"}}', "not safetensors: pytorch_model-1.bin"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_an_index_that_is_none(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert said in refusal(tmp_path).problem


# Damaged files

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED: dict[str, tuple[Any, bytes]] = {
    "a hole at the start": ({"x": ENTRY | {"data_offsets": [8, 16]}}, bytes(16)),
    "a hole between": ({"x": ENTRY, "y": ENTRY | {"data_offsets": [16, 24]}}, bytes(24)),
    "overlap": ({"x": ENTRY, "y": ENTRY | {"data_offsets": [4, 12]}}, bytes(12)),
    "the same bytes twice": ({"x": ENTRY, "y": ENTRY}, bytes(8)),
    "backwards": ({"x": ENTRY | {"data_offsets": [8, 0]}}, bytes(8)),
    "negative": ({"x": ENTRY | {"data_offsets": [-8, 0]}}, bytes(8)),
    "too little data": ({"x": ENTRY}, bytes(7)),
    "too much data": ({"x": ENTRY}, bytes(9)),
    "a shape too large": ({"x": ENTRY | {"shape": [3]}}, bytes(8)),
    "a shape of 2**80": ({"x": ENTRY | {"shape": [2**40, 2**40]}}, bytes(8)),
    "a shape that wraps to 0": ({"x": ENTRY | {"shape": [2**32, 2**32]}}, bytes(8)),
    "a negative shape": ({"x": ENTRY | {"shape": [-2]}}, bytes(8)),
    "a shape in words": ({"x": ENTRY | {"shape": "2"}}, bytes(8)),
    "a dtype nobody knows": ({"x": ENTRY | {"dtype": "F31"}}, bytes(8)),
    "no dtype": ({"x": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "no entry": ({"x": None}, bytes(0)),
    "a list": ([ENTRY], bytes(8)),
    "a number": (3, bytes(0)),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "x": ENTRY}, bytes(8)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_headers_that_lie(name: str, tmp_path: Path) -> None:
    header, data = DAMAGED[name]
    write_raw(tmp_path / "x.safetensors", header, data)
    error = refusal(tmp_path / "x.safetensors")
    assert "x.safetensors: not a whole safetensors file (" in error.problem
    assert "download or save the file again" in error.remedy


def test_the_undamaged_header_is_read(tmp_path: Path) -> None:
    file = SafetensorsFile(write_raw(tmp_path / "x", {"__metadata__": None, "x": ENTRY}, bytes(8)))
    assert file.metadata == {}
    assert file.tensors["x"].array.tolist() == [0, 0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        b"\0" * 1000,
        b"\xff" * 1000,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2) + b"}{",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n",
        b"<!DOCTYPE html><html><title>404</title></html>",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
    ],
)
def test_files_of_something_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "not a whole safetensors file" in refusal(tmp_path).problem


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, -1, -1000])
def test_truncated_files(kept: int, tmp_path: Path) -> None:
    content = (FIXTURES / "llama" / "model.safetensors").read_bytes()
    shutil.copy(FIXTURES / "llama" / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content[:kept])
    assert "not a whole safetensors file" in refusal(tmp_path).problem
    (tmp_path / "model.safetensors").write_bytes(content + b"\0")
    assert "not a whole safetensors file" in refusal(tmp_path).problem


def test_a_file_without_tensors(tmp_path: Path) -> None:
    error = refusal(write(tmp_path / "m", {}, config_of("llama")))
    assert "block 3: all its tensors are missing" in error.problem
    assert "model.embed_tokens.weight: missing (wanted for embed.weight" in error.problem


TINY = {"model_type": "gpt2", "vocab_size": 3, "n_embd": 4, "n_layer": 1, "n_head": 2}
TINY |= {"n_positions": 2, "n_inner": 2}


def tiny_arrays() -> dict[str, Array]:
    """A GPT-2 of about a hundred weights."""
    rng = np.random.default_rng(1)
    wanted = {role.tensor: role.shape for _, role in roles(read_config(TINY), "")}
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in wanted.items()}


def read_all(model: Model, dtype: str) -> None:
    """Read every weight of a model, or raise what is wrong with one."""
    model.check_finite(dtype)
    for i in range(model.config.num_blocks):
        model.block(i, dtype)
    model.head(dtype)


def is_read_or_refused(path: Path) -> None:
    """A model, whose weights are all read, or a refusal; anything else is raised."""
    with suppress(RefimplError):
        read_all(read_model(path), "float32")


@given(st.data())
def test_any_damage_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = write(tmp_path_factory.getbasetemp() / "damaged", tiny_arrays(), TINY)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    for _ in range(data.draw(st.integers(1, 3), "edits")):
        within = st.integers(0, 9) | st.integers(0, 8 + length) | st.integers(0, len(content))
        at = min(data.draw(within, "at"), len(content))
        edit = data.draw(st.sampled_from(["flip", "cut", "insert", "remove"]), "edit")
        if edit == "flip" and at < len(content):
            content[at] ^= data.draw(st.integers(1, 255), "bits")
        elif edit == "cut":
            del content[at:]
        elif edit == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9), "bytes")
        elif edit == "remove":
            del content[at : at + data.draw(st.integers(1, 9), "length")]
    path.write_bytes(content)
    is_read_or_refused(folder)


HEADER_VALUES = st.sampled_from(
    [
        0,
        1,
        2,
        4,
        8,
        -1,
        2**31,
        2**63,
        2**64,
        1.5,
        None,
        True,
        "",
        "F32",
        "BF16",
        "F16",
        "I8",
        "BOOL",
    ]
) | st.sampled_from([[], [0], [4], [3, 4], [0, 0], [0, 24], [2**63, 2**63], {}, {"a": "b"}])


@given(st.data())
def test_any_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = write(tmp_path_factory.getbasetemp() / "headers", tiny_arrays(), TINY)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for _ in range(data.draw(st.integers(1, 3), "edits")):
        name = data.draw(st.sampled_from([*sorted(header), "__metadata__", "new"]), "tensor")
        entry = header.get(name)
        if isinstance(entry, dict) and data.draw(st.booleans(), "inside"):
            key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]), "key")
            entry[key] = data.draw(HEADER_VALUES, "value")
        elif data.draw(st.booleans(), "delete"):
            header.pop(name, None)
        else:
            header[name] = copy.deepcopy(data.draw(HEADER_VALUES | st.just(ENTRY), "entry"))
    write_raw(path, header, content[8 + length :])
    is_read_or_refused(folder)


# Claims


def test_every_fixture_is_claimed() -> None:
    for case in CASES:
        model = read_model(FIXTURES / case)
        stored = {weight.stored.name for weight in model.weights.values()}
        assert stored == set(arrays_of(case)), case


def test_all_offenders_are_listed_at_once(tmp_path: Path) -> None:
    def change(arrays: dict[str, Array]) -> None:
        del arrays[f"{LAYER}mlp.up_proj.weight"]
        del arrays["lm_head.weight"]
        arrays["model.norm.weight"] = np.zeros(31, np.float32)
        del arrays[f"{LAYER}self_attn.q_proj.weight"]
        arrays[f"{LAYER}input_layernorm.weight"] = np.zeros(32, bool)
        arrays[f"{LAYER}self_attn.q_proj.bias"] = np.zeros(32, np.float32)
        arrays["model.rotary"] = np.zeros((1, 2))

    error = refusal(altered(tmp_path / "m", "llama", change))
    for line in (
        f"{LAYER}mlp.up_proj.weight: missing (wanted for blocks.0.up_proj.weight, shape [44, 32])",
        "lm_head.weight: missing (wanted for lm_head.weight, shape [264, 32])",
        "model.norm.weight: expected shape [32], got [31]",
        f"{LAYER}input_layernorm.weight: expected F64, F32, F16, BF16, got BOOL",
        f"{LAYER}self_attn.q_proj.weight: missing (wanted for blocks.0.q_proj.weight",
        f"{LAYER}self_attn.q_proj.bias: no role claims it (shape [32])",
        "model.rotary: no role claims it (shape [1, 2])",
    ):
        assert f"\n  {line}" in error.problem, line
    assert error.problem.count("\n") == 7
    assert "7 problems" in error.problem
    assert "a llama model of 4 blocks" in error.expected


def test_a_fused_tensor_is_one_offender(tmp_path: Path) -> None:
    path = altered(tmp_path / "m", "gpt2", lambda a: a.pop("transformer.h.1.attn.c_attn.weight"))
    assert refusal(path).problem.count("\n") == 1
    path = altered(
        tmp_path / "n",
        "phi3",
        lambda a: a.update({f"{LAYER}self_attn.qkv_proj.weight": np.zeros((63, 32), "f4")}),
    )
    assert "qkv_proj.weight: expected shape [64, 32], got [63, 32]" in refusal(path).problem


def test_more_blocks_than_tensors_and_fewer(tmp_path: Path) -> None:
    problem = refusal(altered(tmp_path / "m", "llama", lambda _: None, num_hidden_layers=6)).problem
    assert problem.count("\n") == 2
    assert "\n  block 4: all its tensors are missing\n  block 5: all its" in problem
    problem = refusal(altered(tmp_path / "m", "llama", lambda _: None, num_hidden_layers=3)).problem
    lost = [name for name in arrays_of("llama") if name.startswith("model.layers.3.")]
    assert len(lost) == problem.count("\n") == 9
    assert all(f"\n  {name}: no role claims it" in problem for name in lost)


def test_the_table_of_positions_must_be_as_long_as_the_model_allows(tmp_path: Path) -> None:
    problem = refusal(altered(tmp_path / "m", "opt", lambda _: None, max_position_embeddings=63))
    assert "embed_positions.weight: expected shape [65, 32], got [66, 32]" in problem.problem


def entry(dtype: str, shape: list[int], size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (f"{LAYER}self_attn.q_proj.weight", "F8_E4M3"),
        (f"{LAYER}self_attn.q_proj.weight", "F8_E5M2"),
        (f"{LAYER}self_attn.q_proj.weight", "I8"),
        (f"{LAYER}self_attn.q_proj.weight", "U8"),
        (f"{LAYER}self_attn.q_proj.qweight", "I32"),
        (f"{LAYER}self_attn.q_proj.scales", "F16"),
        (f"{LAYER}self_attn.q_proj.weight_scale", "F32"),
        (f"{LAYER}self_attn.q_proj.weight_scale_inv", "F32"),
        (f"{LAYER}self_attn.q_proj.weight.absmax", "F32"),
        (f"{LAYER}self_attn.q_proj.weight.quant_state.bitsandbytes__nf4", "U8"),
        (f"{LAYER}self_attn.q_proj.SCB", "F32"),
    ],
)
def test_quantised_tensors_are_refused_by_name(name: str, dtype: str, tmp_path: Path) -> None:
    size = {"F8": 1, "I8": 1, "U8": 1, "F1": 2, "I3": 4, "F3": 4}[dtype[:2]] * 8
    (tmp_path / "config.json").write_text(json.dumps(config_of("llama")))
    write_raw(tmp_path / "x.safetensors", {name: entry(dtype, [8], size)}, bytes(size))
    error = refusal(tmp_path)
    assert f"a quantised checkpoint (1 tensors such as {name})" in error.problem
    assert "dequantize" in error.remedy


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "model.visual.blocks.0.attn.qkv.weight",
        "multi_modal_projector.linear.weight",
        "language_model.model.embed_tokens.weight",
        "model.audio_tower.conv1.weight",
    ],
)
def test_multimodal_tensors_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = altered(tmp_path / "m", "gemma3", lambda a: a.update({name: np.zeros((2, 2))}))
    error = refusal(path)
    assert f"a multimodal checkpoint (1 tensors such as {name})" in error.problem
    assert "language_model" in error.remedy


def test_an_adapter_is_refused_by_its_tensors(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    error = refusal(write(tmp_path / "m", {name: np.zeros((2, 2))}, config_of("llama")))
    assert "an adapter, not a model" in error.problem
    assert "merge" in error.remedy


# Spellings of old files


def renamed(arrays: dict[str, Array], old: str, new: str) -> dict[str, Array]:
    """The tensors with a prefix replaced."""
    return {re.sub(f"^{re.escape(old)}", new, name): array for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("case", "old", "new"),
    [
        ("gpt2", "transformer.", ""),
        ("opt", "model.decoder.", "decoder."),
        ("opt", "model.decoder.", ""),
        ("llama3", "model.", ""),
        ("gemma2", "model.", ""),
        ("gemma3", "model.", ""),
        ("llama", "model.", ""),
        ("gpt_neox", "gpt_neox.", ""),
    ],
)
def test_base_models_have_no_prefix(case: str, old: str, new: str, tmp_path: Path) -> None:
    arrays = renamed(arrays_of(case), old, new)
    assert arrays.keys() != arrays_of(case).keys()
    same_weights(
        read_model(write(tmp_path / "m", arrays, config_of(case))), read_model(FIXTURES / case)
    )


def test_a_base_model_whose_head_is_its_own_lacks_it(tmp_path: Path) -> None:
    arrays = renamed(arrays_of("gpt_neox"), "gpt_neox.", "")
    del arrays["embed_out.weight"]
    problem = refusal(write(tmp_path / "m", arrays, config_of("gpt_neox"))).problem
    assert "1 problems" in problem
    assert "embed_out.weight: missing (wanted for lm_head.weight" in problem


@pytest.mark.parametrize(
    ("case", "prefix", "buffers"),
    [
        ("gpt2", "transformer.h.{}.attn.", {"bias": (1, 1, 64, 64), "masked_bias": ()}),
        ("gpt_neox", "gpt_neox.layers.{}.attention.",
         {"bias": (1, 1, 64, 64), "masked_bias": (), "rotary_emb.inv_freq": (2,)}),
        ("llama", "model.layers.{}.self_attn.", {"rotary_emb.inv_freq": (4,)}),
        ("mistral", "model.layers.{}.self_attn.", {"rotary_emb.inv_freq": (6,)}),
        ("gemma2", "model.layers.{}.self_attn.", {"rotary_emb.inv_freq": (6,)}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("based", [True, False])
def test_buffers_of_old_files_are_no_matter(
    case: str, prefix: str, buffers: dict[str, tuple[int, ...]], based: bool, tmp_path: Path
) -> None:
    dtypes = (np.float32, np.float16, bool, np.uint8)
    base = prefix.split(".")[0] + "."
    old, new = (base, "") if not based else ("", "")
    arrays = renamed(arrays_of(case), old, new)
    for i in range(3):
        for (name, shape), dtype in zip(buffers.items(), dtypes, strict=False):
            arrays[re.sub(f"^{old}", new, prefix.format(i)) + name] = np.ones(shape, dtype)
    same_weights(
        read_model(write(tmp_path / "m", arrays, config_of(case))), read_model(FIXTURES / case)
    )


def test_a_buffer_elsewhere_is_claimed_by_no_role(tmp_path: Path) -> None:
    for name in (f"{LAYER}mlp.inv_freq", f"{LAYER}self_attn.rotary_emb.inv_freq.old", "inv_freq"):
        path = altered(tmp_path / "m", "llama", lambda a, n=name: a.update({n: np.ones(4)}))
        assert f"{name}: no role claims it" in refusal(path).problem


@pytest.mark.parametrize("chunk", [1 << 22, 64, 1])
def test_a_tied_head_may_be_stored_again(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "CHUNK", chunk)
    embed = arrays_of("llama3")["model.embed_tokens.weight"]
    path = altered(tmp_path / "m", "llama3", lambda a: a.update({"lm_head.weight": embed}))
    same_weights(read_model(path), read_model(FIXTURES / "llama3"))

    other = embed.copy()
    other[-1, -1] += 1
    for wrong in (other, embed.view(np.float16), embed.astype(np.float32), embed[:-1]):
        path = altered(tmp_path / "m", "llama3", lambda a, w=wrong: a.update({"lm_head.weight": w}))
        assert "lm_head.weight: no role claims it" in refusal(path).problem


def test_an_untied_head_is_not_the_embedding() -> None:
    model = read_model(FIXTURES / "llama")
    assert model.weights["lm_head.weight"].stored.name == "lm_head.weight"
    tied = read_model(FIXTURES / "gemma2")
    assert tied.weights["lm_head.weight"].stored.name == "model.embed_tokens.weight"


# Values that are no numbers


BAD: dict[str, tuple[str, str, str]] = {
    "a block's matrix": ("llama", f"{LAYER}mlp.up_proj.weight", "block"),
    "a block's fused matrix": ("gpt2", "transformer.h.2.attn.c_attn.weight", "block"),
    "a block's bias": ("gpt2", "transformer.h.0.mlp.c_fc.bias", "block"),
    "a block's norm": ("gemma2", f"{LAYER}input_layernorm.weight", "block"),
    "half precision": ("mistral", f"{LAYER}mlp.up_proj.weight", "block"),
    "bfloat16": ("llama3", f"{LAYER}mlp.up_proj.weight", "block"),
    "the embedding": ("llama", "model.embed_tokens.weight", "outside"),
    "the positions": ("opt", "model.decoder.embed_positions.weight", "outside"),
    "the head": ("llama", "lm_head.weight", "head"),
    "a tied head": ("gemma2", "model.embed_tokens.weight", "head"),
    "the final norm": ("llama", "model.norm.weight", "head"),
    "the final norm's bias": ("gpt_neox", "gpt_neox.final_layer_norm.bias", "head"),
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", BAD)
def test_no_number_is_found_and_counted(
    name: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "CHUNK", 100)  # so that the count is a sum
    case, tensor, where = BAD[name]

    def change(arrays: dict[str, Array]) -> None:
        damaged = arrays[tensor].copy()
        damaged.reshape(-1)[[3, -1]] = value
        if "attn" in tensor:  # within one of the fused roles
            damaged[:, -2:] = 0
            damaged.reshape(-1)[[3, 4]] = value
        arrays[tensor] = damaged

    model = read_model(altered(tmp_path / "m", case, change))
    said = f"{re.escape(tensor)} holds 2 NaN or Inf"
    for dtype in ("float32", "float64"):
        with pytest.raises(RefimplError, match=said):
            read_all(model, dtype)
        if where == "head":
            with pytest.raises(RefimplError, match=said):
                model.head(dtype)
    if where == "block":
        model.check_finite()  # which leaves the blocks to their reading
    else:
        with pytest.raises(RefimplError, match="holds 2 NaN or Inf"):
            model.check_finite()


def test_the_rows_of_a_head_that_are_read_are_checked(tmp_path: Path) -> None:
    def change(arrays: dict[str, Array]) -> None:
        arrays["lm_head.weight"] = arrays["lm_head.weight"].copy()
        arrays["lm_head.weight"][100, 5] = np.inf

    model = read_model(altered(tmp_path / "m", "llama", change))
    assert model.head("float32", slice(0, 100))["lm_head.weight"].shape == (100, 32)
    with pytest.raises(RefimplError, match="holds 1 NaN or Inf among 8448 weights"):
        model.head("float32", slice(50, 150))


@pytest.mark.parametrize(
    ("tensor", "value"), [(f"{LAYER}mlp.up_proj.weight", 1e39), ("lm_head.weight", -1e300)]
)
def test_doubles_beyond_the_range_of_floats(
    tensor: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "CHUNK", 100)  # so that the count is a sum

    def change(arrays: dict[str, Array]) -> None:
        arrays[tensor] = arrays[tensor].astype(np.float64)
        arrays[tensor][[1, -1], 1] = value

    model = read_model(altered(tmp_path / "m", "llama", change))
    said = f"{re.escape(tensor)} holds 2 weights of [0-9]+ that float32 cannot hold"
    with pytest.raises(RefimplError, match=said) as caught:
        read_all(model, "float32")
    assert "--dtype float64" in caught.value.remedy
    read_all(model, "float64")
    model.check_finite()


def test_the_offset_of_a_norm_is_added_on_reading() -> None:
    stored = arrays_of("gemma2")[f"{LAYER}input_layernorm.weight"].astype(np.float64)
    read = read_model(FIXTURES / "gemma2").block(0, "float64")["attn_norm.weight"]
    np.testing.assert_array_equal(read, stored + 1)


# Dtypes


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox", "gemma2", "phi3"])
def test_the_same_values_in_any_dtype(case: str, dtype: str, tmp_path: Path) -> None:
    # Values that bfloat16 and float16 both hold: 8 bits, and not too small.
    values = {
        name: (np.round(array.astype(np.float64) * 32) / 32).clip(-3, 3)
        for name, array in arrays_of(case).items()
    }
    expected = read_model(write(tmp_path / "m", values, config_of(case)))
    stored = {name: array.astype(DTYPES[dtype]) for name, array in values.items()}
    model = read_model(write(tmp_path / "n", stored, config_of(case)))
    assert model.stored_dtypes == (dtype,)
    same_weights(model, expected)
    for asked in ("float32", "float64"):
        block = model.block(1, asked)
        assert {array.dtype.name for array in block.values()} == {asked}
        assert {array.flags.aligned for array in block.values()} == {True}
        assert {array.dtype.name for array in model.head(asked).values()} == {asked}
    same_logits(model, expected)


def test_dtypes_may_be_mixed(tmp_path: Path) -> None:
    values = {name: np.round(array * 32) / 32 for name, array in arrays_of("llama").items()}
    cycle = [DTYPES[name] for name in ("F16", "F64", "BF16", "F32")]
    mixed = {name: array.astype(cycle[i % 4]) for i, (name, array) in enumerate(values.items())}
    model = read_model(write(tmp_path / "m", mixed, config_of("llama")))
    assert set(model.stored_dtypes) == set(DTYPES)
    same_weights(model, read_model(write(tmp_path / "n", values, config_of("llama"))))


@pytest.mark.parametrize("case", ["llama", "llama3", "mistral", "qwen3", "gpt2"])
@pytest.mark.parametrize("pad", [1, 2, 3, 7])
def test_tensors_at_odd_addresses(case: str, pad: int, tmp_path: Path) -> None:
    content = (FIXTURES / case / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    spaces = " " * ((pad - len(json.dumps(header))) % 8)
    path = write_raw(tmp_path / "model.safetensors", header, content[8 + length :], spaces)
    shutil.copy(FIXTURES / case / "config.json", tmp_path)
    model, expected = read_model(path), read_model(FIXTURES / case)
    assert {weight.stored.offset % 8 for weight in model.weights.values()} & {1, 2, 3, 5, 7}
    same_weights(model, expected)
    assert all(array.flags.aligned for array in model.block(0, "float64").values())
    same_logits(model, expected)


def test_weights_cannot_be_written_to() -> None:
    model = read_model(FIXTURES / "llama")
    for array in (*model.block(0, "float32").values(), *model.embedding().values()):
        assert not array.flags.writeable


# How little is read


@needs_proc
def test_opening_reads_no_weight(tmp_path: Path) -> None:
    config = config_of("llama", hidden_size=4096, intermediate_size=8192, vocab_size=32000)
    folder = sparse(tmp_path / "m", config | {"num_hidden_layers": 12, "num_attention_heads": 32})
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
    config = config_of("llama", hidden_size=512, intermediate_size=2304, vocab_size=16000)
    folder = sparse(tmp_path / "m", config | {"num_hidden_layers": 12}, dtype)  # 206 or 103 MB
    model = read_model(folder)
    size = DTYPES[dtype].itemsize
    stored, computed = model.config.block_size * size, model.config.block_size * 4  # at most 14 MB
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
    config = config_of("llama", hidden_size=512, vocab_size=100_000, num_hidden_layers=1)
    model = read_model(sparse(tmp_path / "m", config | {"tie_word_embeddings": True}))
    before = resident()
    model.check_finite("float64")
    assert resident() - before < 60e6  # of 205 MB


def test_blocks_are_given_back_before_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[Path] = []
    monkeypatch.setattr(SafetensorsFile, "release", lambda file: released.append(file.path))
    model = read_model(FIXTURES / "llama_sharded")
    assert isinstance(model, Model)
    model.block(2, "float32")
    model.head("float32")
    assert released == [file.path for file in model.files] * 2
