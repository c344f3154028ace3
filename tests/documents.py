"""What runs leave on the disk, to compare: documents, folders of models, partial results."""

import json
from pathlib import Path
from typing import Any


def numbers(path: Path) -> dict[str, Any]:
    """A document without what differs from run to run."""
    return {
        name: value
        for name, value in json.loads(path.read_text()).items()
        if name not in ("run", "seconds")
    }


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def content(folder: Path) -> dict[str, bytes]:
    """Files of a model's folder, `pruning.json` without what differs from run to run."""
    return files(folder) | {"pruning.json": repr(numbers(folder / "pruning.json")).encode()}


def keys(part: Path) -> list[str]:
    """Keys in the whole lines of a file of partial results, after its mark and its identity."""
    *lines, _ = part.read_bytes().split(b"\n") if part.exists() else [b""]
    return [key for line in lines[2:] for key in json.loads(line.partition(b" ")[2])]
