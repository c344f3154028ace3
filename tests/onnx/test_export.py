"""Graphs as files: they compute what NumPy does, describe it, and appear whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import onnx
import pytest
from checkpoints import arrays_of, save_tensors
from conftest import FIXTURES
from documents import files
from gates import GATES, GRAPH_CASES, UNRECORDED, layouts, model_of, worst_point
from graph_models import axes, prunable, pruned, reference_session
from onnx import numpy_helper
from processes import printed_json, stopped_at_step
from program import Result, ran, refused
from refusals import refusal_of

from refimpl import Model, RefimplError, forward, read_model
from refimpl.model.ops import Array
from refimpl.onnx.export import export
from refimpl.onnx.recording.graph import distinct, graph_weights
from refimpl.onnx.session import onnxruntime

SHAPES = (1, 5), (2, 13), (3, 1)
LLAMA = FIXTURES / "llama"

Run = Callable[[Array], dict[str, Array]]
Copy = Callable[[str], Path]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return lambda case: Path(shutil.copytree(FIXTURES / case, tmp_path / case))


def session(path: Path) -> Run:
    """Run a graph's file by onnxruntime, as it optimises by default."""
    library = onnxruntime()
    options = library.SessionOptions()
    options.intra_op_num_threads = 1
    runtime = library.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in runtime.get_outputs()]
    return lambda ids: dict(
        zip(names, runtime.run(names, {"token_ids": ids}), strict=True)
    )


def reference(path: Path) -> Run:
    run = reference_session(path).run
    return lambda ids: run({"token_ids": ids})


RUNTIMES = session, reference


def agrees(
    path: Path, model: Model, dtype: str, runtimes: Any = RUNTIMES, shapes: Any = SHAPES
) -> float:
    """Check all outputs at three shapes, and return the worst token's error."""
    worst = 0.0
    onnx.checker.check_model(path, full_check=True)
    executes = {make.__name__: make(path) for make in runtimes}
    for shape in shapes:
        ids = np.random.default_rng(0).integers(model.config.vocab_size, size=shape)
        right = forward(model, ids, trace=True, dtype=dtype).trace
        for runtime, execute in executes.items():
            with np.errstate(all="warn"):  # of the evaluator, as it is
                outputs = execute(ids)
            expected = {name: right[name] for name in outputs}
            assert outputs.keys() == right.keys() or outputs.keys() == {"logits"}
            assert {value.dtype.name for value in outputs.values()} == {dtype}
            error, name = worst_point(outputs, expected)
            assert error < GATES[dtype], (runtime, name, shape)
            worst = max(worst, error)
    return worst


