"""Where a graph may be written: checks of the output, and how the graph appears only when whole."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.onnx.recording.graph_weights import GraphWeight
from refimpl.running.memory import MIB
from refimpl.storage.file_system import foreign, is_folder, remove, to_disk, writing
from refimpl.storage.files import OLD, keep_rights
from refimpl.storage.target_checks import LARGEST_GRAPH, check_file, mentions
from refimpl.storage.work_folder import NEW, work_folder, work_path

MESSAGE_LIMIT = LARGEST_GRAPH
SPARE = 1 << 20  # bytes for the graph itself, besides its weights


def default_output(model: Model) -> Path:
    """The default file of a graph: beside the weights, `model.onnx` or the file's name."""
    if model.hub_id is not None:
        raise RefimplError(
            f"no -o, and {model.hub_id} is in the Hugging Face cache",
            "a file outside the cache, which holds downloads only",
            f"add for example -o {model.hub_id.split('@')[0].split('/')[-1]}.onnx",
        )
    name = "model" if model.path.is_dir() else model.path.name.split(".safetensors")[0]
    return model.folder / f"{name}.onnx"


def data_file(out: Path) -> Path:
    """The file for a graph's weights beside it."""
    return Path(f"{out}.data")


def check_output(model: Model, out: Path, data: Path | None, force: bool) -> None:
    """Refuse a graph's file, and the data file beside it, that exist or cannot be written."""
    if out.suffix != ".onnx":
        raise RefimplError(
            f"-o {out}", "a name that ends in .onnx", f"use {out.name or 'model'}.onnx"
        )
    if os.path.lexists(work_path(out)):
        with work_folder(work_path(out)) as work:
            _undo(work, out)
    inputs = {f"the model's {file.path.name}": file.path for file in model.files}
    for path in (out, data):
        if path is not None:
            check_file(path, inputs | {"config.json": model.config_path}, force)


def check_room(out: Path, written: Sequence[GraphWeight], storage: str) -> None:
    """Refuse a graph that is too large for one protobuf message, or for the disk."""
    values = sum(weight.nbytes for weight in written)
    inside = SPARE + (values if storage == "embedded" else 0)
    beside = values if storage == "external" else 0
    if inside > MESSAGE_LIMIT:
        raise RefimplError(
            f"-o {out}: the graph's own file would have {inside / MIB:,.0f} MiB",
            f"at most {MESSAGE_LIMIT / MIB:,.0f} MiB, the limit of a protobuf message",
            "use --weights external",
        )
    free = shutil.disk_usage(out.parent).free
    if free < inside + beside:
        raise RefimplError(
            f"-o {out}: needs {(inside + beside) / MIB:,.1f} MiB, and {free / MIB:,.1f} MiB are "
            "free",
            "room for the whole graph and its weights, also if it replaces an old one",
            "make room, or choose another -o",
        )


@contextmanager
def whole_graph(out: Path, data: Path | None) -> Iterator[Path]:
    """Yield a path for the new graph, renamed to `out` when it is whole, after its new data.

    The data file is expected beside that path, under the name of `data`. An old graph and its data
    are moved aside first, so a graph never stands beside data of another one. What the system or
    onnx refuses is a RefimplError.
    """
    try:
        with writing(out), work_folder(work_path(out)) as work:
            _undo(work, out)
            old = [out]
            if data is not None or mentions(out, os.fsencode(data_file(out).name)):
                old.append(data_file(out))
            try:
                (work / NEW).mkdir()
                new = work / NEW / out.name
                yield new
                for path in new.parent.iterdir():
                    keep_rights(path, out)
                    to_disk(path)
                (work / OLD).mkdir()
                for path in filter(os.path.lexists, old):
                    path.replace(work / OLD / path.name)
                to_disk(work / OLD)
                if data is not None:
                    new.with_name(data.name).replace(data)
                to_disk(out.parent)
                new.replace(out)
                to_disk(out.parent)
            finally:
                _undo(work, out)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RefimplError(
            f"{out}: onnx {onnx.__version__} does not accept the graph ({error})",
            "a graph that passes onnx's checker",
            "use --weights external, or another --opset or version of onnx; no file was written",
        ) from error


def _undo(work: Path, out: Path) -> None:
    """Put an old graph back if there is no new one, else delete it; remove what was not whole."""
    for path in (work / NEW, work / OLD):
        if os.path.lexists(path) and not is_folder(path):
            raise foreign(path)
    remove(work / NEW)
    for path in (data_file(out), out) if not os.path.lexists(out) else ():
        if (work / OLD / path.name).exists():
            (work / OLD / path.name).replace(path)
            to_disk(out.parent)
    remove(work / OLD)
