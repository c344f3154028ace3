"""Graphs that are not ours: whatever they do, a message and exit code 2, in time."""

import os
import resource
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import onnx
import pytest
from conftest import FIXTURES
from onnx import TensorProto, helper
from program import ran, refused

LLAMA = FIXTURES / "llama"


@pytest.fixture(scope="module")
def graph(folder: Path) -> Path:
    path = folder / "whole.onnx"
    ran("export", LLAMA, "-o", path, "--outputs", "logits")
    onnx.save(onnx.load(path), path)
    return path


def bools(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.BOOL


def negative(proto: onnx.ModelProto) -> None:
    (tensor,) = (
        t for t in proto.graph.initializer if t.name == "blocks.0.q_proj.weight"
    )
    tensor.dims[0] = -tensor.dims[0]


def late(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 999


BENT: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "bool logits": (bools, "logits in dtype 9"),
    "a negative dimension": (negative, "next: "),
    "opset 999": (late, "cannot load the graph"),
}


@pytest.mark.parametrize("name", BENT)
def test_bent_graphs_are_refused(name: str, graph: Path, tmp_path: Path) -> None:
    change, says = BENT[name]
    proto, path = onnx.load(graph), tmp_path / "bent.onnx"
    change(proto)
    onnx.save(proto, path)
    assert says in refused("validate", LLAMA, "--graph", path)


def test_a_long_graph_runs(graph: Path, tmp_path: Path) -> None:
    proto, path = onnx.load(graph), tmp_path / "long.onnx"
    (node,) = (node for node in proto.graph.node if "logits" in node.output)
    node.output[0] = "through.0"
    for i in range(3000):
        after = "logits" if i == 2999 else f"through.{i + 1}"
        proto.graph.node.append(helper.make_node("Identity", [f"through.{i}"], [after]))
    onnx.save(proto, path)
    assert "passes: 3 steps" in ran("validate", LLAMA, "--graph", path)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_limits_that_are_none(seconds: str, graph: Path) -> None:
    words = ("validate", LLAMA, "--graph", graph, "--time-limit", seconds)
    assert "--time-limit" in refused(*words)


def test_we_parse_no_graph(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "load", Mock(side_effect=AssertionError("parsed here")))
    sizes = ("--samples", 1, "--seq-len", 3)
    ran("validate", LLAMA, "--graph", graph, *sizes, "-o", tmp_path / "out.json")


def test_a_graph_of_empty_nodes_takes_no_memory_of_ours(tmp_path: Path) -> None:
    """Two bytes each in the file, a hundred and more in memory: the child's limit ends it."""
    path = tmp_path / "nodes.onnx"
    inside = b"\x0a\x00" * (1 << 21)  # a node without fields
    length = len(inside)
    varint = bytes(
        [length & 127 | 128, length >> 7 & 127 | 128, length >> 14 & 127 | 128]
    )
    path.write_bytes(b"\x3a" + varint + bytes([length >> 21]) + inside)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused("validate", LLAMA, "--graph", path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


@pytest.mark.parametrize("name", ["/dev/zero", "pipe"])
def test_a_graph_that_never_ends_is_not_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    assert "is not a regular file" in refused("validate", LLAMA, "--graph", name)


def test_weights_in_a_pipe_are_not_opened(tmp_path: Path) -> None:
    ran("export", LLAMA, "-o", tmp_path / "m.onnx", "--outputs", "logits")
    (data,) = tmp_path.glob("*.data")
    data.unlink()
    os.mkfifo(data)
    words = ("validate", LLAMA, "--graph", tmp_path / "m.onnx")
    assert "m.onnx.data is not a regular file" in refused(*words)
