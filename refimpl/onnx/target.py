"""Where a graph may be written: checks of the output, and how the graph appears only when whole."""

import glob
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import onnx

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import read_file
from refimpl.model.model import Model
from refimpl.onnx.recording.graph_weights import GraphWeight
from refimpl.running.memory import MIB
from refimpl.storage.file_system import foreign, keep_rights, remove, to_disk, writing
from refimpl.storage.target_checks import LARGEST_GRAPH, check_file, mentions
from refimpl.storage.work_folder import NEW, work_folder, work_path

MESSAGE_LIMIT = LARGEST_GRAPH
REPLACED = "replaced"  # in the work folder: names beside the graph that are ours to remove
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
    """The file for a graph's weights beside it: `FILE.onnx.data`, unless the old graph has that.

    So the old graph and its weights stay as they are until the new graph has its name.
    """
    first = Path(f"{out}.data")
    if not _mentions(out, first.name):
        return first
    others = (out.with_name(f"{out.stem}.{n}.onnx.data") for n in count(2))
    return next(x for x in others if not (_mentions(out, x.name) or os.path.lexists(x)))


def check_reference(model: Model, out: Path) -> None:
    """Refuse files of weights that a graph cannot refer to.

    Neither onnx nor onnxruntime follows `../` or absolute paths; onnx refuses symbolic links and
    files with several hard links, onnxruntime links out of the folder.
    """
    for file in model.files:
        path, why = file.path, ""
        if model.companions is not None:
            why = "is quantised"
        elif path.is_symlink():
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
    if os.path.lexists(work_path(out)):
        with work_folder(work_path(out)) as work:
            _clean(work, out)
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
            "make room, choose another -o, or use --weights reference, which copies no weights",
        )


@contextmanager
def whole_graph(out: Path, data: Path | None) -> Iterator[Path]:
    """Yield a path for the new graph, renamed to `out` when it is whole, after its new data.

    The data file is expected beside that path, under the name of `data`. A graph never stands
    beside data of another one: the old graph's data has another name, and goes after it. What the
    system or onnx refuses is a RefimplError.
    """
    try:
        with writing(out), work_folder(work_path(out)) as work:
            _clean(work, out)
            beside = out.with_name(f".{out.name}.new")  # what a graph refers to is in its folder
            if os.path.lexists(beside):
                raise foreign(beside)
            new = beside if data is None else work / NEW / out.name
            ours = {beside, *_data_files(out)}
            if data is not None and not os.path.lexists(data):
                ours.add(data)
            try:
                (work / NEW).mkdir()
                (work / REPLACED).write_text(json.dumps(sorted(path.name for path in ours)))
                to_disk(work / REPLACED)
                to_disk(work)
                yield new
                keep_rights(new, out)
                to_disk(new)
                if data is not None:
                    keep_rights(new.with_name(data.name), out)
                    new.with_name(data.name).replace(data)
                    to_disk(out.parent)
                new.replace(out)
                to_disk(out.parent)
            finally:
                _clean(work, out)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RefimplError(
            f"{out}: onnx {onnx.__version__} does not accept the graph ({error})",
            "a graph that passes onnx's checker",
            "use --weights external, or another --opset or version of onnx; no file was written",
        ) from error


def _clean(work: Path, out: Path) -> None:
    """Remove what a run needs no longer: all of its files that the graph at `out` does not use."""
    remove(work / NEW)
    if os.path.lexists(work / REPLACED):
        names: list[str] = []
        with suppress(ValueError, TypeError):  # half written: nothing else was made before a kill
            names = [*map(str, json.loads(read_file(work / REPLACED)))]
        stem = re.escape(out.stem)  # no other file is removed, whatever is written there
        ours = re.compile(rf"\.{stem}\.onnx\.new|{stem}(\.\d+)?\.onnx\.data")
        for name in filter(ours.fullmatch, names):
            if not _mentions(out, name):
                remove(out.with_name(name))
        (work / REPLACED).unlink()


def _data_files(out: Path) -> Iterator[Path]:
    """Data files of the graph at `out`, with the names that `data_file` gives them."""
    paths = (Path(f"{out}.data"), *out.parent.glob(f"{glob.escape(out.stem)}.*.onnx.data"))
    return (path for path in paths if _mentions(out, path.name))


def _mentions(out: Path, name: str) -> bool:
    """Whether the graph in a file, if there is one, may refer to a file of this name."""
    return mentions(out, os.fsencode(name))
