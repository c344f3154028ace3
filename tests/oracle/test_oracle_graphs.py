"""Exported graphs, run by onnxruntime, as candidates of the cases."""

from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from program import run

from refimpl.errors import RefimplError
from refimpl.method.perturbation import Perturbation
from refimpl.onnx.case_steps import graph_steps
from refimpl.onnx.export import export
from refimpl.oracle.case import Case, read_case
from refimpl.oracle.check import check

FORWARD = ("embed", "blocks.*", "final_norm", "logits")
EXPERIMENT = ("perturbed.*", "absorption_coefficient")
NAMES = sorted(folder.name for folder in (FIXTURES / "cases").iterdir())


def ran(case: Case, path: Path) -> tuple[dict[str, np.ndarray], str]:
    return graph_steps(path, case.model.config, case.inputs, case.recipe.perturbation, "cpu")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_the_graph_of_a_model_passes(name: str, dtype: str, tmp_path: Path) -> None:
    case, path = read_case(FIXTURES / "cases" / name), tmp_path / "model.onnx"
    export(case.model, path, dtype=dtype, outputs="trace")
    found, computed = ran(case, path)
    report = check(case, found, FORWARD, computed)
    assert (report.verdict, report.dtype) == ("pass", dtype), report.first


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_the_graph_of_the_experiment_passes(name: str, dtype: str, tmp_path: Path) -> None:
    case, path = read_case(FIXTURES / "cases" / name), tmp_path / "experiment.onnx"
    export(case.model, path, dtype=dtype, experiment=case.recipe.perturbation)
    found, computed = ran(case, path)
    report = check(case, found, EXPERIMENT, computed)
    assert (report.verdict, report.dtype) == ("pass", dtype), report.first


def test_a_graph_of_other_weights_diverges_where_they_are_read(tmp_path: Path) -> None:
    case, path = read_case(FIXTURES / "cases" / "llama"), tmp_path / "model.onnx"
    export(case.model, path, outputs="trace")
    data = path.with_name("model.onnx.data")
    import onnx

    proto = onnx.load(path, load_external_data=False)
    (moved,) = [t for t in proto.graph.initializer if t.name == "blocks.2.up_proj.weight"]
    start = next(int(e.value) for e in moved.external_data if e.key == "offset")
    raw = bytearray(data.read_bytes())
    raw[start : start + 4] = np.float32(9).tobytes()
    data.write_bytes(raw)
    found, computed = ran(case, path)
    report = check(case, found, FORWARD, computed)
    assert report.first is not None
    assert report.first.step == "blocks.2.mlp_out"


def test_an_experiment_that_pushes_otherwise_is_refused(tmp_path: Path) -> None:
    case, path = read_case(FIXTURES / "cases" / "llama"), tmp_path / "experiment.onnx"
    plan = Perturbation(noise_scale="sequence", norm="sequence")
    export(case.model, path, experiment=plan)
    with pytest.raises(RefimplError) as error:
        ran(case, path)
    assert error.value.problem.endswith("noise_scale sequence, norm sequence")
    assert error.value.expected == "noise_scale token, norm token, as the case says"


def test_the_command_runs_a_graph(tmp_path: Path) -> None:
    case, path = read_case(FIXTURES / "cases" / "gpt2"), tmp_path / "model.onnx"
    export(case.model, path, outputs="trace")
    words = ["check", case.folder, path, "--device", "cpu"]
    asked = [word for pattern in FORWARD for word in ("--only", pattern)]
    done = run(*words, *asked)
    assert done.code == 0, done.out
    assert " ".join(done.out.split()).count("float32, chained") == 1
    assert run(*words).code == 3  # it has nothing but the forward
    refused = run(*words, "--stepwise")
    assert refused.code == 2
    assert "--stepwise with a graph" in refused.err
    refused = run("check", case.folder, case.folder / "expected.safetensors", "--device", "cpu")
    assert (refused.code, refused.out) == (2, "")
    assert "--device with a file of tensors" in refused.err
