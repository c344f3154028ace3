"""A graph in a file: its inputs and outputs, and whether it can be compared at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from refimpl.errors import RefimplError
from refimpl.method.perturbation import Noise
from refimpl.onnx.recording.experiment_graph import AT, ETA, NOISE
from refimpl.onnx.recording.model_graph import PERTURBATION_OPTIONS, TOKENS
from refimpl.storage.file_system import open_file
from refimpl.storage.target_checks import LARGEST_GRAPH

LOGITS_DTYPES = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"}
MEASURED = ("drift", "alignment", "coefficient")  # outputs of an experiment, among others


@dataclass(frozen=True)
class GraphFile:
    """A graph in a file.

    Args:
        tokens: Name of its input of token ids, [B, S].
        ids: Dtype of that input.
        points: Trace points that it promises; none of an experiment.
        outputs: What is asked of it: its trace points, or those of an experiment.
        plan: How states are perturbed and measured, by option; None unless it is an experiment's.
    """

    tokens: str
    ids: np.dtype[np.generic]
    dtype: str
    points: tuple[str, ...]
    outputs: tuple[str, ...]
    plan: Mapping[str, str] | None


def parsed_graph(path: Path) -> onnx.ModelProto:
    """A graph without the weights beside it."""
    with open_file(path, LARGEST_GRAPH) as file:
        return onnx.load(file, load_external_data=False)


def locations(proto: onnx.ModelProto) -> tuple[str, ...]:
    """The files of weights that a graph refers to, relative to its folder."""
    tensors = [*proto.graph.initializer]
    for sparse in proto.graph.sparse_initializer:
        tensors += [sparse.values, sparse.indices]
    entries = [entry for tensor in tensors for entry in tensor.external_data]
    return tuple(dict.fromkeys(entry.value for entry in entries if entry.key == "location"))


def read_graph(path: Path, trace: tuple[str, ...]) -> GraphFile:
    """Read a graph, but not the weights beside it, given the names of all trace points."""
    try:
        proto = parsed_graph(path)
        for name in locations(proto):  # the runtimes open them
            if (path.parent / name).exists():
                open_file(path.parent / name).close()
    except RefimplError:
        raise
    except Exception as error:  # protobuf's own class for what it cannot read has no stubs
        why = error.strerror if isinstance(error, OSError) else "no ONNX graph"
        raise RefimplError(
            f"--graph {path}: cannot be read ({why})",
            "an ONNX graph, such as refimpl export writes",
            "check the path, or write the graph again",
        ) from error
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = {v.name: v.type.tensor_type for v in proto.graph.input if v.name not in weights}
    outputs = {v.name: v.type.tensor_type.elem_type for v in proto.graph.output}
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    plan = _plan(facts, inputs, outputs)
    if plan is None and ("logits" not in outputs or not _takes_tokens(inputs)):
        raise RefimplError(
            f"--graph {path}: inputs {_short(list(inputs))}, outputs {_short(list(outputs))}",
            "one input of integers, [batch, sequence], and an output named logits",
            "write the graph with refimpl export",
        )
    logits = outputs.get("logits", TensorProto.UNDEFINED)
    dtype = facts.get("dtype") or LOGITS_DTYPES.get(logits, "")
    if dtype not in LOGITS_DTYPES.values() or (plan is None and logits not in LOGITS_DTYPES):
        raise RefimplError(
            f"--graph {path}: computes in {dtype or 'another dtype'}, logits in dtype {logits}",
            "float32 or float64",
            "write the graph with refimpl export",
        )
    tokens = next(iter(inputs)) if plan is None else TOKENS
    ids = helper.tensor_dtype_to_np_dtype(inputs[tokens].elem_type)
    if plan is not None:
        return GraphFile(tokens, ids, dtype, (), MEASURED, plan)
    given = tuple(point for point in trace if point in outputs)
    promised = trace if facts.get("outputs") == "trace" else given
    return GraphFile(tokens, ids, dtype, promised, given, None)


def _takes_tokens(inputs: Mapping[str, Any]) -> bool:
    """Whether the only input is integers of two axes."""
    kinds, integers = list(inputs.values()), (TensorProto.INT64, TensorProto.INT32)
    return len(kinds) == 1 and kinds[0].elem_type in integers and len(kinds[0].shape.dim) == 2


def _plan(
    facts: Mapping[str, str], inputs: Mapping[str, Any], outputs: Mapping[str, int]
) -> dict[str, Any] | None:
    """How an experiment's graph perturbs and measures by its metadata; None for another graph."""
    options = plan_options({"noise_norm": "exact", **facts})  # older graphs do not say it
    takes, gives = {TOKENS, AT, ETA, NOISE} <= inputs.keys(), {*MEASURED} <= outputs.keys()
    if not takes or not gives or len(options) < len(PERTURBATION_OPTIONS):
        return None
    Noise(**options)  # refuses other values
    return options


def plan_options(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a perturbation among some facts."""
    return {name: facts[name] for name in PERTURBATION_OPTIONS if name in facts}


def _short(names: list[str]) -> list[str]:
    """At most the first five names."""
    return names if len(names) < 6 else [*names[:5], "..."]
