"""Write a model's graph, with weights in it or beside it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from refimpl.errors import RefimplError
from refimpl.method.perturbation import Noise
from refimpl.model.model import Model
from refimpl.onnx import target
from refimpl.onnx.recording.experiment_graph import experiment_graph
from refimpl.onnx.recording.graph import DEFAULT_OPSET
from refimpl.onnx.recording.graph_weights import (
    copied,
    distinct,
    graph_weights,
    write_data,
)
from refimpl.onnx.recording.model_graph import GraphOutputs, Recording, described, model_graph
from refimpl.storage.file_system import to_disk

EXPORT_FORMAT = 3  # of `export --json`
WeightStorage = Literal["external", "embedded"]
OLDEST_OPSET = 18  # the first in which the axes of ReduceMean are an input
NEWEST_OPSET = 25  # the last that is tested


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        data: The data file beside the graph, or None.
        outputs: "logits", "trace" or "experiment".
        nodes: Number of nodes of the graph; a call of a function is one.
        functions: Number of nodes of each function.
        tensors: Number of weights written, each once.
        written_bytes: Size of the weights as written.
    """

    graph: Path
    graph_bytes: int
    data: Path | None
    data_bytes: int
    weights: WeightStorage
    outputs: str
    dtype: str
    opset: int
    metadata: Mapping[str, str]
    nodes: int
    functions: Mapping[str, int]
    tensors: int
    written_bytes: int


def export(
    model: Model,
    out: str | Path | None = None,
    *,
    dtype: npt.DTypeLike = np.float32,
    weights: WeightStorage = "external",
    outputs: GraphOutputs = "logits",
    experiment: Noise | None = None,
    opset: int = DEFAULT_OPSET,
    force: bool = False,
) -> Exported:
    """Write a model as an ONNX graph, which appears whole or not at all.

    Options are those of `refimpl export`. A plan in `experiment` writes the perturbation experiment
    in place of the model; its eta, draws and seed do not matter: they are inputs of the graph.
    """
    out, dtype = target.default_output(model) if out is None else Path(out), np.dtype(dtype)
    data = target.data_file(out) if weights == "external" else None
    _check_request(dtype, opset)
    target.check_output(model, out, data, force)
    carried = graph_weights(model, dtype)
    arrays = distinct(carried)
    target.check_room(out, arrays, weights)
    enter = copied(carried, data.name if data else None)
    recording = Recording(model, dtype, enter, opset)
    if experiment is None:
        result, graph = str(outputs), model_graph(recording, outputs)
    else:
        result, graph = "experiment", experiment_graph(recording, experiment)
    proto = described(graph, model, dtype, result, experiment)
    with target.whole_graph(out, data) as part:
        if data is not None:
            write_data(part.with_name(data.name), carried)
        part.write_bytes(proto.SerializeToString(deterministic=True))
        to_disk(part)
        onnx.checker.check_model(str(part), full_check=True)
    return Exported(
        out,
        out.stat().st_size,
        data,
        data.stat().st_size if data else 0,
        weights,
        result,
        dtype.name,
        opset,
        {entry.key: entry.value for entry in proto.metadata_props},
        len(proto.graph.node),
        {function.name: len(function.node) for function in proto.functions},
        len(arrays),
        sum(array.nbytes for array in arrays),
    )


def exported_document(exported: Exported) -> dict[str, Any]:
    """The document of `refimpl export --json`."""
    data = None if exported.data is None else str(exported.data)
    return {"format": EXPORT_FORMAT, **asdict(exported), "graph": str(exported.graph), "data": data}


def _check_request(dtype: np.dtype[np.generic], opset: int) -> None:
    """Refuse a dtype or an opset that cannot be recorded."""
    if dtype not in (np.float32, np.float64):
        raise RefimplError(f"dtype {dtype}", "float32 or float64", "use one of these")
    high = min(NEWEST_OPSET, onnx.defs.onnx_opset_version())
    if not OLDEST_OPSET <= opset <= high:
        raise RefimplError(
            f"opset {opset}",
            f"{OLDEST_OPSET} to {high} (onnx {onnx.__version__})",
            "omit --opset, or install another version of onnx",
        )
