"""Which files make a model, and every refusal of files that do not: formats, indices, damage."""

import errno
import json
import re
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    arrays_of,
    config_of,
    read_all,
    refusal,
    same_weights,
    save_tensors,
    write,
    write_raw,
)
from conftest import FIXTURES
from documents import changed
from hypothesis import given
from hypothesis import strategies as st
from tables import cases

from refimpl import RefimplError, read_model
from refimpl.loading.checkpoint import roles
from refimpl.loading.config_json import read_config
from refimpl.loading.files import safetensors_file
from refimpl.loading.files.safetensors_file import SafetensorsFile

LLAMA, SHARDED = FIXTURES / "llama", FIXTURES / "llama_sharded"


def test_a_folder_a_file_and_an_index_are_the_same_model() -> None:
    folder = read_model(LLAMA)
    assert (folder.name, folder.folder) == ("llama", LLAMA)
    index = SHARDED / "model.safetensors.index.json"
    for path in (str(LLAMA), LLAMA / "model.safetensors", SHARDED, index):
        model = read_model(path)
        assert model.name == ("llama_sharded" if "sharded" in str(path) else "llama")
        assert model.folder.is_dir()
        same_weights(model, folder)
    assert len(read_model(SHARDED).files) == 4


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(LLAMA / "config.json", tmp_path)
    shutil.copy(LLAMA / "model.safetensors", tmp_path / "blob")
    (tmp_path / "tiny.safetensors").symlink_to(tmp_path / "blob")
    assert read_model(tmp_path / "tiny.safetensors").name == "tiny"
    monkeypatch.chdir(tmp_path)
    assert read_model(".").name == tmp_path.name


def test_the_configuration_is_that_of_option_file_or_metadata(tmp_path: Path) -> None:
    path, other = tmp_path / "model.safetensors", tmp_path / "other.json"
    option, beside, metadata = (
        config_of("llama", rms_norm_eps=eps) for eps in (1e-4, 1e-5, 1e-6)
    )
    save_tensors(
        path, arrays_of("llama"), {"config.json": json.dumps(metadata), "format": "pt"}
    )
    assert (
        read_model(path).config.norm_eps == read_model(tmp_path).config.norm_eps == 1e-6
    )
    (tmp_path / "config.json").write_text(json.dumps(beside))
    assert read_model(path).config.norm_eps == 1e-5
    other.write_text(json.dumps(option))
    model = read_model(tmp_path, str(other))
    assert (model.config.norm_eps, model.config_file) == (1e-4, option)
    other.unlink()
    assert "other.json: no such file" in refusal(path, other).problem


def test_without_a_configuration_the_error_says_what_is_missing(tmp_path: Path) -> None:
    shutil.copy(LLAMA / "model.safetensors", tmp_path)
    error = refusal(tmp_path)
    assert "no config.json in it or its metadata" in error.problem
    assert "head counts, rope theta and norm eps" in error.expected
    assert "config.json beside its weights" in error.remedy
    assert (
        "other.json: no such file" in refusal(tmp_path, tmp_path / "other.json").problem
    )


def test_model_safetensors_goes_before_its_neighbours(tmp_path: Path) -> None:
    shutil.copytree(LLAMA, tmp_path / "m")
    (tmp_path / "m" / "consolidated.safetensors").write_bytes(b"")
    (tmp_path / "m" / "old.safetensors.index.json").write_bytes(b"")
    assert read_model(tmp_path / "m").config.num_blocks == 4


# Configurations and indices that are not JSON of the right form

DOCUMENTS: list[tuple[str, str | bytes, str]] = [
    *(
        (place, text, "not a JSON object")
        for place in ("config.json", "metadata", "index")
        for text in ("", "{", "[1]", "null", "[" * 100_000, '{"a":' * 100_000)
    ),
    ("metadata", json.dumps(config_of("llama", vocab_size=0)), "in the metadata of"),
    *cases("loading", "documents"),
]


