"""A pruned model's files: byte for byte the original's, but for the weights that were pruned."""

import json
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    arrays_of,
    config_of,
    llama_of,
    needs_proc,
    resident,
    sparse,
    write,
    write_raw,
)
from conftest import FIXTURES
from documents import files
from gates import CASES, layouts
from pruned_models import Decision, as_decided, write_pruned
from refusals import refusal_of
from safetensors import safe_open

from refimpl import Model, Pattern, PrunerOptions, prune, read_model
from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.model.weight import STORED_DTYPES, extract
from refimpl.pruning.pruned_files import PrunedFiles, copies

Blocks = dict[int, dict[str, Decision]]


def decisions(model: Model, seed: int = 0, only: str | None = None) -> Blocks:
    """Random decisions about every linear, or about one of each block."""
    random = np.random.default_rng(seed)
    return {
        i: {
            name: Decision(random.random(shape) < 0.4)
            for name, shape in linears.items()
            if only in (None, name)
        }
        for i, linears in enumerate(model.config.linears)
    }


def expected_bytes(model: Model, blocks: Blocks) -> dict[str, bytes]:
    """The original's files with zero bytes where a weight goes."""
    raw = {file.path.name: bytearray(file.path.read_bytes()) for file in model.files}
    for i, linears in blocks.items():
        for name, decision in linears.items():
            weight = model.weights[f"blocks.{i}.{name}.weight"]
            stored, size = weight.stored, STORED_DTYPES[weight.stored.dtype].itemsize
            numbers = np.arange(np.prod(stored.shape)).reshape(stored.shape)
            for number in extract(numbers, weight.layout)[~decision.keep]:
                start = stored.offset + int(number) * size
                raw[stored.file.path.name][start : start + size] = bytes(size)
    return {name: bytes(content) for name, content in raw.items()}


def header_of(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]]


def same_to_the_library(one: Path, other: Path) -> None:
    """Names, their order, dtypes, shapes and metadata, as the safetensors library reads them."""
    with (
        safe_open(one, framework="np") as left,
        safe_open(other, framework="np") as right,
    ):
        assert list(left.keys()) == list(right.keys())
        assert left.offset_keys() == right.offset_keys()
        assert left.metadata() == right.metadata()
        for name in left.keys():  # noqa: SIM118
            slices = left.get_slice(name), right.get_slice(name)
            assert len({(s.get_dtype(), tuple(s.get_shape())) for s in slices}) == 1


@pytest.mark.parametrize("case", layouts([*CASES, "llama_sharded"]))
def test_nothing_but_the_pruned_weights_changes(case: str, tmp_path: Path) -> None:
    model = read_model(FIXTURES / case)
    blocks = decisions(model)
    found = write_pruned(model, tmp_path / "new", blocks)
    expected = expected_bytes(model, blocks)
    assert expected != expected_bytes(model, {})
    for name in expected:
        same_to_the_library(tmp_path / "new" / name, FIXTURES / case / name)
    whole = files(FIXTURES / case) | expected
    whole.pop("expected.safetensors", None)
    assert files(tmp_path / "new") == whole
    new = read_model(tmp_path / "new")
    for i, linears in blocks.items():
        before, after = model.block(i, "float64"), new.block(i, "float64")
        for name, decision in linears.items():
            kept = np.where(decision.keep, before[f"{name}.weight"], 0.0)
            np.testing.assert_array_equal(after[f"{name}.weight"], kept)
            lost, zeros = int((~decision.keep).sum()), int((kept == 0).sum())
            counts = found[i][name]
            assert (counts.weights, counts.pruned) == (kept.size, lost)
            assert (counts.zeros, counts.kept_zeros) == (zeros, zeros - lost)


@pytest.mark.parametrize("dtype", sorted(STORED_DTYPES))
def test_new_weights_are_rounded_to_the_stored_dtype(
    dtype: str, tmp_path: Path
) -> None:
    model = read_model(llama_of(tmp_path / "old", dtype, {"format": "pt"}))
    random = np.random.default_rng(1)
    blocks = {
        i: {
            n: replace(d, new=random.normal(size=d.keep.shape))
            for n, d in linears.items()
        }
        for i, linears in decisions(model).items()
    }
    write_pruned(model, tmp_path / "new", blocks)
    new = SafetensorsFile(tmp_path / "new" / "model.safetensors").tensors
    for name, weight in model.weights.items():
        array, expected = new[weight.stored.name].array, weight.stored.array
        assert array.dtype == expected.dtype == STORED_DTYPES[dtype]
        if name.endswith("_proj.weight"):
            _, i, linear, _ = name.split(".")
            decision = blocks[int(i)][linear]
            expected = np.where(decision.keep, decision.new, 0).astype(
                STORED_DTYPES[dtype]
            )
        assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", sorted(STORED_DTYPES))
