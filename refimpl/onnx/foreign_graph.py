"""A graph from a file, which may not be ours: read, opened and run in a child process."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
from msgspec import Meta
from onnx import TensorProto, helper

from refimpl.arguments import Device, require
from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.onnx.recording import model_graph as graphs
from refimpl.onnx.session import Candidate, open_session, uses_gpu
from refimpl.running.file_system import open_file
from refimpl.running.isolation import Isolated, limit_memory
from refimpl.running.settings import free_memory

LARGEST_GRAPH = (1 << 31) - 1  # bytes: one protobuf message
DTYPES = ("float16", *graphs.DTYPES)  # of a candidate; export writes no float16
LOGITS_DTYPES = {helper.np_dtype_to_tensor_dtype(np.dtype(name)): name for name in DTYPES}
# A graph may take this long to open or to run, and then as long as weights and products of weights
# and tokens take at hundredths of the speed of one core: a graph without an end has one.
SECONDS, WEIGHTS_PER_SECOND, PRODUCTS_PER_SECOND = 60.0, 1e6, 1e8
TimeLimit = Annotated[float, Meta(ge=0.001, le=1_000_000)]
REFUSED = (
    "a graph that ends in time, and needs no more memory than is free",
    "write the graph with refimpl export, or use a longer `time_limit`",
)


def open_foreign(
    path: Path,
    model: Model,
    device: Device = "auto",
    threads: int | None = None,
    time_limit: float | None = None,
) -> Candidate:
    """Open a graph's file in a child process; no step of it may take longer than the limit."""
    require(time_limit, TimeLimit | None, "time_limit")
    trace = graphs.trace_points(model.config)
    weights = sum(prod(x.shape) for x in model.weights.values())

    def longest(work: float) -> float:
        return SECONDS + work if time_limit is None else time_limit

    child = Isolated(
        Opened,
        path,
        trace,
        device,
        threads,
        free_memory(),
        name=f"`graph={path}`",
        seconds=longest(weights / WEIGHTS_PER_SECOND),
        refused=REFUSED,
    )
    about = child.call("facts")

    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        products = weights * inputs[graphs.TOKENS].size
        return child.call("run", dict(inputs), seconds=longest(products / PRODUCTS_PER_SECOND))

    return Candidate(run, about["runtime"], about["dtype"], about["points"], about["length"])


class Opened:
    """The child's side of `open_foreign`."""

    def __init__(
        self,
        path: Path,
        trace: tuple[str, ...],
        device: Device,
        threads: int | None,
        memory: int,
    ) -> None:
        if not uses_gpu(device):  # a GPU reserves more than it uses
            limit_memory(memory)
        self.path = path
        self.tokens, self.ids, self.outputs, about = read_graph(path, trace)
        self.session = open_session(path, device, threads=threads)
        self.about = about | {"runtime": self.session.runtime}

    def facts(self) -> dict[str, Any]:
        """What the parent has to know of the graph, and what runs it."""
        return self.about

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs for some inputs; what is no array of numbers is refused."""
        inputs[self.tokens] = inputs.pop(graphs.TOKENS).astype(self.ids)
        arrays = self.session.run(inputs, self.outputs)
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray | np.generic) or array.dtype.kind not in "fiu":
                raise RefimplError(
                    f"`graph={self.path}`: output {name} is no array of numbers",
                    "arrays of float32 or float64",
                    "write the graph with refimpl export",
                )
        return arrays


def read_graph(path: Path, trace: tuple[str, ...]) -> tuple[str, Any, Any, dict[str, Any]]:
    """Read a graph, but not the weights beside it, given the names of all trace points.

    Returns the name of its token ids and their dtype, the outputs to ask for, and what `Candidate`
    has of it: which points it promises, in which dtype, for which length.
    """
    try:
        with open_file(path, LARGEST_GRAPH) as file:
            proto = onnx.load(file, load_external_data=False)
        tensors = [*proto.graph.initializer]
        for sparse in proto.graph.sparse_initializer:
            tensors += [sparse.values, sparse.indices]
        places = {x.value for t in tensors for x in t.external_data if x.key == "location"}
        for data in (path.parent / name for name in places):  # the runtimes open them
            if data.exists():
                open_file(data).close()
    except RefimplError:
        raise
    except Exception as error:  # protobuf's own class for what it cannot read has no stubs
        why = error.strerror if isinstance(error, OSError) else "no ONNX graph"
        raise RefimplError(
            f"`graph={path}`: cannot be read ({why})",
            "an ONNX graph, such as refimpl export writes",
            "check the path, or write the graph again",
        ) from error
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = {v.name: v.type.tensor_type for v in proto.graph.input if v.name not in weights}
    outputs = {v.name: v.type.tensor_type.elem_type for v in proto.graph.output}
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    logits = outputs.get("logits", TensorProto.UNDEFINED)
    dtype = facts.get("dtype") or LOGITS_DTYPES.get(logits, "")
    integers = (TensorProto.INT64, TensorProto.INT32)
    takes_tokens = [len(x.shape.dim) == 2 and x.elem_type in integers for x in inputs.values()]
    if dtype not in LOGITS_DTYPES.values() or logits not in LOGITS_DTYPES or takes_tokens != [True]:
        raise RefimplError(
            f"`graph={path}`: inputs {[*inputs][:5]}, outputs {[*outputs][:5]}, logits in dtype "
            f"{logits}, computes in {dtype or 'another dtype'}",
            f"one input of integers, [batch, sequence], and logits in {', '.join(DTYPES)}",
            "write the graph with refimpl export",
        )
    (tokens,) = inputs
    ids = helper.tensor_dtype_to_np_dtype(inputs[tokens].elem_type)
    given = tuple(point for point in trace if point in outputs)
    promised = trace if facts.get("outputs") == "trace" else given
    length = inputs[tokens].shape.dim[1].dim_value or None
    about = {"points": promised, "dtype": dtype, "length": length}
    return tokens, ids, given, about
