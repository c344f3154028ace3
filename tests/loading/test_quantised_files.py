"""FP8 and MXFP4 checkpoints: the same values as written out by hand, and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoints import config_of, save_tensors, write
from gates import GATES, worst_point
from hypothesis import given
from hypothesis import strategies as st
from program import ran
from quantised_files import (
    BF16,
    E4M3,
    FP8,
    QWEN,
    Fp8,
    fp8_arrays,
    fp8_model,
    mxfp4_arrays,
    mxfp4_model,
    unpacked,
)
from refusals import refusal_of
from safetensors.numpy import load_file, save_file
from strategies import json_like
from test_gguf import assert_equal, pruned_alike

from refimpl import RefimplError, forward, read_model
from refimpl.loading.files.quantisation import Packed, read_quantisation
from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.model.ops import Array

BLOCKS = FP8["blocks"]
IDS = np.arange(2, 26).reshape(2, 12)


@pytest.mark.parametrize("name", FP8)
def test_fp8_is_read_as_the_product_of_weight_and_factor(name: str, tmp_path: Path) -> None:
    quantised, plain = map(read_model, fp8_model(tmp_path, FP8[name]))
    assert_equal(quantised, plain)
    assert {w.stored.kind for w in quantised.weights.values()} == {"F32", "FP8"}
    assert quantised.config == plain.config


def test_mxfp4_is_read_exactly(tmp_path: Path) -> None:
    quantised, plain = map(read_model, mxfp4_model(tmp_path))
    assert_equal(quantised, plain)
    assert {w.stored.kind for w in quantised.weights.values()} == {"BF16", "MXFP4"}
    ours, theirs = (forward(x, IDS, dtype="f8", trace=True) for x in (quantised, plain))
    assert worst_point(ours.trace, theirs.trace)[0] < GATES["float64"]  # other strides of experts


def test_every_byte_of_e4m3(tmp_path: Path) -> None:
    arrays, _ = fp8_arrays(FP8["per tensor"])
    name = "model.layers.0.self_attn.q_proj.weight"
    arrays[name] = np.arange(1024).astype(np.uint8).reshape(32, 32).view(ml_dtypes.float8_e4m3fn)
    arrays[f"{name}_scale_inv"] = np.array(0.3, np.float32)
    model = read_model(write(tmp_path, arrays, config_of("llama", quantization_config=QWEN)))
    found = model.weights["blocks.0.q_proj.weight"].stored.rows(slice(8))
    np.testing.assert_array_equal(found.reshape(-1), E4M3 * np.float32(0.3))


def test_every_byte_of_mxfp4(tmp_path: Path) -> None:
    scales = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    blocks = np.arange(4096).astype(np.uint8).reshape(1, 256, 1, 16)
    save_file({"b": blocks, "s": scales}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    b, s = file.tensors["b"], file.tensors["s"]
    found = Packed(file, "x", "BF16", (1, 32, 256), b.offset, b, s).array.astype(np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(found, unpacked(blocks, scales))
    assert np.isnan(found[..., 255]).all()
    assert np.isfinite(found[..., :253]).all()
    assert found[..., 0].any()  # numbers below the smallest normal one


def test_weight_and_scale_may_be_in_different_shards(tmp_path: Path) -> None:
    quantised, plain = fp8_model(tmp_path, BLOCKS)
    tensors, _ = fp8_arrays(BLOCKS)
    (quantised / "model.safetensors").unlink()
    shards: dict[str, dict[str, Array]] = {"a.safetensors": {}, "b.safetensors": {}}
    for name, array in tensors.items():
        shards["b.safetensors" if name.endswith("inv") else "a.safetensors"][name] = array
    for shard, part in shards.items():
        save_tensors(quantised / shard, part)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (quantised / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    (quantised / "tokenizer.json").write_text("{}", "utf-8")
    assert_equal(read_model(quantised), read_model(plain))
    ran("prune", quantised, "--nm", "2:4", "--pruner", "magnitude", "-o", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "pruning.json", "tokenizer.json"}
    record = json.loads((tmp_path / "out" / "pruning.json").read_text("utf-8"))
    assert record["files"]["left_out"] == ["model.safetensors.index.json"]


@pytest.mark.parametrize(
    ("make", "kinds", "dtype"),
    [
        (lambda folder: fp8_model(folder, BLOCKS), {"FP8": "float32"}, "float32"),
        (mxfp4_model, {"MXFP4": "bfloat16"}, "bfloat16"),
    ],
    ids=["FP8", "MXFP4"],
)
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_pruning_writes_what_it_writes_for_plain_weights(
    make: Callable[[Path], tuple[Path, Path]],
    kinds: dict[str, str],
    dtype: str,
    method: str,
    tmp_path: Path,
) -> None:
    quantised, plain = make(tmp_path)
    file = quantised / "model.safetensors"
    ours = pruned_alike(quantised, file, plain, method, kinds)
    stored = [load_file(tmp_path / x / "model.safetensors") for x in ("ours", "theirs")]
    mine, right = ({name: x.dtype for name, x in arrays.items()} for arrays in stored)
    assert mine == right
    config = json.loads((ours / "config.json").read_text("utf-8"))
    assert "quantization_config" not in config
    assert config["dtype"] == dtype


Q = "model.layers.0.self_attn.q_proj.weight"
S = f"{Q}_scale_inv"
UP = "model.layers.1.mlp.experts.gate_up_proj"


def other_dtype(name: str, dtype: Any) -> Callable[[dict[str, Array]], object]:
    return lambda a: a.update({name: a[name].astype(np.float32).astype(dtype)})


HOSTILE_FP8: dict[str, tuple[Callable[[dict[str, Array]], object], str]] = {
    "no scale": (lambda a: a.pop(S), f"{Q}: F8_E4M3 without {S}"),
    "a block too few": (
        lambda a: a.update({S: a[S][:, :2]}), f"{S}: expected shape [2, 3], got [2, 2]"),
    "a scale for all": (
        lambda a: a.update({S: np.ones(1, "f4")}), f"{S}: expected shape [2, 3], got [1]"),
    "a scale of bytes": (
        other_dtype(S, np.uint8), f"{S}: expected F64, F32, F16, BF16, got U8"),
    "E5M2": (
        other_dtype(Q, ml_dtypes.float8_e5m2),
        f"{Q}: expected F8_E4M3 of 2 axes beside {S}, got F8_E5M2 [32, 32]"),
    "a weight that is not quantised": (
        other_dtype(Q, np.float32),
        f"{Q}: expected F8_E4M3 of 2 axes beside {S}, got F32 [32, 32]"),
    "no weight": (lambda a: a.pop(Q), f"{Q}: expected F8_E4M3 of 2 axes beside {S}, got no tensor"),
}  # fmt: skip


HOSTILE_MXFP4: dict[str, tuple[Callable[[dict[str, Array]], object], str]] = {
    "no scales": (lambda a: a.pop(f"{UP}_scales"), f"{UP}_scales: missing"),
    "no blocks": (lambda a: a.pop(f"{UP}_blocks"), f"{UP}_blocks: missing"),
    "a power too few": (
        lambda a: a.update({f"{UP}_scales": a[f"{UP}_scales"][:, 1:]}),
        f"{UP}_scales: expected shape [5, 128, 1], got [5, 127, 1]"),
    "blocks of 15 bytes": (
        lambda a: a.update({f"{UP}_blocks": a[f"{UP}_blocks"][..., :15]}),
        f"{UP}_blocks: expected shape [E, out, in / 32, 16], got [5, 128, 1, 15]"),
    "powers in float32": (
        other_dtype(f"{UP}_scales", np.float32), f"{UP}_blocks: expected U8 and U8, got U8, F32"),
    "stored twice": (
        lambda a: a.update({UP: np.ones((5, 32, 128), "f4")}),
        f"{UP}: stored twice, once as {UP}_blocks"),
    "too narrow": (
        lambda a: a.update({f"{UP}_{x}": a[f"{UP}_{x}"][:, 2:] for x in ("blocks", "scales")}),
        f"{UP}: expected shape [5, 32, 128], got [5, 32, 126]"),
}  # fmt: skip


def changed(kind: str, change: Callable[[dict[str, Array]], object], folder: Path) -> Path:
    mxfp4 = kind == "MXFP4"
    arrays, _ = mxfp4_arrays() if mxfp4 else fp8_arrays(BLOCKS)
    change(arrays := {name: x.copy() for name, x in arrays.items()})
    how = {"quant_method": "mxfp4"} if mxfp4 else dict(BLOCKS.config)
    case, more = ("gpt_oss", {"intermediate_size": 64}) if mxfp4 else ("llama", {})
    return write(folder, arrays, config_of(case, quantization_config=how, **more))


HOSTILE = {"FP8": HOSTILE_FP8, "MXFP4": HOSTILE_MXFP4}


@pytest.mark.parametrize(("kind", "name"), [(x, name) for x in HOSTILE for name in HOSTILE[x]])
def test_what_is_not_whole(kind: str, name: str, tmp_path: Path) -> None:
    change, line = HOSTILE[kind][name]
    error = refusal_of(read_model, changed(kind, change, tmp_path))
    assert error.problem.split("\n  ")[1:] == [line]


@pytest.mark.parametrize(
    ("kind", "name", "at", "value", "says"),
    [  # of 16 rows and the last 8 columns; of row 7 of both, as gate and up alternate
        ("FP8", S, (1, 2), np.nan, f"{Q} holds 128 NaN or Inf among 1024 weights"),
        ("MXFP4", f"{UP}_scales", (3, 7), 255, f"{UP} holds 32 NaN or Inf among 2048 weights"),
    ],
)
def test_a_factor_that_is_nan_is_counted(
    kind: str, name: str, at: tuple[int, int], value: float, says: str, tmp_path: Path
) -> None:
    path = changed(kind, lambda arrays: arrays[name].__setitem__(at, value), tmp_path)
    assert refusal_of(forward, read_model(path), IDS).problem.endswith(says)


REFUSED: dict[str, tuple[Any, str]] = {
    **{
        method: ({"quant_method": method, "bits": 4}, f"that is quantised by {method}")
        for method in ("gptq", "awq", "bitsandbytes", "fbgemm_fp8", "hqq", "torchao", "quanto",
                       "nvfp4", "mxfp8", "compressed-tensors", "")
    },
    "no method": ({"bits": 4}, "that is quantised$"),
    "a method that is no word": ({"quant_method": ["fp8"]}, "that is quantised$"),
    "no object": (["fp8"], "that is quantised$"),
    "E5M2": (QWEN | {"fmt": "e5m2"}, "fmt: only e4m3 or .* is supported, got 'e5m2'"),
    "FP4 experts": (QWEN | {"expert_dtype": "fp4"}, "expert_dtype: only fp8"),
    "an unknown key": (QWEN | {"rotation": 3}, r"rotation: not understood \(value 3\)"),
    **{
        f"a block of {size}": (QWEN | {"weight_block_size": size}, "rows and columns of a block")
        for size in ([128], [0, 128], [1, True], "128", [1.5, 2], [2**40, 1], [-1, 4], 128)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_quantisation_is_refused_by_name(name: str, tmp_path: Path) -> None:
    how, pattern = REFUSED[name]
    arrays, _ = fp8_arrays(BLOCKS)
    folder = write(tmp_path, arrays, config_of("llama", quantization_config=how))
    error = refusal_of(read_model, folder)
    assert re.search(pattern, error.problem), error.problem
    assert error.problem.count("\n") <= 1
    assert "quantise" in error.remedy


WORDS = ["fp8", "mxfp4", "e4m3", "dynamic", 8]
CONFIG_KEYS = ["quant_method", "weight_block_size", "fmt", "expert_dtype", "activation_scheme"]
ANY = json_like(st.sampled_from(WORDS), st.sampled_from(CONFIG_KEYS) | st.text(max_size=3))


@given(ANY, st.sampled_from([{}, *(dict(how.config) for how in FP8.values())]))
def test_any_quantization_config_is_read_or_refused(value: Any, right: dict[str, Any]) -> None:
    mixed = {**right, **value} if isinstance(value, dict) else value
    try:
        found = read_quantisation({"quantization_config": mixed}, "config.json")
    except RefimplError:
        return
    assert found is None or all(len(block) == 2 for block in found)


def test_a_config_that_promises_what_no_tensor_is(tmp_path: Path) -> None:
    _, arrays = fp8_arrays(BLOCKS)
    for how in (QWEN, {"quant_method": "mxfp4"}):
        folder = write(tmp_path, arrays, config_of("llama", quantization_config=how))
        error = refusal_of(read_model, folder)
        assert "as quantization_config of config.json says" in error.problem


def test_fp8_without_a_word_in_the_config(tmp_path: Path) -> None:
    arrays, _ = fp8_arrays(BLOCKS)
    error = refusal_of(read_model, write(tmp_path, arrays, config_of("llama")))
    assert "is a quantised checkpoint (56 tensors such as" in error.problem


EVEN = QWEN | {"weight_block_size": [4, 4]}  # transformers wants whole blocks
PEERS = {
    "blocks": Fp8(EVEN, (4, 4)),
    "bfloat16 scales": Fp8(EVEN, (4, 4), dtype=BF16),
    "per tensor": FP8["per tensor"],
    "MXFP4": None,
}


@pytest.mark.torch
@pytest.mark.parametrize("name", PEERS)
def test_transformers_reads_the_same_values(name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    how = PEERS[name]
    folder, _ = mxfp4_model(tmp_path) if how is None else fp8_model(tmp_path, how)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    ours = read_model(folder)
    state = {n: x.numpy() for n, x in theirs.state_dict().items()}
    seen = {weight.stored.name for weight in ours.weights.values()}
    assert seen <= state.keys()
    for weight in ours.weights.values():
        right = state[weight.stored.name]
        np.testing.assert_array_equal(weight.stored.array.astype("f4"), right, weight.stored.name)
    ran("prune", folder, "--nm", "2:4", "--pruner", "magnitude", "-o", tmp_path / "out")
    pruned, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values())
    again = {n: x.float().numpy() for n, x in pruned.state_dict().items()}
    for weight in read_model(tmp_path / "out").weights.values():
        right = again[weight.stored.name]
        np.testing.assert_array_equal(weight.stored.array.astype("f4"), right, weight.stored.name)


@pytest.mark.torch
def test_torch_multiplies_uneven_blocks_the_same(tmp_path: Path) -> None:
    import torch
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    folder, _ = fp8_model(tmp_path, BLOCKS)
    arrays, _ = fp8_arrays(BLOCKS)
    weight = torch.tensor(arrays[Q].view(np.uint8)).view(torch.float8_e4m3fn)
    right = _dequantize_fp8_weight(weight, torch.tensor(arrays[S]), [16, 12], torch.float32)
    found = read_model(folder).weights["blocks.0.q_proj.weight"].read("f4")
    np.testing.assert_array_equal(found, right.numpy())
