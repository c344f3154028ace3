"""GGUF files: the same weights, config and tokenizer as the checkpoint they were made from."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import FIXTURES
from gates import GATES, worst_token
from gguf_files import RECIPES, Q, gguf_file
from processes import ENV, PROGRAM
from program import ran, run
from refusals import refusal_of
from safetensors.numpy import load_file

from refimpl import Model, forward, read_model
from refimpl.convert.conversion import FloatDtype, convert

EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
TYPES = [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q5_1]
FILES = [
    (name, kind)
    for name in RECIPES
    for kind in (TYPES if name == "llama" else TYPES[::3])
]
IDS = np.arange(2, 26).reshape(2, 12)


def converted(source: Path, dtype: FloatDtype | None = None, name: str = "out") -> Path:
    convert(source, source.parent / name, dtype)
    return source.parent / name


def assert_equal(ours: Model, theirs: Model) -> None:
    """Check that two models have the same config and the same weights, bit by bit."""
    assert ours.config == theirs.config
    assert ours.weights.keys() == theirs.weights.keys()
    for name, weight in theirs.weights.items():
        dtype = "f8" if weight.offset else "f4"
        np.testing.assert_array_equal(
            ours.weights[name].read(dtype), weight.read(dtype), name
        )


@pytest.mark.parametrize(("name", "kind"), FILES, ids=str)
def test_a_folder_holds_the_model_that_the_file_was_made_from(
    name: str, kind: Q, tmp_path: Path
) -> None:
    out = converted(path := gguf_file(tmp_path, name, kind))
    assert_equal(read_model(out), read_model(tmp_path / "hub"))
    assert kind in {tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}


def test_16_bits_stay_16_bits(tmp_path: Path) -> None:
    for kind, dtype in ((Q.F16, "float16"), (Q.BF16, "bfloat16"), (Q.Q8_0, "float32")):
        out = converted(gguf_file(tmp_path, "llama", kind), name=dtype)
        assert json.loads((out / "config.json").read_text("utf-8"))["dtype"] == dtype
        dtypes = {
            name: x.dtype for name, x in load_file(out / "model.safetensors").items()
        }
        assert dtypes["model.layers.0.mlp.up_proj.weight"] == dtype
        assert dtypes["model.norm.weight"] == "float32"  # as in the file


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_weights_in_the_dtype_that_is_asked_for(
    dtype: FloatDtype, tmp_path: Path
) -> None:
    path = gguf_file(tmp_path, "llama", Q.Q4_0)
    exact, rounded = (converted(path, x, str(x)) for x in (None, dtype))
    wide, narrow = (read_model(x).weights for x in (exact, rounded))
    for name, weight in narrow.items():
        stored = weight.stored.array
        assert stored.dtype == dtype
        right = wide[name].stored.array.astype(stored.dtype)
        np.testing.assert_array_equal(stored.view("u1"), right.view("u1"), name)
    assert json.loads((rounded / "config.json").read_text("utf-8"))["dtype"] == dtype


def test_values_beyond_the_range_of_the_dtype(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.tensors[0]["output_norm.weight"].tensor[0] = 70000.0

    path = gguf_file(tmp_path, "llama", change=change)
    says = "model.norm.weight has 1 values that are NaN or Inf in float16"
    refusal_of(convert, path, tmp_path / "out", "float16", says=says, remedy="float32")
    assert not (tmp_path / "out").exists()
    assert read_model(converted(path, "bfloat16")).config.num_blocks == 4


def test_progress_is_of_all_bytes(tmp_path: Path) -> None:
    seen = list[tuple[int, int]]()
    path = gguf_file(tmp_path, "granitemoe", Q.Q4_0)
    convert(path, tmp_path / "out", progress=lambda *of: seen.append(of))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.torch
@pytest.mark.parametrize("name", RECIPES)
def test_transformers_loads_what_is_written(name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    out = converted(gguf_file(tmp_path, name, tokenizer=True))
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float64, output_loading_info=True, **EAGER
    )
    assert not any(info.values())
    ours = forward(read_model(out), IDS, dtype="f8").logits
    with torch.no_grad():
        logits = theirs(torch.tensor(IDS)).logits.numpy()
    assert worst_token(ours, logits) <= GATES["float32"]  # of its float32 inside
    tokenizers = map(
        transformers.AutoTokenizer.from_pretrained, (out, FIXTURES / "llama")
    )
    text = "the quick brown fox 123"
    ids, right = (x(text, add_special_tokens=False)["input_ids"] for x in tokenizers)
    assert ids == right


@pytest.mark.parametrize("name", ["model.GGUF", "sha256-0f1e", "blob.bin"])
def test_a_file_is_known_by_its_first_bytes(name: str, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    blob = gguf_file(tmp_path, "llama").rename(tmp_path / "blobs" / name)
    for words in (["score"], ["inspect"], ["eval", "--text", FIXTURES / "text.txt"]):
        refused = run(words[0], blob, *words[1:])
        assert (refused.code, refused.err.count("\n")) == (2, 3)
        assert f"next: refimpl convert {blob} -o FOLDER" in refused.err
    assert_equal(read_model(converted(blob)), read_model(tmp_path / "hub"))


def test_no_file_appears_at_home(tmp_path: Path) -> None:
    """docs/explanation/safety.md has what a tracer saw."""
    path, home = gguf_file(tmp_path, "llama", tokenizer=True), tmp_path / "home"
    home.mkdir()
    command = [*PROGRAM, "convert", str(path), "-o", str(tmp_path / "out")]
    subprocess.run(
        command, env=ENV | {"HOME": str(home)}, check=True, capture_output=True
    )
    assert [*home.rglob("*")] == []


def test_a_split_model(tmp_path: Path) -> None:
    first, out = gguf_file(tmp_path, "llama", shard_tensors=10), tmp_path / "x"
    assert_equal(read_model(converted(first)), read_model(tmp_path / "hub"))
    shards = sorted(tmp_path.glob("*.gguf"))
    refusal_of(convert, shards[1], out, says="pass the first")
    shards[1].rename(tmp_path / "away")
    refusal_of(convert, first, out, says=shards[1].name)
    shutil.copyfile(shards[2], shards[1])
    refusal_of(convert, first, out, says=shards[1].name)
    shards[1].unlink()
    os.mkfifo(shards[1])
    refusal_of(convert, first, out, says=shards[1].name)


@pytest.mark.parametrize("name", ["mixtral", "granitemoe"])
@pytest.mark.parametrize("count", [4, 6])
def test_stacks_of_another_number_of_experts(
    name: str, count: int, tmp_path: Path
) -> None:
    path = gguf_file(
        tmp_path, name, change=lambda writer: writer.add_expert_count(count)
    )
    refusal_of(
        convert, path, tmp_path / "out", says="between its tensors and config.json"
    )


def test_commands_use_a_converted_file(tmp_path: Path) -> None:
    path = gguf_file(tmp_path, "llama", tokenizer=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(FIXTURES / "llama" / file, tmp_path / "hub" / file)
    out = tmp_path / "out"
    assert "Q8_0: float32 (exact)" in ran("convert", path, "-o", out)
    assert f"-o {out} exists" in run("convert", path, "-o", out).err
    done = json.loads(ran("convert", path, "-o", out, "--force", "--json"))[
        "conversion"
    ]
    assert done["dtypes"] == {"F32": "float32", "Q8_0": "float32"}
    words = ("--text", FIXTURES / "text.txt", "--samples", 2, "--seq-len", 16, "--json")
    ours, theirs = (
        json.loads(ran("score", x, *words))["scores"] for x in (out, tmp_path / "hub")
    )
    assert ours["tokens"]["sha256"] == theirs["tokens"]["sha256"]
    assert ours["sweep"] == theirs["sweep"]
    ran("prune", out, "--nm", "2:4", "--pruner", "magnitude", "-o", tmp_path / "pruned")
    names = {file.name for file in out.iterdir()}
    assert names == {file.name for file in (tmp_path / "pruned").iterdir()} - {
        "pruning.json"
    }
    assert (
        load_file(out / "model.safetensors").keys()
        == load_file(tmp_path / "pruned" / "model.safetensors").keys()
    )
