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
from refimpl.storage.files import checked_output

MESSAGE_LIMIT = (1 << 31) - 1  # bytes of a graph's own file, which is one protobuf message
SPARE = 1 << 20  # bytes for the graph itself, besides its weights
MIB = 1 << 20


def default_output(model: Model) -> Path:
    """The default file of a graph: beside the weights, `model.onnx` or the file's name."""
    name = "model" if model.path.is_dir() else model.path.name.split(".safetensors")[0]
    return model.folder / f"{name}.onnx"


def check_reference(model: Model, out: Path) -> None:
    """Refuse files of weights that a graph cannot refer to.

    Neither onnx nor onnxruntime follows `../` or absolute paths; onnx refuses symbolic links and
    files with several hard links, onnxruntime links out of the folder.
    """
    for file in model.files:
        path, why = file.path, ""
        if path.is_symlink():
            why = f"is a link (to {os.path.realpath(path)})"
        elif path.stat().st_nlink > 1:
            why = "has several names (hard links)"
        elif not path.parent.samefile(out.parent):
            why = f"is not in the graph's folder {out.parent}"
        if why:
            raise RefimplError(
                f"{path} {why}: runtimes refuse to read weights from there",
                "weights in plain files in the folder of the graph",
                "use --weights external (a copy), omit -o, or copy the model first",
            )


def check_output(model: Model, out: Path, data: Path | None, force: bool) -> None:
    """Refuse a graph's file, and the data file beside it, that exist or cannot be written."""
    if out.suffix != ".onnx":
        raise RefimplError(f"-o {out}", "a name that ends in .onnx", f"use {out.name}.onnx")
    inputs = {f"the model's {file.path.name}": file.path for file in model.files}
    for path in (out, data):
        checked_output(path, inputs | {"config.json": model.config_path})
        if path is not None and os.path.lexists(path) and not force:
            raise RefimplError(
                f"-o {path} exists", "a file that does not exist", "add --force to replace it"
            )


def check_room(out: Path, written: Sequence[GraphWeight], storage: str) -> None:
    """Refuse a graph that is too large for one protobuf message, or for the disk."""
    values = sum(weight.value_bytes for weight in written)
    indices = sum(weight.index_bytes for weight in written)
    inside = SPARE + indices + (values if storage == "embedded" else 0)
    beside = values if storage == "external" else 0
    if inside > MESSAGE_LIMIT:
        raise RefimplError(
            f"-o {out}: the graph's own file would have {inside / MIB:,.0f} MiB",
            f"at most {MESSAGE_LIMIT / MIB:,.0f} MiB, the limit of a protobuf message",
            "use --sparse never" if storage == "external" else "use --weights external",
        )
    free = shutil.disk_usage(out.parent).free
    if free < inside + beside:
        raise RefimplError(
            f"-o {out}: needs {(inside + beside) / MIB:,.1f} MiB, and {free / MIB:,.1f} MiB are "
            "free",
            "room for the whole graph and its weights, also if it replaces an old one",
            "make room, choose another -o, or use --weights reference, which copies no weights",
        )


@contextmanager
def work_place(out: Path, beside: bool) -> Iterator[Path]:
    """A temporary file for the graph, in its folder or a hidden one there; removed at the end."""
    made = out.with_name(f".{out.name}.part")
    _remove(made)  # what a killed run left
    try:
        if not beside:
            made.mkdir()
        yield made if beside else made / out.name
    finally:
        _remove(made)


@contextmanager
def written(out: Path) -> Iterator[None]:
    """Raise our error with the graph's file in place of the system's or onnx's."""
    try:
        yield
    except OSError as error:
        raise RefimplError(
            f"{out}: cannot be written ({error.strerror or error})",
            "a folder that may be written, on a disk with room",
            "choose another place with -o, or make room",
        ) from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RefimplError(
            f"{out}: onnx {onnx.__version__} does not accept the graph ({error})",
            "a graph that passes onnx's checker",
            "use --weights external, or another --opset or version of onnx; no file was written",
        ) from error


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
