"""GGUF files: the same weights, config and tokenizer as the checkpoint they were made from."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import FIXTURES
from gates import GATES, worst_point, worst_token
from gguf_files import DEFAULT_SIZES, RECIPES, Q, gguf_file
from program import ran
from refusals import refusal_of
from tables import cases

from refimpl import Model, forward, inspect, read_model
from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.pruning.inspection import read_record

PEERS = (
    "llama", "qwen2", "qwen3 with wide heads", "gemma2", "gemma3", "phi3", "gpt2", "nemotron",
    "starcoder2", "stablelm", "minimax-m2", *DEFAULT_SIZES,
)  # fmt: skip
"""What transformers reads; it drops the biases of Llama, and takes all heads of Qwen3 for 128."""
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
TYPES = [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q5_1]
FILES = [(name, kind) for name in RECIPES for kind in (TYPES if name == "llama" else TYPES[::3])]
FILES.append(("gpt-oss", Q.MXFP4))  # as its authors stored the experts
IDS = np.arange(2, 26).reshape(2, 12)


def assert_equal(ours: Model, theirs: Model, rounding: float = 0.0) -> None:
    """Check that two models have the same config and the same weights, bit by bit.

    Or up to so much of the largest weight of a tensor, with the same zeros.
    """
    assert ours.config == theirs.config
    assert ours.weights.keys() == theirs.weights.keys()
    for name, weight in theirs.weights.items():
        dtype = "f8" if weight.offset else "f4"
        mine, other = ours.weights[name].read(dtype), weight.read(dtype)
        np.testing.assert_array_equal(mine == 0, other == 0, name)
        size = rounding * float(np.abs(other).max())
        np.testing.assert_allclose(mine, other, rtol=0, atol=size, err_msg=name)
        rows = slice(1, 5)
        np.testing.assert_array_equal(
            ours.weights[name].read("f4", rows), ours.weights[name].read("f4")[rows], name
        )


@pytest.mark.parametrize(("name", "kind"), FILES, ids=str)
def test_a_file_holds_the_model_it_was_made_from(name: str, kind: Q, tmp_path: Path) -> None:
    model, hub = read_model(gguf_file(tmp_path, name, kind)), read_model(tmp_path / "hub")
    assert_equal(model, hub)
    ours, theirs = (forward(x, IDS, dtype="f8", trace=True) for x in (model, hub))
    for point, value in theirs.trace.items():  # GPT-2's matrices are stored the other way round
        size = np.abs(value).max()
        np.testing.assert_allclose(ours.trace[point], value, rtol=0, atol=1e-14 * size)
    assert kind.name in {w.stored.kind for w in model.weights.values()}


@pytest.mark.torch
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", PEERS)
def test_transformers_reads_the_same_from_the_file(name: str, kind: Q, tmp_path: Path) -> None:
    import torch
    import transformers

    path = gguf_file(tmp_path, name, kind, tokenizer=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file=path.name,
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    ours = read_model(path)
    # transformers does not read these facts from a GGUF file; llama.cpp computes with them
    for key, value in ours.config_file.items():
        if key in ("query_pre_attn_scalar", "attn_logit_softcapping", "sliding_window", "head_dim"):
            setattr(theirs.config, key, value)
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copyfile(tmp_path / "hub" / "config.json", tmp_path / "theirs" / "config.json")
    converted = read_model(tmp_path / "theirs")
    assert converted.config == ours.config
    for dtype, gate in GATES.items():
        expected = forward(converted, IDS, dtype=dtype, trace=True).trace
        actual = forward(ours, IDS, dtype=dtype, trace=True).trace
        assert worst_point(actual, expected)[0] <= gate
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", dtype=torch.float64, **EAGER
    )
    with torch.no_grad():
        logits = again(torch.tensor(IDS)).logits.numpy()
    assert (
        worst_token(forward(ours, IDS, dtype="f8").logits, logits) <= GATES["float32"]
    )  # of its float32 inside


@pytest.mark.parametrize("name", ["model.GGUF", "sha256-0f1e", "blob.bin"])
def test_a_file_is_known_by_its_first_bytes(name: str, tmp_path: Path) -> None:
    path = gguf_file(tmp_path, "llama")
    (tmp_path / "blobs").mkdir()
    blob = path.rename(tmp_path / "blobs" / name)
    assert_equal(read_model(blob), read_model(tmp_path / "hub"))


def test_a_split_model(tmp_path: Path) -> None:
    first = gguf_file(tmp_path, "llama", shard_tensors=10)
    model = read_model(first)
    assert len(model.files) > 1
    assert_equal(model, read_model(tmp_path / "hub"))
    shards = sorted(tmp_path.glob("*.gguf"))
    refusal_of(read_model, shards[1], says="one of")
    shards[1].rename(tmp_path / "away")
    refusal_of(read_model, first, says="missing", remedy="download")
    shutil.copyfile(shards[2], shards[1])
    refusal_of(read_model, first, says="not file 1")


def test_an_old_file_of_deepseek_has_keys_and_values_as_one(tmp_path: Path) -> None:
    old = {"attention.key_length": 10, "attention.value_length": 7}

    def change(writer: gguf.GGUFWriter) -> None:
        hub = SafetensorsFile(tmp_path / "hub" / "model.safetensors").tensors
        for i, name in enumerate(x for x in hub if "kv_b_proj" in x):
            for part in "kv":
                del writer.tensors[0][f"blk.{i}.attn_{part}_b.weight"]
            writer.add_tensor(f"blk.{i}.attn_kv_b.weight", hub[name].array)
        for key, size in old.items():
            del writer.kv_data[0][f"deepseek2.{key}_mla"]
            writer.add_uint32(f"deepseek2.{key}", size)

    path = gguf_file(tmp_path, "deepseek2", Q.F32, change=change)
    assert_equal(read_model(path), read_model(tmp_path / "hub"))


@pytest.mark.parametrize(("name", "tensor"), [("mixtral", "up"), ("granitemoe", "gate")])
@pytest.mark.parametrize("count", [4, 6])
def test_stacks_of_another_number_of_experts(
    name: str, tensor: str, count: int, tmp_path: Path
) -> None:
    path = gguf_file(tmp_path, name, change=lambda writer: writer.add_expert_count(count))
    error = refusal_of(read_model, path, says="between its tensors and config.json")
    assert ("missing" in str(error)) == (name == "mixtral" and count == 6)
    assert (f"ffn_{tensor}_exps.4.weight: no role" in str(error)) == (
        name == "mixtral" and count == 4
    )
    if name == "granitemoe":
        assert f"input_linear.weight: expected shape [{count}, 128, 32], got [5, 128, 32]" in str(
            error
        )


def test_rows_are_looked_up_without_the_table(tmp_path: Path) -> None:
    model, hub = read_model(gguf_file(tmp_path, "llama", Q.Q4_0)), read_model(tmp_path / "hub")
    table, expected = (x.embedding()["embed.weight"] for x in (model, hub))
    ids = np.array([[5, 5, 0], [7, 263, 1]])
    assert not isinstance(table, np.ndarray)
    np.testing.assert_array_equal(np.take(table, ids, axis=0), np.take(expected, ids, axis=0))
    np.testing.assert_array_equal(np.asarray(table), expected)
    with pytest.raises(TypeError):
        np.sum(table)


def test_commands_read_a_file(tmp_path: Path) -> None:
    path = gguf_file(tmp_path, "llama", tokenizer=True)
    text = ("--text", FIXTURES / "text.txt")
    words = (*text, "--samples", 2, "--seq-len", 16, "--json")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(FIXTURES / "llama" / file, tmp_path / "hub" / file)
    ours, theirs = (json.loads(ran("score", x, *words))["scores"] for x in (path, tmp_path / "hub"))
    assert ours["model"] == path.stem
    assert ours["tokens"]["sha256"] == theirs["tokens"]["sha256"]
    assert ours["sweep"] == theirs["sweep"]
    assert inspect(read_model(path)).blocks[0]["q_proj"].dtype == "Q8_0"
    assert "Q8_0" in ran("inspect", path)


@pytest.mark.parametrize(("name", "method"), cases("loading", "pruned_gguf"))
def test_pruning_writes_safetensors(name: str, method: str, tmp_path: Path) -> None:
    path = gguf_file(tmp_path, name)
    error = 1e-6 if method == "sparsegpt" else 0.0  # sums in another order
    ours = pruned_alike(path, path, tmp_path / "hub", method, {"Q8_0": "float32"}, error)
    assert sorted(p.name for p in ours.iterdir()) == [
        "config.json", "model.safetensors", "pruning.json"
    ]  # fmt: skip
    assert SafetensorsFile(ours / "model.safetensors").metadata == {"format": "pt"}


def pruned_alike(
    model: Path, file: Path, plain: Path, method: str, kinds: dict[str, str], error: float = 0.0
) -> Path:
    """What pruning writes of a quantised model: as of the same weights stored plainly."""
    before, ((kind, dtype),) = file.read_bytes(), kinds.items()
    calibration = () if method == "magnitude" else ("--tokens", plain.parent / "ids.npy")
    np.save(plain.parent / "ids.npy", IDS)
    outs = [plain.parent / name for name in ("ours", "theirs")]
    for path, out in zip((model, plain), outs, strict=True):
        shown = ran("prune", path, "--nm", "2:4", "--pruner", method, *calibration, "-o", out)
        said = f"de-quantised in model.safetensors: {kind} is {dtype}" in " ".join(shown.split())
        assert said == (path == model)
    assert file.read_bytes() == before
    ours, theirs = map(read_model, outs)
    assert_equal(ours, theirs, error)
    record = read_record(ours)
    assert record is not None
    assert record["files"]["dequantised"] == kinds
    return outs[0]


@pytest.mark.torch
@pytest.mark.parametrize("name", RECIPES)
def test_transformers_loads_what_pruning_writes(name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    path = gguf_file(tmp_path, name, tokenizer=True)
    ran("prune", path, "--nm", "2:4", "--pruner", "magnitude", "-o", tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float64, **EAGER
    )
    ours = forward(read_model(tmp_path / "out"), IDS, dtype="f8").logits
    with torch.no_grad():
        assert (
            worst_token(ours, theirs(torch.tensor(IDS)).logits.numpy()) <= GATES["float32"]
        )  # of its float32 inside
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    original = transformers.AutoTokenizer.from_pretrained(FIXTURES / "llama")
    text = "the quick brown fox 123"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == original(text, add_special_tokens=False)["input_ids"]
