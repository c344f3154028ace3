"""Files and folders that appear whole or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.storage.file_system import is_folder, keep_rights, remove, to_disk, tree_to_disk
from refimpl.storage.work_folder import MARK, NEW, work_folder, work_path


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Yield a path for a new file or folder, renamed to `target` when it is whole.

    An existing file is replaced, and its rights stay; after any error it is as it was. Files in a
    folder get the rights that the umask leaves, which the folder shows: some libraries make theirs
    private. What a killed run left is removed.
    """
    with work_folder(target) as work:
        if others := {*os.listdir(work)} - {MARK, NEW}:
            raise RefimplError(
                f"{work} holds what an interrupted run of another command left: "
                f"{', '.join(sorted(others))}",
                "an output of one command",
                "repeat the command that was interrupted, or choose another -o",
            )
        new = work / NEW
        try:
            remove(new)
            yield new
            if new.is_dir():
                rights = new.stat().st_mode & 0o666
                for path in new.rglob("*"):
                    if path.is_file():
                        path.chmod(rights)
            keep_rights(new, target)
            tree_to_disk(new)
            new.replace(target)
            to_disk(target.parent)
        finally:
            remove(new)


def remove_left(target: Path) -> None:
    """Remove what a killed run of `whole` left beside an output, unless a run is at work."""
    if not target.name:  # "", "." and "/" are refused by what comes next
        return
    work = work_path(target)
    if is_folder(work) and {*os.listdir(work)} <= {MARK, NEW}:
        with suppress(RefimplError), work_folder(target):
            remove(work / NEW)


def json_text(content: Mapping[str, Any]) -> str:
    """JSON for a file: without NaN or Inf, and in ASCII, in which any name can be written."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all; an existing one is replaced."""
    write_text(path, json_text(content))


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; an existing file is replaced."""
    with whole(path) as new:
        new.write_text(text, "utf-8")