@pytest.mark.parametrize(("half", "dtype"), [(False, "float64"), (True, "float32")])
@pytest.mark.parametrize("case", layouts(GRAPH_CASES))
def test_a_graph_computes_the_same(
    case: str, half: bool, dtype: str, folder: Path
) -> None:
    model = pruned(case, folder) if half else model_of(case)
    path = folder / f"{case}-{half}-{dtype}.onnx"
    made = export(model, path, dtype=dtype, outputs="trace")
    worst = agrees(path, model, dtype)
    print(f"{case} {'pruned' if half else 'dense'} {dtype}: worst token {worst:.1e}")
    linears = {
        f"blocks.{i}.{x}.weight"
        for i, names in enumerate(model.config.linears)
        for x in names
    }
    tensors = [t for t in onnx.load(path).graph.initializer if t.name in linears]
    zeros = sum(
        int(np.count_nonzero(numpy_helper.to_array(tensor) == 0)) for tensor in tensors
    )
    assert (
        zeros
        == (prunable(model) // 2 if half else 0)
        == int(made.metadata["prunable_zeros"])
    )
    assert int(made.metadata["prunable_weights"]) == prunable(model)


def test_the_graph_has_our_names_and_open_axes(folder: Path) -> None:
    model = model_of("gemma3")
    path = folder / "names.onnx"
    made = export(model, path, outputs="trace")
    proto = onnx.load(path, load_external_data=False)
    graph = proto.graph
    inputs = {value.name: axes(value) for value in graph.input}
    assert inputs == {"token_ids": ["batch", "sequence"]}
    outputs = {value.name: axes(value) for value in graph.output}
    assert outputs["logits"] == ["batch", "sequence", 101]
    assert outputs["blocks.6.k_rope"] == ["batch", 2, "sequence", 10]
    assert list(outputs) == list(forward(model, [[1]], trace=True).trace)
    ours = {
        tensor.name
        for tensor in graph.initializer
        if not tensor.name.startswith("constant_")
    }
    assert ours == model.weights.keys() - {"lm_head.weight"}  # tied
    calls = [node for node in graph.node if node.domain == "refimpl"]
    assert [call.op_type for call in calls] == ["block"] * 7
    (block,) = proto.functions
    weights = [name for name in block.input if re.search(r"\.(weight|bias)$", name)]
    for i, call in enumerate(
        calls
    ):  # the function's inputs are our names, and so are the call's
        assert call.name == f"blocks.{i}"
        names = [f"{call.name}.{name}" for name in weights]
        assert names == list(call.input)[-len(weights) :]
        assert set(names) == {
            name for name in model.weights if name.startswith(f"{call.name}.")
        }
    labels = {name for node in block.node for name in node.output}
    assert labels >= {
        "attn_norm",
        "q",
        "k_rope",
        "attn_heads",
        "mlp_hidden",
        "resid_post",
    }
    assert (proto.ir_version, proto.opset_import[0].version) == (10, 21)
    assert made.metadata == {entry.key: entry.value for entry in proto.metadata_props}
    assert (
        made.metadata.items()
        >= {
            "model": "gemma3",
            "family": "gemma3_text",
            "dtype": "float32",
            "outputs": "trace",
            "prunable_zeros": "0",
            "sparsity": "0.0",
        }.items()
    )
    assert made.metadata["refimpl"] == proto.producer_version


STORED: dict[str, tuple[str, Any]] = {  # the fixture, and the dtype if it is another
    "sharded": ("llama_sharded", None),
    "bfloat16": ("llama", ml_dtypes.bfloat16),
    "bfloat16, tied, with an offset": ("gemma3", ml_dtypes.bfloat16),
    "float16, fused": ("phi3", np.float16),
    "float16, transposed": ("gpt2", np.float16),
    "float64, interleaved": ("gpt_neox", np.float64),
}


@pytest.mark.parametrize(
    ("stored", "dtype"), list(zip(STORED, cycle(GATES), strict=False))
)
def test_weights_enter_as_they_are_stored(stored: str, dtype: str, copy: Copy) -> None:
    case, stored_dtype = STORED[stored]
    path = copy(case)
    if stored_dtype is not None:
        arrays = {
            name: array.astype(stored_dtype) for name, array in arrays_of(case).items()
        }
        save_tensors(path / "model.safetensors", arrays, {"format": "pt"})
    model = read_model(path)
    before = files(model.path)
    export(model, model.path / "model.onnx", dtype=dtype)
    agrees(model.path / "model.onnx", model, dtype)
    after = files(model.path)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"model.onnx", "model.onnx.data"}


@pytest.mark.parametrize(
    ("case", "functions"),
    [
        ("gemma3", ["block"]),
        ("smollm3", ["block", "block_2"]),
        ("lfm2", ["block", "block_2"]),
    ],
)
def test_equal_blocks_are_one_function(
    case: str, functions: list[str], tmp_path: Path
) -> None:
    made = export(model_of(case), tmp_path / "model.onnx")
    assert [
        x.name for x in onnx.load(made.graph, load_external_data=False).functions
    ] == functions


@pytest.mark.parametrize("case", UNRECORDED)
def test_a_mixer_without_operators_is_refused(case: str, tmp_path: Path) -> None:
    refusal_of(
        export,
        model_of(case),
        tmp_path / "a.onnx",
        says="gated delta rule cannot be part of a graph: ONNX has no operator",
        remedy="score",
    )
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("opset", [18, 23, 25])
def test_other_opsets_compute_the_same(opset: int, tmp_path: Path) -> None:
    for case in ("gemma2", "gpt_neox"):
        path = tmp_path / f"{case}.onnx"
        export(model_of(case), path, opset=opset)
        agrees(path, model_of(case), "float32")


def test_the_data_file_holds_every_weight_where_the_graph_says(folder: Path) -> None:
    for case in ("gpt2", "gemma2", "phi3"):
        model, path = model_of(case), folder / f"{case}-data.onnx"
        export(model, path)
        arrays = {
            t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer
        }
        for carried in distinct(graph_weights(model, np.float32)):
            np.testing.assert_array_equal(
                arrays[carried.name], carried.weight.read(np.float32)
            )
            assert carried.offset % 64 == 0