def test_signs_of_pruned_and_kept_zeros(dtype: str, tmp_path: Path) -> None:
    arrays = {
        n: array.astype(STORED_DTYPES[dtype]) for n, array in arrays_of("llama").items()
    }
    name = "model.layers.1.mlp.down_proj.weight"
    arrays[name] = -arrays[name]
    arrays[name][:, ::3] = STORED_DTYPES[dtype].type(-0.0)
    model = read_model(write(tmp_path / "old", arrays, config_of("llama")))
    blocks = decisions(model, seed=4)
    found = write_pruned(model, tmp_path / "new", blocks)
    array = SafetensorsFile(tmp_path / "new" / "model.safetensors").tensors[name].array
    bits = array.view(f"u{array.itemsize}")
    keep = blocks[1]["down_proj"].keep
    assert not bits[~keep].any()
    minus = 1 << (8 * array.itemsize - 1)
    assert (bits[:, ::3][keep[:, ::3]] == minus).all()
    counts = found[1]["down_proj"]
    assert counts.kept_zeros == int(keep[:, ::3].sum()) > 0
    assert counts.zeros == counts.pruned + counts.kept_zeros == int((array == 0).sum())

    blocks[1]["down_proj"] = Decision(
        keep, np.full(keep.shape, -0.0)
    )  # also where recomputed
    found = write_pruned(model, tmp_path / "newer", blocks)
    array = (
        SafetensorsFile(tmp_path / "newer" / "model.safetensors").tensors[name].array
    )
    assert not array.view(f"u{array.itemsize}")[~keep].any()
    assert found[1]["down_proj"].zeros == keep.size


def test_weights_that_underflow_are_kept_zeros(tmp_path: Path) -> None:
    model = read_model(llama_of(tmp_path / "old", "F16"))
    blocks = decisions(model)
    keep = blocks[2]["k_proj"].keep
    rows = np.arange(len(keep))[:, None]
    blocks[2]["k_proj"] = Decision(keep, np.where(rows < 5, 1e-9, np.ones(keep.shape)))
    counts = write_pruned(model, tmp_path / "new", blocks)[2]["k_proj"]
    assert counts.kept_zeros == int(keep[:5].sum()) > 0
    assert counts.zeros == counts.pruned + counts.kept_zeros


@pytest.mark.parametrize("bad", [1e6, -1e6, np.nan, np.inf])
def test_weights_that_the_stored_dtype_cannot_hold(bad: float, tmp_path: Path) -> None:
    model = read_model(llama_of(tmp_path / "old", "F16"))
    blocks = decisions(model)
    keep = blocks[2]["k_proj"].keep.copy()
    keep[3, 4] = True
    values = np.where(keep, 1.0, bad)
    blocks[2]["k_proj"] = Decision(keep, values)
    write_pruned(model, tmp_path / "fine", blocks)  # what goes may be anything
    values[3, 4] = bad
    says = f"1 of {keep.size} new weights are NaN"
    refusal_of(write_pruned, model, tmp_path / "new", blocks, says=says)


def test_each_block_is_in_the_files_when_it_is_written(tmp_path: Path) -> None:
    model = read_model(FIXTURES / "llama_sharded")
    blocks, done, new = (
        decisions(model),
        Blocks(),
        PrunedFiles(model, tmp_path / "new", {}),
    )
    for i in (None, *reversed(blocks)):
        if i is not None:
            done[i] = blocks[i]
            new.write(i, as_decided(model, i, blocks[i]))
        assert expected_bytes(model, done).items() <= files(tmp_path / "new").items()


@needs_proc
def test_one_block_is_in_memory_at_a_time(tmp_path: Path) -> None:
    config = config_of(
        "llama", hidden_size=512, intermediate_size=2304, vocab_size=16000
    )
    folder = sparse(tmp_path / "m", config | {"num_hidden_layers": 12})  # 206 MB
    model, most = read_model(folder), 0
    shapes = model.config.linears[0].items()
    none_stays = {name: Decision(np.zeros(shape, bool)) for name, shape in shapes}
    room = (
        4 * int(model.config.block_sizes[0]) * 4
    )  # 14 MB, old and new and a few copies
    before, new = resident(), PrunedFiles(model, tmp_path / "new", {})
    for i in range(12):
        new.write(i, as_decided(model, i, none_stays))
        most = max(most, resident())
    assert most - before < room

    def note(*_: object) -> None:
        nonlocal most
        most = max(most, resident())

    before = most = resident()
    how: dict[str, Any] = {"threads": 1, "progress": note}
    prune(model, tmp_path / "out", Pattern(2, 4), PrunerOptions("magnitude"), **how)
    assert most - before < 1.5 * room  # 12 blocks have three times as much