@pytest.mark.parametrize(("place", "text", "problem"), DOCUMENTS)
def test_malformed_documents(
    place: str, text: str | bytes, problem: str, tmp_path: Path
) -> None:
    content = text.encode() if isinstance(text, str) else text
    metadata = {"config.json": content.decode()} if place == "metadata" else None
    if place == "index":
        (tmp_path / "model.safetensors.index.json").write_bytes(content)
    else:
        save_tensors(tmp_path / "x.safetensors", {}, metadata)
    if place == "config.json":
        (tmp_path / "config.json").write_bytes(content)
    message = refusal(tmp_path).problem
    assert problem in message
    assert place != "metadata" or "config.json in the metadata of" in message


# Folders and files of other formats

FOLDERS: dict[str, tuple[list[str], str, str]] = dict(cases("loading", "other_folders"))
FILES = dict(cases("loading", "other_files"))


@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_other_formats_are_refused_with_a_way_to_convert_them(
    name: str, tmp_path: Path
) -> None:
    files, problem, remedy = (
        FOLDERS[name] if name in FOLDERS else ([name], *FILES[name])
    )
    for file in files:
        (tmp_path / file).write_bytes(b"GGUF" if file.endswith(".gguf") else b"data")
    error = refusal(tmp_path if name in FOLDERS else tmp_path / name)
    assert problem in error.problem
    assert remedy in error.remedy


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "x", tmp_path / "x.safetensors", Path("a\0b")):
        assert "no such file or folder" in refusal(path).problem
    assert "File name too long" in refusal(tmp_path / ("x" * 5000)).problem


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert (
        "contains no .safetensors file"
        in refusal(tmp_path / "model.safetensors").problem
    )
    assert "model.safetensors is not a regular file" in refusal(tmp_path).problem
    (tmp_path / "model.safetensors").rmdir()
    shutil.copy(LLAMA / "model.safetensors", tmp_path)
    (tmp_path / "config.json").mkdir()
    assert "config.json is not a regular file" in refusal(tmp_path).problem
    index = tmp_path / "x.safetensors.index.json"
    index.mkdir()
    assert "contains no .safetensors file" in refusal(index).problem


@pytest.mark.parametrize("method", ["open", "iterdir", "is_dir", "stat", "safe_open"])
def test_what_the_system_forbids(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(
        safetensors_file if method == "safe_open" else Path, method, forbidden
    )
    assert "(Permission denied)" in refusal(LLAMA).problem


def sharded(
    folder: Path, change: Callable[[dict[str, str]], object] = lambda _: None
) -> Path:
    shutil.copytree(SHARDED, folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text("utf-8"))
    change(content["weight_map"])
    index.write_text(json.dumps(content), "utf-8")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "a/x.safetensors",
        "/x.safetensors",
        "..\\x.safetensors",
        "..",
        "",
    ],
)
def test_an_index_names_no_files_outside_its_folder(name: str, tmp_path: Path) -> None:
    shutil.copy(LLAMA / "model.safetensors", tmp_path / "x.safetensors")
    folder = sharded(
        tmp_path / "m", lambda shard_of: shard_of.update({"model.norm.weight": name})
    )
    error = refusal(folder)
    assert f"not safetensors in its folder: {name}" in error.problem
    assert "get the model from its source" in error.remedy


