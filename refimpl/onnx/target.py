"""Where a graph may go: beside what it refers to, with room, and under its name only when whole."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx

from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.onnx.recording.external_data import Piece, distinct
from refimpl.storage.files import checked_output, temporary, writing

LIMIT = (1 << 31) - 1  # bytes of a graph's own file, which is one protobuf message
SPARE = 1 << 20  # room for the graph itself, besides its weights
MIB = 1 << 20


def default_output(model: Model) -> Path:
    """Where a graph goes by default: beside the weights, `model.onnx` or the file's name.

    Args:
        model: From `read_model`.

    Returns:
        The file.

    Example:
        >>> from refimpl import read_model
        >>> default_output(read_model("fixtures/llama")).as_posix()
        'fixtures/llama/model.onnx'
    """
    name = "model" if model.path.is_dir() else model.path.name.split(".safetensors")[0]
    return model.folder / f"{name}.onnx"


def check_reference(model: Model, out: Path) -> None:
    """Refuse files that a graph cannot refer to.

    Args:
        model: From `read_model`.
        out: The graph's file.

    Raises:
        RefimplError: A file in another folder than the graph's, a link, or with several names.

    Source:
        onnx and onnxruntime (peers): neither follows `../` nor absolute paths; onnx refuses
        symbolic links and files with several hard links, onnxruntime links out of the folder.
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
                "use --weights external (a copy), or leave -o away; or copy the model first",
            )


def check_output(model: Model, out: Path, data: Path | None, force: bool) -> None:
    """Refuse an output that cannot be written, or that would damage something.

    Args:
        model: From `read_model`.
        out: The graph's file.
        data: The data file beside it, or None.
        force: Whether what is there may be replaced.

    Raises:
        RefimplError: Not a name for a graph, an input, a folder, a folder that is missing or may
            not be written, or something that exists.

    Source:
        ours.
    """
    if out.suffix != ".onnx":
        raise RefimplError(f"-o {out}", "a name that ends in .onnx", f"use {out.name}.onnx")
    read = {f"the model's {file.path.name}": file.path for file in model.files}
    for path in (out, data):
        checked_output(path, read | {"config.json": model.config_path})
        if path is not None and os.path.lexists(path) and not force:
            raise RefimplError(
                f"-o {path} exists", "a file that is not there yet", "add --force to replace it"
            )


def check_room(out: Path, found: Mapping[str, Piece], weights: str) -> None:
    """Refuse a graph that one message cannot hold, or for which the disk has no room.

    Args:
        out: The graph's file.
        found: The weights to be written; none where they are referred to.
        weights: How they enter.

    Raises:
        RefimplError: Too large.

    Source:
        ours; the limit is protobuf's (a peer).
    """
    once = distinct(found)
    values, indices = (
        sum(getattr(piece, size) for piece in once) for size in ("value_bytes", "index_bytes")
    )
    inside = SPARE + indices + (values if weights == "embedded" else 0)
    beside = values if weights == "external" else 0
    if inside > LIMIT:
        raise RefimplError(
            f"-o {out}: the graph's own file would have {inside / MIB:,.0f} MiB",
            f"at most {LIMIT / MIB:,.0f} MiB, which is what one protobuf message holds",
            "use --sparse never" if weights == "external" else "use --weights external",
        )
    free = shutil.disk_usage(out.parent).free
    if free < inside + beside:
        raise RefimplError(
            f"-o {out}: needs {(inside + beside) / MIB:,.1f} MiB, and {free / MIB:,.1f} MiB are "
            "free",
            "room for the whole graph and its weights, also where it replaces an old one",
            "make room, choose another -o, or use --weights reference, which copies none",
        )


@contextmanager
def whole_graph(out: Path, data: Path | None) -> Iterator[Path]:
    """Yield a path for the new graph, renamed to `out` when it is whole, after its new data.

    The data file is expected beside that path, under the name of `data`. A graph never stands
    beside data of another one. What the system or onnx refuses is a RefimplError.
    """
    with _accepted(out), writing(out), temporary(out.with_name(f".{out.name}.part")) as part:
        if data is None:
            yield part
        else:
            part.mkdir()
            part = part / out.name
            yield part
            out.unlink(missing_ok=True)  # an old graph would be left with the new data
            part.with_name(data.name).replace(data)
        part.replace(out)


@contextmanager
def _accepted(out: Path) -> Iterator[None]:
    """Say which graph it was that onnx refused to accept."""
    try:
        yield
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RefimplError(
            f"{out}: onnx {onnx.__version__} does not accept the graph ({error})",
            "a graph that passes onnx's checker",
            "use --weights external, or another --opset or version of onnx; the file was not kept",
        ) from error
