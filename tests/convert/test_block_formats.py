"""FP8 and MXFP4 checkpoints: the same values as written out by hand, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoints import config_of, save_tensors, write
from hypothesis import given
from hypothesis import strategies as st
from program import ran, run
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
from safetensors.numpy import load_file
from strategies import json_like
from test_gguf import assert_equal, converted

from refimpl import read_model
from refimpl.convert.block_formats import (
    converted_blocks,
    scaled_weight,
    unpacked_experts,
)
from refimpl.convert.conversion import convert
from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.model.ops import Array

BLOCKS = FP8["blocks"]
Q = "model.layers.0.self_attn.q_proj.weight"
S = f"{Q}_scale_inv"
UP = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.mark.parametrize("name", [*FP8, "MXFP4"])
def test_a_folder_holds_the_products(name: str, tmp_path: Path) -> None:
    mxfp4 = name == "MXFP4"
    quantised, plain = (
        mxfp4_model(tmp_path) if mxfp4 else fp8_model(tmp_path, FP8[name])
    )
    (quantised / "tokenizer.json").write_text("{}", "utf-8")
    refused = run("score", quantised)
    assert (refused.code, refused.err.count("\n")) == (2, 3)
    assert f"next: refimpl convert {quantised} -o FOLDER" in refused.err
    kind, dtype = ("MXFP4", "bfloat16") if mxfp4 else ("FP8", "float32")
    assert f"{kind}: {dtype} (exact)" in ran(
        "convert", quantised, "-o", tmp_path / "out"
    )
    assert_equal(read_model(tmp_path / "out"), read_model(plain))
    stored, right = (
        load_file(x / "model.safetensors") for x in (tmp_path / "out", plain)
    )
    assert {n: x.dtype for n, x in stored.items()} == {
        n: x.dtype for n, x in right.items()
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert "quantization_config" not in config
    assert config["dtype"] == dtype
    assert (tmp_path / "out" / "tokenizer.json").read_text("utf-8") == "{}"


@given(data=st.data())
def test_any_fp8_is_weight_times_factor(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows, columns, height, across, seed = (
        data.draw(st.integers(1, n)) for n in (9, 9, 5, 5, 99)
    )
    rng = np.random.default_rng(seed)
    stored = rng.integers(0, 256, (rows, columns)).astype(np.uint8)
    scales = rng.standard_normal((-(-rows // height), -(-columns // across))).astype(
        np.float32
    )
    file = opened(tmp_path_factory, w=stored.view(ml_dtypes.float8_e4m3fn), s=scales)
    with np.errstate(all="ignore"):
        (found,) = scaled_weight(file.tensors["w"], file.tensors["s"], (height, across))
    right = [
        [E4M3[stored[i, j]] * scales[i // height, j // across] for j in range(columns)]
        for i in range(rows)
    ]
    np.testing.assert_array_equal(found, right)


def opened(factory: pytest.TempPathFactory, **arrays: Array) -> SafetensorsFile:
    path = factory.getbasetemp() / "x.safetensors"
    save_tensors(path, arrays)
    return SafetensorsFile(path)


def test_every_byte_of_mxfp4(tmp_path_factory: pytest.TempPathFactory) -> None:
    scales = np.arange(256, dtype=np.uint8).reshape(2, 128, 1)
    blocks = np.arange(4096).astype(np.uint8).reshape(2, 128, 1, 16)
    file = opened(tmp_path_factory, b=blocks, s=scales)
    with np.errstate(all="ignore"):
        experts = np.stack([*unpacked_experts(file.tensors["b"], file.tensors["s"])])
        found = experts.astype(np.float32)
        np.testing.assert_array_equal(found, unpacked(blocks, scales))
    assert np.isnan(found[1, :, 127]).all()
    assert found[0, :, 0].any()  # numbers below the smallest normal one


def test_weight_and_scale_may_be_in_different_shards(tmp_path: Path) -> None:
    quantised, plain = fp8_model(tmp_path, BLOCKS)
    tensors, _ = fp8_arrays(BLOCKS)
    (quantised / "model.safetensors").unlink()
    shard_of = {
        x: "b.safetensors" if x.endswith("inv") else "a.safetensors" for x in tensors
    }
    for shard in set(shard_of.values()):
        save_tensors(
            quantised / shard, {x: tensors[x] for x in tensors if shard_of[x] == shard}
        )
    index = json.dumps({"metadata": {}, "weight_map": shard_of})
    (quantised / "model.safetensors.index.json").write_text(index, "utf-8")
    assert_equal(read_model(converted(quantised)), read_model(plain))
    assert {x.name for x in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def other_dtype(name: str, dtype: Any) -> Callable[[dict[str, Array]], object]:
    return lambda a: a.update({name: a[name].astype(np.float32).astype(dtype)})


HOSTILE: dict[str, tuple[Callable[[dict[str, Array]], object], str]] = {
    "no scale": (lambda a: a.pop(S), f"{Q}: F8_E4M3 without its scales"),
    "a block too few": (
        lambda a: a.update({S: a[S][:, :2]}),
        f"{S}: expected floats in the shape [2, 3]",
    ),
    "a scale for all": (
        lambda a: a.update({S: np.ones(1, "f4")}),
        f"{S}: expected floats in the shape [2, 3]",
    ),
    "a scale of bytes": (
        other_dtype(S, np.uint8),
        f"{S}: expected floats in the shape [2, 3]",
    ),
    "E5M2": (
        other_dtype(Q, ml_dtypes.float8_e5m2),
        f"{Q}: expected F8_E4M3 of 2 axes beside {S}",
    ),
    "a weight that is not quantised": (
        other_dtype(Q, np.float32),
        f"{Q}: expected F8_E4M3",
    ),
    "no weight": (lambda a: a.pop(Q), f"{Q}: expected F8_E4M3"),
    "a scale of -inf": (
        lambda a: a[S].__setitem__((1, 2), -np.inf),
        f"{Q} has 128 values that are NaN or Inf",
    ),
    "no powers": (
        lambda a: a.pop(f"{UP}_scales"),
        f"{UP}: expected U8 [E, out, in / 32, 16]",
    ),
    "no blocks": (lambda a: a.pop(f"{UP}_blocks"), f"{UP}: expected U8"),
    "a power too few": (
        lambda a: a.update({f"{UP}_scales": a[f"{UP}_scales"][:, 1:]}),
        f"{UP}: expected U8",
    ),
    "blocks of 15 bytes": (
        lambda a: a.update({f"{UP}_blocks": a[f"{UP}_blocks"][..., :15]}),
        f"{UP}: expected U8",
    ),
    "powers in float32": (
        other_dtype(f"{UP}_scales", np.float32),
        f"{UP}: expected U8",
    ),
    "stored twice": (
        lambda a: a.update({UP: np.ones((5, 32, 128), "f4")}),
        "and no such tensor",
    ),
    "too narrow": (
        lambda a: a.update(
            {f"{UP}_{x}": a[f"{UP}_{x}"][:, 2:] for x in ("blocks", "scales")}
        ),
        f"{UP}: expected shape [5, 32, 128], got [5, 32, 126]",
    ),
    "a power that is NaN": (
        lambda a: a[f"{UP}_scales"].__setitem__((3, 7), 255),
        f"{UP} has 32 values that are",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_whole(name: str, tmp_path: Path) -> None:
    change, line = HOSTILE[name]
    case, changes, how = "llama", {}, dict(BLOCKS.config)
    arrays, _ = fp8_arrays(BLOCKS)
    if [*HOSTILE].index(name) >= [*HOSTILE].index("no powers"):
        case, changes, how = (
            "gpt_oss",
            {"intermediate_size": 64},
            {"quant_method": "mxfp4"},
        )
        arrays, _ = mxfp4_arrays()
    change(arrays := {name: x.copy() for name, x in arrays.items()})
    path = write(
        tmp_path / "in", arrays, config_of(case, quantization_config=how, **changes)
    )
    refusal_of(convert, path, tmp_path / "out", says=line)
    assert not (tmp_path / "out").exists()


ODD: dict[str, Any] = {
    **{
        x: {"quant_method": x}
        for x in ("gptq", "awq", "fbgemm_fp8", "nvfp4", "mxfp8", "", "FP8")
    },
    "no method": {"bits": 4},
    "a method that is no word": {"quant_method": ["fp8"]},
    "no object": ["fp8"],
    "E5M2": QWEN | {"fmt": "e5m2"},
    "FP4 experts": QWEN | {"expert_dtype": "fp4"},
    "an unknown key": QWEN | {"rotation": 3},
    **{
        f"a block of {size}": QWEN | {"weight_block_size": size}
        for size in (
            [128],
            [0, 128],
            [1, True],
            "128",
            [1.5, 2],
            [2**40, 1],
            [-1, 4],
            128,
        )
    },
}


@pytest.mark.parametrize("name", ODD)
def test_other_quantisation_is_refused(name: str, tmp_path: Path) -> None:
    arrays, _ = fp8_arrays(BLOCKS)
    folder = write(
        tmp_path / "in", arrays, config_of("llama", quantization_config=ODD[name])
    )
    refusal_of(read_model, folder, says="quantised")
    refusal_of(
        convert, folder, tmp_path / "out", says="is quantised by", remedy="dequantize"
    )


KEYS = ["quant_method", "weight_block_size", "fmt", "expert_dtype", "activation_scheme"]
ANY = json_like(
    st.sampled_from(["fp8", "mxfp4", "e4m3", "dynamic", 8]),
    st.sampled_from(KEYS) | st.text(max_size=3),
)


@given(ANY, st.sampled_from([{}, *(dict(how.config) for how in FP8.values())]))
def test_any_quantization_config_is_refused_without_such_tensors(
    value: Any, right: dict[str, Any]
) -> None:
    mixed = {**right, **value} if isinstance(value, dict) else value
    refusal_of(converted_blocks, mixed, {}, "config.json")


def test_a_block_that_is_larger_than_memory(tmp_path: Path) -> None:
    quantised, plain = fp8_model(tmp_path, FP8["one block"])
    config = json.loads((quantised / "config.json").read_text("utf-8"))
    config["quantization_config"] |= {"weight_block_size": [1 << 30, 1 << 30]}
    (quantised / "config.json").write_text(json.dumps(config), "utf-8")
    assert_equal(read_model(converted(quantised)), read_model(plain))


def test_a_folder_that_is_not_quantised(tmp_path: Path) -> None:
    _, arrays = fp8_arrays(BLOCKS)
    for how, says in (
        (None, "is not quantised"),
        (QWEN, "are not there, or not whole"),
    ):
        folder = write(
            tmp_path / "in", arrays, config_of("llama", quantization_config=how)
        )
        refusal_of(convert, folder, tmp_path / "out", says=says)
    quantised, _ = fp8_arrays(BLOCKS)
    folder = write(tmp_path / "in", quantised, config_of("llama"))
    refusal_of(read_model, folder, says="expected F64, F32, F16, BF16, got F8_E4M3")


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
    theirs, again = (
        transformers.AutoModelForCausalLM.from_pretrained(
            x, dtype=torch.float32, attn_implementation="eager"
        ).state_dict()
        for x in (folder, converted(folder))
    )
    for name, weight in load_file(tmp_path / "out" / "model.safetensors").items():
        right = theirs[name].numpy()
        np.testing.assert_array_equal(weight.astype("f4"), right, name)
        np.testing.assert_array_equal(again[name].numpy(), right, name)