def test_shards_may_be_links(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    for shard in folder.glob("*.safetensors"):
        shard.rename(tmp_path / shard.name)
        shard.symlink_to(tmp_path / shard.name)
    same_weights(read_model(folder), read_model(LLAMA))


def test_an_index_and_its_shards_must_agree(tmp_path: Path) -> None:
    def change(shard_of: dict[str, str]) -> None:
        shard_of["model.extra.weight"] = shard_of["model.norm.weight"]
        del shard_of["lm_head.weight"]
        shard_of["model.layers.0.mlp.up_proj.weight"] = (
            "model-00004-of-00004.safetensors"
        )

    problem = refusal(sharded(tmp_path / "m", change)).problem
    for line in (
        r"model.extra.weight: only the index has it in model-",
        r"lm_head.weight: only the file has it in model-",
        r"up_proj.weight: only the index has it in model-00004",
        r"up_proj.weight: only the file has it in model-0000[123]-",
    ):
        assert re.search(line, problem), line
    assert problem.count("\n") == 4


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    last = SafetensorsFile(folder / "model-00004-of-00004.safetensors")
    arrays = {name: stored.array for name, stored in last.tensors.items()}
    save_tensors(
        last.path, arrays | {"model.embed_tokens.weight": np.zeros((264, 32), "f4")}
    )
    assert (
        "embed_tokens.weight: only the file has it in model-00004-of-"
        in refusal(folder).problem
    )


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    for i in (2, 3):
        (folder / f"model-0000{i}-of-00004.safetensors").unlink()
    missing = "do not exist: model-00002-of-00004.safetensors, model-00003-of"
    assert missing in refusal(folder).problem


# Damaged files

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS: dict[str, tuple[Any, int]] = dict(cases("loading", "headers"))
WHOLE = (LLAMA / "model.safetensors").read_bytes()
CONTENTS = {
    "nothing": b"",
    "8 zeros": bytes(8),
    "ones": b"\xff" * 1000,
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 3) + b"{}",
    "braces": struct.pack("<Q", 2) + b"}{",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n",
    "a page": b"<!DOCTYPE html><html><title>404</title></html>",
    "nested lists": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "a byte too many": WHOLE + b"\0",
} | {f"truncated at {end}": WHOLE[:end] for end in (1, 7, 8, 9, 100, -1, -1000)}


@pytest.mark.parametrize("name", [*HEADERS, *CONTENTS])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    shutil.copy(LLAMA / "config.json", tmp_path)
    path = tmp_path / "model.safetensors"
    if name in HEADERS:
        header, size = HEADERS[name]
        write_raw(path, header, bytes(size))
    else:
        path.write_bytes(CONTENTS[name])
    error = refusal(tmp_path)
    assert "model.safetensors is not a whole safetensors file (" in error.problem
    assert "download or save the file again" in error.remedy


TINY = {"model_type": "gpt2", "vocab_size": 3, "n_embd": 4, "n_layer": 1, "n_head": 2}
TINY |= {"n_positions": 2, "n_inner": 2}


def tiny_file(scratch: Path) -> tuple[Path, bytes, int]:
    """A GPT-2 of about a hundred weights: its file, content, and the header's length."""
    rng = np.random.default_rng(1)
    shapes = {role.tensor: role.shape for _, role in roles(read_config(TINY), "")}
    arrays = {
        name: rng.standard_normal(shape).astype(np.float16)
        for name, shape in shapes.items()
    }
    folder = write(scratch / "damaged", arrays, TINY)
    content = (folder / "model.safetensors").read_bytes()
    return folder / "model.safetensors", content, struct.unpack("<Q", content[:8])[0]


def is_read_or_refused(path: Path) -> None:
    """A model, whose weights are all read, or a refusal; any other error is raised."""
    with suppress(RefimplError):
        read_all(read_model(path), "float32")


@given(st.data())
def test_any_damage_is_read_or_refused(scratch: Path, data: st.DataObject) -> None:
    path, whole, length = tiny_file(scratch)
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3), "edits")):
        within = (
            st.integers(0, 9)
            | st.integers(0, 8 + length)
            | st.integers(0, len(content))
        )
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
    is_read_or_refused(path.parent)


HEADER_VALUES = (
    2**31,
    2**63,
    2**64,
    "F32",
    "BF16",
    "I8",
    "BOOL",
    [0, 24],
    [2**63, 2**63],
    ENTRY,
)


@given(st.data())
def test_any_header_is_read_or_refused(scratch: Path, data: st.DataObject) -> None:
    path, content, length = tiny_file(scratch)
    header = content[8 : 8 + length].decode()
    for _ in range(data.draw(st.integers(1, 3), "edits")):
        header = json.dumps(changed(header, data, HEADER_VALUES))
    write_raw(path, json.loads(header), content[8 + length :])
    is_read_or_refused(path.parent)
