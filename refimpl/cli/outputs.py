"""What a command reads and writes, by its options, and that the second never destroys the first."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

from refimpl.arguments import common_option
from refimpl.bases.base import bases
from refimpl.errors import RefimplError
from refimpl.loading.files.documents import parsed_json, read_file
from refimpl.loading.files.hub import local_files
from refimpl.running.files import check_file, refuse_overlap, undo_killed

READ_BESIDE = (  # of a file of weights
    "config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


class OutputKind(Enum):
    """Marks an option that names an output."""

    FILE = "file"  # replaced with --force
    FOLDER = "folder"  # which the function that writes it checks, too
    GRAPH = "graph"  # which may lie beside the weights of its model


def output_option(default: Any, help: str, metavar: str, kind: OutputKind) -> Any:
    """The option -o, which names an output."""
    return common_option(default, help, metavar, flags=("-o",), kind=kind)


def check_outputs(
    values: Mapping[str, Any], inputs: Mapping[str, str], outputs: Mapping[str, OutputKind]
) -> None:
    """Refuse, before any work, outputs that cannot be written, or would damage what is read."""
    for key, kind in outputs.items():
        if values[key] is None:
            continue
        path, read = Path(values[key]), dict(_read(values, inputs))
        if kind is not OutputKind.GRAPH:
            with suppress(ValueError):  # also of a path without a name; the command reports it
                undo_killed(path)
        if kind is OutputKind.FILE:
            check_file(path, read, values.get("force", False))
        elif kind is OutputKind.FOLDER:
            for name, other in read.items():
                refuse_overlap(path, name, other)


def _read(values: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """All files and folders that exist and that a command reads, by what to call them."""
    for key, name in inputs.items():
        value = values[key]
        for path in value if isinstance(value, list) else [value]:
            if path is not None:
                yield from _with_companions(name, path)
    for key in ("base", "allocation"):  # a name, or a file
        value = values.get(key)
        if value is not None and value not in bases() and os.path.exists(value):
            yield f"--{key}", Path(value)


def _with_companions(name: str, path: Path) -> Iterator[tuple[str, Path]]:
    """A file, folder or model of the hub, what is read with it, and what it refers to."""
    with suppress(RefimplError):  # the command reports it
        path, _ = local_files(path)
    if not os.path.exists(path):
        return
    yield name, path
    files = path.iterdir() if path.is_dir() else ()
    if path.name.endswith((".safetensors", ".index.json", ".onnx")):  # all but other documents
        files = (x for x in path.parent.iterdir() if x.name in READ_BESIDE or x.suffix != ".json")
    yield from ((f"{name}: {other.name}", other) for other in files)
    with suppress(OSError, ValueError, KeyError, TypeError):  # the command refuses a damaged case
        model = parsed_json(read_file(path / "case.json"))["model"]
        inside = path / model
        yield from _with_companions(
            f"{name}: its model", inside if os.path.exists(inside) else Path(model)
        )