@pytest.mark.parametrize(
    "metadata", [{}, {"made by": "us"}, {"format": "mlx", "a": "b"}]
)
def test_headers_stay_as_they_are(metadata: dict[str, str], tmp_path: Path) -> None:
    path = llama_of(tmp_path / "old", "BF16", metadata) / "model.safetensors"
    header, data = (
        json.loads(header_of(path)),
        path.read_bytes()[8 + len(header_of(path)) :],
    )
    write_raw(
        path, header, data, " " * ((3 - len(json.dumps(header))) % 8)
    )  # at any address
    model = read_model(path)
    blocks = decisions(model)
    write_pruned(model, tmp_path / "new", blocks)
    assert expected_bytes(model, blocks).items() <= files(tmp_path / "new").items()


def test_a_folder_takes_everything_along_but_other_weights(tmp_path: Path) -> None:
    old = shutil.copytree(FIXTURES / "llama", tmp_path / "old")
    along = {
        "generation_config.json",
        "merges.txt",
        "README.md",
        "LICENSE",
        "modeling.py",
        ".x",
    }
    for name in along:
        (old / name).write_text(name)
    left = {
        "pytorch_model.bin",
        "model.gguf",
        "x.ONNX",
        "x.onnx.data",
        "a.pt",
        "pruning.json",
    }
    left |= {
        "other.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
    }
    for name in left:
        (old / name).write_text("{}")
    (old / "onnx").mkdir()
    model = read_model(old)
    write_pruned(model, tmp_path / "new", decisions(model))
    beside = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    new = files(tmp_path / "new")
    assert new.keys() == along | beside | {"model.safetensors"}
    for name in along | beside:
        assert new[name] == (old / name).read_bytes()


def test_an_index_in_use_goes_along(tmp_path: Path) -> None:
    old = shutil.copytree(FIXTURES / "llama_sharded", tmp_path / "old")
    index = "model.safetensors.index.json"
    (old / "pytorch_model.bin.index.json").write_text("{}")
    (old / "notes.txt").write_text("mine")
    for path in (old, old / index):
        found = copies(read_model(path))
        assert sum(name.endswith(".safetensors") for name in found) == 4
        assert index in found
        assert "pytorch_model.bin.index.json" not in found
        assert ("notes.txt" in found) == path.is_dir()


def test_a_named_file_takes_the_known_companions_along(tmp_path: Path) -> None:
    old = shutil.copytree(FIXTURES / "llama", tmp_path / "old")
    (old / "model.safetensors").rename(old / "mine.safetensors")
    for name in ("LICENSE.txt", "vocab.json", "letter.txt", "x.index.json"):
        (old / name).write_text(name)
    model = read_model(old / "mine.safetensors")
    write_pruned(model, tmp_path / "new", decisions(model))
    beside = {
        "LICENSE.txt",
        "vocab.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert set(files(tmp_path / "new")) == beside | {"mine.safetensors"}


def test_the_config_that_was_read_is_the_one_that_goes_along(tmp_path: Path) -> None:
    old = shutil.copytree(FIXTURES / "llama", tmp_path / "old")
    other = tmp_path / "other.json"
    other.write_text(json.dumps(config_of("llama"), indent=7))
    (old / "config.json").write_text("broken")
    model = read_model(old, other)
    assert model.config_path == other
    write_pruned(model, tmp_path / "new", decisions(model))
    assert (tmp_path / "new" / "config.json").read_bytes() == other.read_bytes()
    assert (
        read_model(FIXTURES / "llama").config_path == FIXTURES / "llama" / "config.json"
    )


def test_a_config_in_the_metadata_stays_there(tmp_path: Path) -> None:
    old = llama_of(
        tmp_path / "old", "F32", {"config.json": json.dumps(config_of("llama"))}
    )
    (old / "config.json").unlink()
    model = read_model(old)
    assert model.config_path is None
    write_pruned(model, tmp_path / "new", decisions(model))
    assert set(files(tmp_path / "new")) == {"model.safetensors"}
    assert read_model(tmp_path / "new").config == model.config


@pytest.mark.parametrize(
    "where", ["models--org--name/blobs", "models--org--name/snapshots/1/x"]
)
def test_links_into_the_folder_or_its_repository_are_followed(
    where: str, tmp_path: Path
) -> None:
    blobs = shutil.copytree(FIXTURES / "llama_sharded", tmp_path / where)
    snapshot, new = tmp_path / "models--org--name/snapshots/1", tmp_path / "new"
    snapshot.mkdir(parents=True, exist_ok=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    model = read_model(snapshot)
    before, blocks = files(blobs), decisions(model)
    write_pruned(model, new, blocks)
    assert not any(path.is_symlink() for path in new.iterdir())
    assert files(blobs) == before
    assert files(new) == before | expected_bytes(model, blocks)
