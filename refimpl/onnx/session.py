"""Graphs in onnxruntime, as candidates of the oracle; one from a file has a process of its own."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
from msgspec import Meta
from onnx import TensorProto, helper

from refimpl.arguments import require
from refimpl.errors import RefimplError, need
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.onnx.recording import model_graph as graphs
from refimpl.running.file_system import open_file
from refimpl.running.isolation import Isolated, limit_memory
from refimpl.running.settings import free_memory
from refimpl.running.threads import thread_count

LARGEST_GRAPH = (1 << 31) - 1  # bytes: one protobuf message
CANDIDATE_DTYPES = (
    "float16",
    *graphs.DTYPES,
)  # of a candidate; export writes no float16
LOGITS_DTYPES = {
    helper.np_dtype_to_tensor_dtype(np.dtype(x)): x for x in CANDIDATE_DTYPES
}
# A graph may take this long to open or to run, and then as long as weights and products of weights
# and tokens take at hundredths of the speed of one core: a graph without an end has one.
_SECONDS, WEIGHTS_PER_SECOND, PRODUCTS_PER_SECOND = 60.0, 1e6, 1e8
TimeLimit = Annotated[float, Meta(ge=0.001, le=1_000_000)]
_REFUSED = (
    "a graph that ends in time, and needs no more memory than is free",
    "write the graph with refimpl export, or use a longer `time_limit`",
)


def onnxruntime() -> Any:
    """The library, without the telemetry that it sends since 1.32.

    It reads the variable when it is imported, so nothing else in the package imports it.
    """
    need("onnx", "onnxruntime")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime as library

    return library


@dataclass(frozen=True)
class Session:
    """A graph that is ready to run, and where; its runtime reads the weights in place."""

    run: Callable[..., dict[str, Array]]
    runtime: str  # with its version, such as "onnxruntime 1.32.0, cpu"
    weights: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A graph that gives trace points; all its sequences have one length, unless that is None."""

    outputs: Callable[
        [Mapping[str, Array]], Mapping[str, Array]
    ]  # from inputs, by our names
    runtime: str
    dtype: str
    points: tuple[str, ...]
    length: int | None = None

    def run(self, ids: Array) -> Mapping[str, Array]:
        """Compute the trace points of token ids [B, S]."""
        if self.length not in (None, ids.shape[1]):
            raise RefimplError(
                f"a graph for sequences of {self.length} tokens, and these have {ids.shape[1]}",
                f"sequences of {self.length} tokens, or a graph for any length",
                f"use `seq_len={self.length}`",
            )
        return self.outputs({graphs.TOKENS: ids})


