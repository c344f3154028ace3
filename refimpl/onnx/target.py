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
from refimpl.storage.files import checked_output, temporary, writing

MESSAGE_LIMIT = (1 << 31) - 1  # bytes of a graph's own file, which is one protobuf message
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
        raise RefimplError(
            f"-o {out}", "a name that ends in .onnx", f"use {out.name or 'model'}.onnx"
        )
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
def whole_graph(out: Path, data: Path | None) -> Iterator[Path]:
    """Yield a path for the new graph, renamed to `out` when it is whole, after its new data.

    The data file is expected beside that path, under the name of `data`. A graph never stands
    beside data of another one. What the system or onnx refuses is a RefimplError.
    """
    try:
        with writing(out), temporary(out.with_name(f".{out.name}.part")) as part:
            if data is None:
                yield part
            else:
                part.mkdir()
                part = part / out.name
                yield part
                out.unlink(missing_ok=True)  # an old graph would be left with the new data
                part.with_name(data.name).replace(data)
            part.replace(out)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RefimplError(
            f"{out}: onnx {onnx.__version__} does not accept the graph ({error})",
            "a graph that passes onnx's checker",
            "use --weights external, or another --opset or version of onnx; no file was written",
        ) from error
