"""NumPy code on recording arrays writes a graph, and what a graph cannot say is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gates import GATES
from onnx.reference import ReferenceEvaluator

from refimpl.onnx.recording.graph import Graph

REFUSED: dict[str, Callable[[Any], Any]] = {
    "arithmetic on an open size": lambda x: x.shape[1] + 1,
    "a branch on an open size": lambda x: x.shape[1] == 5,
    "an array of an open size": lambda x: np.zeros(x.shape),
    "moving open axes": lambda x: np.reshape(x, (x.shape[1], x.shape[0], 6)),
    "fixing open axes": lambda x: np.reshape(x, (2, 3, 6)),
    "mixing open axes": lambda x: x + np.swapaxes(x, 0, 1),
    "taking the numbers": lambda x: np.asarray(x),
    "taking a number": lambda x: float(x),
    "a branch on a number": lambda x: 1 if x > 0 else 2,
    "an index": lambda x: x[0, 0],
    "an index of an open axis": lambda x: x[:, x],
    "a cut of an open axis": lambda x: x[1:2],
    "a stride": lambda x: x[::2],
    "a function without a node": lambda x: np.diff(x, axis=-1),
    "a method of an operation": lambda x: np.add.outer(x, 1),
    "an option of an operation": lambda x: np.add(x, 1, where=x > 0),
    "the mean of truth values": lambda x: np.mean(x > 0, axis=-1, keepdims=True),
}


@pytest.mark.parametrize("attempt", REFUSED)
def test_what_a_graph_cannot_say_is_refused(attempt: str) -> None:
    x = Graph().input("x", np.float32, ("batch", "sequence", 6))
    with pytest.raises(TypeError):
        REFUSED[attempt](x)


def test_an_array_is_not_overwritten_under_two_names() -> None:
    graph = Graph()
    x: Any = graph.input("x", np.float32, ("batch", 6))
    doubled = y = x * 2
    y += 1
    graph.output("y", y)
    with pytest.raises(TypeError, match="overwritten"):
        graph.output("doubled", doubled)


@pytest.mark.parametrize("dtype", GATES)
def test_dtypes_follow_numpy(dtype: str) -> None:
    graph = Graph()
    x: Any = graph.input("x", dtype, ("batch",))
    n: Any = graph.input("n", np.int64, ("batch",))
    low, high, i = np.ones(1, np.float32), np.ones(1, np.float64), np.ones(1, np.int64)
    real = np.ones(1, dtype)
    for found, expected in (
        (2 * x, 2 * real),
        (x / 2.0, real / 2.0),
        (low - x, low - real),
        (x * high, real * high),
        (n * x, i * real),
        (n / 2, i / 2),
        (n * 0.5, i * 0.5),
        (x > n, real > i),
        (np.where(x > 0, x, 1), real),
        (np.where(x > 0, n, x), i + real),
        (x + n, real + i),
    ):
        assert found.dtype == expected.dtype


def evaluated(graph: Graph, **inputs: Any) -> list[Any]:
    return ReferenceEvaluator(graph.model()).run(None, inputs)  # type: ignore[no-any-return]


def scaled(graph: Graph, given: dict[str, Any]) -> dict[str, Any]:
    x = graph.labelled(given["x"] * 2, "twice")
    return {"y": x + given["w"], "same": given["x"]}


def test_a_function_is_recorded_once_and_called_by_name() -> None:
    graph = Graph()
    x: Any = graph.input("x", np.float32, ("batch", 2))
    more: Any = graph.input("more", np.float32, ("batch", "sequence", 2))
    w = graph.constant(np.array([1, 10], np.float32), "w")
    found = graph.call("scaled", scaled, {"x": x, "w": w}, "first")
    names = {name: value.name for name, value in found.items()}
    assert names == {"y": "first.y", "same": "first.same"}
    graph.output(
        "y", graph.call("scaled", scaled, {"x": found["y"], "w": w}, "second")["y"]
    )
    graph.output("z", graph.call("scaled", scaled, {"x": more, "w": w}, "third")["y"])
    assert found["same"].shape == x.shape
    (function,) = graph.model().functions
    assert function.name == "scaled"
    assert list(function.input) == ["x", "w"]
    assert list(function.output) == ["y", "same"]
    assert [node.op_type for node in function.node] == [
        "Constant",
        "Mul",
        "Add",
        "Identity",
    ]
    one = np.array([[1, 2]], np.float32)
    y, z = evaluated(graph, x=one, more=one[None])
    np.testing.assert_array_equal(y, [[7, 38]])
    np.testing.assert_array_equal(z, [[[3, 14]]])


def test_arrays_of_two_graphs_do_not_mix() -> None:
    x, y = (Graph().input("x", np.float32, (2,)) for _ in range(2))
    with pytest.raises(TypeError, match="another graph"):
        x + y