def open_session(
    graph: bytes | str | Path,
    *,
    threads: int | None = None,
    weights: Mapping[str, Array] | None = None,
) -> Session:
    """Open a graph with weights on the CPU."""
    ort = onnxruntime()
    ort.set_default_logger_severity(4)  # errors are raised
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = thread_count(threads)
    # Not all fusions of the higher levels support float64.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # Run nodes in the recorded order: others delay what only an output needs, and hold its inputs.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    arrays = {
        name: np.ascontiguousarray(array) for name, array in (weights or {}).items()
    }
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    if values:
        options.add_external_initializers(list(arrays), values)
    source = graph if isinstance(graph, bytes) else str(graph)
    runtime = f"onnxruntime {ort.__version__}"
    on_cpu = {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}
    session = _guarded(
        runtime, "load", lambda: ort.InferenceSession(source, options, **on_cpu)
    )
    every = [output.name for output in session.get_outputs()]

    def run(
        inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        names = list(outputs or every)
        with np.errstate(all="ignore"):  # an overflow shows in the values
            values = _guarded(runtime, "run", lambda: session.run(names, dict(inputs)))
        return dict(zip(names, values, strict=True))

    return Session(run, f"{runtime}, cpu", arrays)


def _guarded(runtime: str, verb: str, action: Callable[[], Any]) -> Any:
    """Load or run a graph in a runtime, whose exceptions have no common class."""
    try:
        return action()
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise RefimplError(
            f"{runtime} cannot {verb} the graph: {why}",
            "a graph and inputs that the runtime supports",
            "read the reason above; try another version of the runtime",
        ) from error


def open_foreign(
    path: Path,
    model: Model,
    threads: int | None = None,
    time_limit: float | None = None,
) -> Candidate:
    """Open a graph's file in a child process; no step of it may take longer than the limit."""
    require(time_limit, TimeLimit | None, "time_limit")
    trace = graphs.trace_points(model.config)
    weights = sum(prod(x.shape) for x in model.weights.values())

    def longest(work: float) -> float:
        return _SECONDS + work if time_limit is None else time_limit

    child = Isolated(
        ForeignGraph,
        *(path, trace, threads, free_memory()),
        name=f"`graph={path}`",
        seconds=longest(weights / WEIGHTS_PER_SECOND),
        refused=_REFUSED,
    )
    about = child.call("facts")

    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        products = weights * inputs[graphs.TOKENS].size
        return child.call(
            "run", dict(inputs), seconds=longest(products / PRODUCTS_PER_SECOND)
        )

    return Candidate(
        run, about["runtime"], about["dtype"], about["points"], about["length"]
    )


class ForeignGraph:
    """The child's side of `open_foreign`."""

    def __init__(
        self, path: Path, trace: tuple[str, ...], threads: int | None, memory: int
    ) -> None:
        limit_memory(memory)
        self.path = path
        self.tokens, self.ids, self.outputs, about = read_graph(path, trace)
        self.session = open_session(path, threads=threads)
        self.about = about | {"runtime": self.session.runtime}

    def facts(self) -> dict[str, Any]:
        """What the parent has to know of the graph, and what runs it."""
        return self.about

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs for some inputs; what is no array of numbers is refused."""
        inputs[self.tokens] = inputs.pop(graphs.TOKENS).astype(self.ids)
        arrays = self.session.run(inputs, self.outputs)
        for name, array in arrays.items():
            if (
                not isinstance(array, np.ndarray | np.generic)
                or array.dtype.kind not in "fiu"
            ):
                raise RefimplError(
                    f"`graph={self.path}`: output {name} is no array of numbers",
                    "arrays of float32 or float64",
                    "write the graph with refimpl export",
                )
        return arrays


def read_graph(
    path: Path, trace: tuple[str, ...]
) -> tuple[str, Any, Any, dict[str, Any]]:
    """Read a graph without weights: its token ids, the outputs to ask for, what it promises."""
    try:
        with open_file(path, LARGEST_GRAPH) as file:
            proto = onnx.load(file, load_external_data=False)
        sparse = (
            y for x in proto.graph.sparse_initializer for y in (x.values, x.indices)
        )
        stored = (
            x for y in (*proto.graph.initializer, *sparse) for x in y.external_data
        )
        places = {x.value for x in stored if x.key == "location"}
        for data in (path.parent / name for name in places):  # the runtimes open them
            if data.exists():
                open_file(data).close()
    except RefimplError:
        raise
    except (
        Exception
    ) as error:  # protobuf's own class for what it cannot read has no stubs
        why = error.strerror if isinstance(error, OSError) else "no ONNX graph"
        raise RefimplError(
            f"`graph={path}`: cannot be read ({why})",
            "an ONNX graph, such as refimpl export writes",
            "check the path, or write the graph again",
        ) from error
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = {
        v.name: v.type.tensor_type for v in proto.graph.input if v.name not in weights
    }
    outputs = {v.name: v.type.tensor_type.elem_type for v in proto.graph.output}
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    logits = outputs.get("logits", TensorProto.UNDEFINED)
    dtype = facts.get("dtype") or LOGITS_DTYPES.get(logits, "")
    integers = (TensorProto.INT64, TensorProto.INT32)
    takes_tokens = [
        len(x.shape.dim) == 2 and x.elem_type in integers for x in inputs.values()
    ]
    if (
        dtype not in LOGITS_DTYPES.values()
        or logits not in LOGITS_DTYPES
        or takes_tokens != [True]
    ):
        raise RefimplError(
            f"`graph={path}`: inputs {[*inputs][:5]}, outputs {[*outputs][:5]}, logits in dtype "
            f"{logits}, computes in {dtype or 'another dtype'}",
            "one input of integers, [batch, sequence], and logits in "
            f"{', '.join(CANDIDATE_DTYPES)}",
            "write the graph with refimpl export",
        )
    (tokens,) = inputs
    ids = helper.tensor_dtype_to_np_dtype(inputs[tokens].elem_type)
    given = tuple(point for point in trace if point in outputs)
    promised = trace if facts.get("outputs") == "trace" else given
    length = inputs[tokens].shape.dim[1].dim_value or None
    about = {"points": promised, "dtype": dtype, "length": length}
    return tokens, ids, given, about
