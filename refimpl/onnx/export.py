"""Write a model's graph, and its weights in a file beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.arguments import GraphOutputs, integer, require
from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.onnx.recording import model_graph as graphs
from refimpl.onnx.recording.graph import DEFAULT_OPSET, distinct, write_data
from refimpl.running.file_system import remove, to_disk
from refimpl.running.files import check_file, undo_killed, whole

EXPORT_FORMAT = 5  # of `export --json`
OLDEST_OPSET = 18  # the first in which the axes of ReduceMean are an input
NEWEST_OPSET = 25  # the last that is tested


@dataclass(frozen=True)
class Exported:
    """What was written; nodes are those of the graph, where a call is one, and of each function."""

    graph: Path
    graph_bytes: int
    data: Path
    data_bytes: int
    opset: int
    metadata: Mapping[str, str]
    nodes: int
    functions: Mapping[str, int]
    tensors: int


def export(
    model: Model,
    out: str | Path,
    *,
    dtype: npt.DTypeLike = np.float32,
    outputs: GraphOutputs = "logits",
    opset: int = DEFAULT_OPSET,
    force: bool = False,
) -> Exported:
    """Write a model as an ONNX graph, which appears whole or not at all.

    Options are those of `refimpl export`.
    """
    out = Path(out)
    data = Path(f"{out}.data")
    require(opset, integer(OLDEST_OPSET, NEWEST_OPSET), "opset")
    if out.suffix != ".onnx":
        raise RefimplError(
            f"-o {out}", "a name that ends in .onnx", f"use {out.name or 'model'}.onnx"
        )
    inputs = {f"the model's {file.path.name}": file.path for file in model.files}
    for path in (out, data):
        undo_killed(path)
        check_file(path, inputs | {"config.json": model.config_path}, force)
    recording = graphs.Recording(model, dtype, data.name, opset)
    arrays = distinct(recording.carried)
    graphs.record_model(recording, outputs)
    proto = graphs.finished_model(recording, outputs)
    _write(out, data, proto.SerializeToString(deterministic=True), recording)
    return Exported(
        out,
        out.stat().st_size,
        data,
        data.stat().st_size,
        opset,
        {entry.key: entry.value for entry in proto.metadata_props},
        len(proto.graph.node),
        {function.name: len(function.node) for function in proto.functions},
        len(arrays),
    )


def _write(out: Path, data: Path, graph: bytes, recording: graphs.Recording) -> None:
    """Write both files; an old graph, of old weights, is removed before new ones have the name."""
    with whole(out) as new_graph, whole(data) as new_data:
        write_data(new_data, recording.carried)
        new_graph.write_bytes(graph)
        remove(out)
        to_disk(out.parent)


def exported_document(exported: Exported) -> dict[str, Any]:
    """The document of `refimpl export --json`."""
    facts = vars(exported) | {"graph": str(exported.graph), "data": str(exported.data)}
    return {"format": EXPORT_FORMAT, **facts}