@pytest.mark.parametrize(
    ("options", "message", "existing"),
    [
        ("-o {}/x.pb", "ends in .onnx", ""),
        ("-o {}/x.onnx", "exists", "x.onnx"),
        ("-o {}/x.onnx", "x.onnx.data exists", "x.onnx.data"),
        ("-o {}/none/x.onnx", "a path in a folder that exists", ""),
        ("-o {}/x.onnx --opset 17", "18 to 25", ""),
        ("-o {}/x.onnx --opset 26", "18 to 25", ""),
    ],
)
def test_what_cannot_be_exported_is_refused(
    options: str, message: str, existing: str, tmp_path: Path
) -> None:
    if existing:
        (tmp_path / existing).write_text("before")
    before = files(tmp_path)
    assert message in refused("export", LLAMA, *options.format(tmp_path).split())
    assert files(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == bool(existing)


def test_no_graph_stands_beside_data_of_another(copy: Copy) -> None:
    folder = copy("llama")
    graph, model = folder / "model.onnx", read_model(folder)
    export(model, graph, dtype="float64")
    replace = Path.replace

    def failing(source: Path, target: Path) -> Path:
        if target == graph:
            raise OSError(28, "No space left on device")
        return replace(source, target)

    with patch.object(Path, "replace", failing):
        refusal_of(export, model, graph, force=True, says="No space left")
    assert [x.name for x in folder.glob("model.onnx*")] == ["model.onnx.data"]
    export(model, graph, force=True)
    agrees(graph, model, "float32", [session])


@pytest.mark.parametrize(
    "tensor", ["model.norm.weight", "model.layers.2.mlp.up_proj.weight"]
)
def test_weights_that_are_not_numbers_are_refused(tensor: str, copy: Copy) -> None:
    path = copy("llama")
    arrays = arrays_of("llama")
    arrays[tensor] = arrays[tensor].copy()
    arrays[tensor].flat[3] = np.nan
    save_tensors(path / "model.safetensors", arrays)
    before = sorted(os.listdir(path))
    says = f"{tensor} holds 1 NaN"
    refusal_of(export, read_model(path), path / "model.onnx", says=says)
    assert sorted(os.listdir(path)) == before


def test_the_command_says_what_it_wrote(copy: Copy) -> None:
    path = copy("gemma2")
    words = ("export", path, "-o", path / "model.onnx")
    printed = ran(*words, "--outputs", "trace")
    assert f"in {path}/model.onnx.data, 0.15 MiB" in " ".join(printed.split())
    document = json.loads(ran(*words, "--force", "--json"))
    assert document["graph"] == str(path / "model.onnx")
    assert document["metadata"]["family"] == "gemma2"
    assert document["graph_bytes"] == (path / "model.onnx").stat().st_size
    agrees(path / "model.onnx", model_of("gemma2"), "float32")


def pair(folder: Path) -> dict[str, bytes]:
    """The graph and its data, as far as they are there."""
    return {path.name: path.read_bytes() for path in folder.glob("m.onnx*")}


def exported(folder: Path, force: bool = False, dtype: str = "float32") -> Result:
    """Export as the command does, in a process that has imported and read everything."""
    try:
        export(model_of("llama"), folder / "m.onnx", dtype=dtype, force=force)
    except RefimplError as error:
        return Result(2, "", str(error))
    return Result(0, "", "")


def killed_at_every_step(folder: str, force: bool) -> None:
    """Kill an export before each of its steps, and check what is left, and what runs after it."""
    whole, old = Path(folder, "whole"), Path(folder, "old")
    for path in (whole, old):
        path.mkdir()
    assert exported(whole).code == 0
    assert not force or exported(old, dtype="float64").code == 0
    before, new, states = pair(old), pair(whole), list[str]()
    for number in range(99):
        here = Path(shutil.copytree(old, Path(folder, str(number))))
        if stopped_at_step(number, partial(exported, here, force), "kill") is None:
            break
        left = pair(here)
        states.append("old" if left == before else "new" if left == new else "between")
        assert states[-1] != "between" or "m.onnx" not in left, (
            number
        )  # which is looked for
        if states[-1] == "between" and force:
            other = Path(shutil.copytree(here, Path(folder, f"{number} again")))
            assert "exists" in exported(other).err
            assert pair(other) == before
        again = exported(here, force)
        assert (again.code == 0) == (left != new or force), (number, again)
        assert pair(here) == new
        assert len([*here.iterdir()]) == 2
    assert states.count("between") > 1
    assert {*states} == {"old", "between", "new"}


@pytest.mark.parametrize(
    "force", [pytest.param(False, marks=pytest.mark.thorough), True]
)
def test_a_killed_export_is_undone_by_the_next(force: bool, tmp_path: Path) -> None:
    assert (
        printed_json(__file__, f"killed_at_every_step({str(tmp_path)!r}, {force})")
        is None
    )
