"""Exported graphs, run by onnxruntime, as candidates of the cases."""

from pathlib import Path

import numpy as np
import pytest
from candidates import by_turns
from gates import case_of

from refimpl.onnx.export import export
from refimpl.onnx.session import open_foreign
from refimpl.oracle.case import Case
from refimpl.oracle.check import check

FORWARD = ("embed", "blocks.*", "final_norm", "logits")


def graph_arrays(case: Case, path: Path) -> tuple[dict[str, np.ndarray], str]:
    graph = open_foreign(path, case.model)
    return dict(graph.run(case.inputs["token_ids"])), graph.dtype


@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", "float32"), *by_turns(("opt", "qwen3"), "float64")]
)
def test_a_graph_passes(name: str, dtype: str, tmp_path: Path) -> None:
    case, path = case_of(name), tmp_path / "graph.onnx"
    export(case.model, path, dtype=dtype, outputs="trace")
    arrays, dtype_of_graph = graph_arrays(case, path)
    report = check(case, arrays, FORWARD, dtype_of_graph)
    assert (report.verdict, report.dtype) == ("pass", dtype), report.first


def test_a_graph_of_other_weights_diverges_where_they_are_read(tmp_path: Path) -> None:
    case, path = case_of("llama"), tmp_path / "model.onnx"
    export(case.model, path, outputs="trace")
    data = path.with_name("model.onnx.data")
    import onnx

    proto = onnx.load(path, load_external_data=False)
    (moved,) = [
        t for t in proto.graph.initializer if t.name == "blocks.2.up_proj.weight"
    ]
    start = next(int(e.value) for e in moved.external_data if e.key == "offset")
    raw = bytearray(data.read_bytes())
    raw[start : start + 4] = np.float32(9).tobytes()
    data.write_bytes(raw)
    arrays, dtype_of_graph = graph_arrays(case, path)
    report = check(case, arrays, FORWARD, dtype_of_graph)
    assert report.first is not None
    assert report.first.step == "blocks.2.mlp_out"
