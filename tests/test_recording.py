"""The forward can be recorded: its own functions, run on recording arrays, write an ONNX graph."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from gates import CASES, GATES, model_of, worst_point
from recorder import Graph

from refimpl import Model, forward
from refimpl.model.forward import Point, block, embed, head, places
from refimpl.model.ops import Array


def recorded(model: Model, dtype: str) -> onnx.ModelProto:
    """Token ids [batch, sequence] to the logits and every other trace point."""
    graph, config = Graph(), model.config
    ids: Any = graph.input("token_ids", np.int64, ("batch", "sequence"))
    length = graph.add("Squeeze", graph.add("Shape", ids, start=1, end=2))
    zero, one = (graph.constant(np.int64(n)) for n in (0, 1))
    positions: Any = graph.add("Range", zero, length, one, axes=("sequence",))

    def constants(weights: dict[str, Array], prefix: str = "") -> Any:
        return {name: graph.constant(weight, prefix + name) for name, weight in weights.items()}

    def named(prefix: str) -> Point:
        def point(name: str, value: Any) -> Any:
            graph.output(prefix + name, value)
            return value

        return point

    where = places(positions, config, dtype)
    x = named("")("embed", embed(ids, positions, constants(model.embedding()), config, dtype))
    for i, kind in enumerate(config.blocks):
        prefix = f"blocks.{i}."
        weights = constants(model.block(i, dtype), prefix)
        x = block(x, weights, where[kind], config, named(prefix))
    head(x, constants(model.head(dtype)), config, named(""))
    return graph.model()


@pytest.mark.parametrize("dtype", GATES)
@pytest.mark.parametrize("case", CASES)
def test_the_recorded_forward_computes_the_same(case: str, dtype: str) -> None:
    model = model_of(case)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # The fusions of the levels above are not all made for float64 in older runtimes.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    graph = recorded(model, dtype).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options)
    for shape in ((1, 5), (2, 13), (3, 1)):
        ids = np.random.default_rng(0).integers(model.config.vocab_size, size=shape)
        expected = forward(model, ids, trace=True, dtype=dtype).trace
        found = dict(zip(expected, session.run(list(expected), {"token_ids": ids}), strict=True))
        assert {value.dtype.name for value in found.values()} == {dtype}
        error, name = worst_point(found, expected)
        assert error < GATES[dtype], (name, shape)


def test_the_graph_has_our_names_and_open_axes() -> None:
    model = model_of("gemma3")
    graph = recorded(model, "float32").graph

    def axes(value: onnx.ValueInfoProto) -> list[str | int]:
        return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]

    assert {value.name: axes(value) for value in graph.input} == {
        "token_ids": ["batch", "sequence"]
    }
    outputs = {value.name: axes(value) for value in graph.output}
    assert outputs["logits"] == ["batch", "sequence", 101]
    assert outputs["blocks.6.k_rope"] == ["batch", 2, "sequence", 10]
    assert model.weights.keys() <= {constant.name for constant in graph.initializer}


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
    "an index": lambda x: x[0],
    "a stride": lambda x: x[..., ::2],
    "a function without a node": lambda x: np.cumsum(x, axis=-1),
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
        (2 * x, 2 * real), (x / 2.0, real / 2.0), (low - x, low - real), (x * high, real * high),
        (n * x, i * real), (n / 2, i / 2), (n * 0.5, i * 0.5), (x > n, real > i),
        (np.where(x > 0, x, 1), real), (np.where(x > 0, n, x), i + real), (x + n, real + i),
    ):  # fmt: skip
        assert found.dtype == expected.dtype
