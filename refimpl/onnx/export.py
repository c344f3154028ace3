"""Write a model's graph, and its weights in a file beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.arguments import GraphOutputs, integer, require
from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.onnx.recording import model_graph as graphs
from refimpl.onnx.recording.graph import DEFAULT_OPSET, distinct, write_data
from refimpl.running import file_system as disk
from refimpl.running.outputs import check_file, undo_killed, whole

EXPORT_FORMAT = 6  # of `export --json`
OLDEST_OPSET = 18  # the first in which the axes of ReduceMean are an input
NEWEST_OPSET = 25  # the last that is tested


@dataclass(frozen=True)
class Exported:
    """What was written."""

    graph: Path
    graph_bytes: int
    data: Path
    data_bytes: int
    opset: int
    metadata: Mapping[str, str]
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
    _undo(out, data)
    for path in (out, data):
        undo_killed(path)
        check_file(path, inputs | {"config.json": model.config_path}, force)
    recording = graphs.Recording(model, dtype, data.name, opset)
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
        len(distinct(recording.carried)),
    )


def _write(out: Path, data: Path, graph: bytes, recording: graphs.Recording) -> None:
    """Write the data, then the graph, named last: an old graph never stands beside new data."""
    new_is_named = False
    try:
        with whole(out) as new_graph, whole(data) as new_data:
            write_data(new_data, recording.carried)
            new_graph.write_bytes(graph)
            disk.to_disk(new_graph)
            for path in filter(Path.exists, (out, data)):
                path.replace(_aside(out, path))
                disk.to_disk(path.parent)
            new_is_named = True
    except BaseException:
        if new_is_named and not out.exists():
            disk.remove(data)
        raise
    finally:
        _undo(out, data)


def _undo(out: Path, data: Path) -> None:
    """Put old files back if no graph has the name, and remove them if one has it.

    A graph in the hidden folder, without data in theirs, says that the data have the name alone.
    """
    if not out.name or not disk.work_path(out).exists():
        return
    with disk.writing(out), disk.work_folder(disk.work_path(out)) as work:
        if (
            disk.is_own(work / disk.NEW)
            and not (disk.work_path(data) / disk.NEW).exists()
        ):
            disk.remove(data)
            disk.remove(work / disk.NEW)
        named = out.exists()
        for path in (data, out):  # the graph is the last, again
            old = _aside(out, path)
            if disk.is_own(old):
                disk.remove(old) if named else old.replace(path)


def _aside(out: Path, path: Path) -> Path:
    """Where an old file waits, in the hidden folder of the graph."""
    return disk.work_path(out) / f"old {path.suffix[1:]}"
