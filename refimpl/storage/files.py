"""Files and folders that appear whole or not at all, and the errors of reading and writing."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from refimpl.errors import RefimplError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system into the error that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise RefimplError(
            f"{path}: cannot be written ({error.strerror or error})",
            "a path in a folder that exists and may be written, on a disk with room",
            "choose another place with -o, or make room",
        ) from error


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Yield the path of a file or folder that does not exist, and does not exist afterwards."""
    remove(path)  # a killed run may have left it
    try:
        yield path
    finally:
        remove(path)


@contextmanager
def whole(target: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a path beside `target` for a new file or folder, renamed to it when it is whole.

    An existing file is replaced; after any error it is as it was. Files in a folder get the rights
    that the umask leaves, which the folder shows: some libraries make theirs private. What is not
    `durable` may be lost when the machine crashes.
    """
    beside = target.with_name(f".{target.name}.{uuid4().hex[:8]}")
    with writing(target), temporary(beside):
        yield beside
        if beside.is_dir():
            rights = beside.stat().st_mode & 0o666
            for path in beside.rglob("*"):
                if path.is_file():
                    path.chmod(rights)
        if durable:
            tree_to_disk(beside)
        beside.replace(target)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all, without NaN or Inf; an existing one is replaced."""
    # ASCII: any name can be written
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; an existing file is replaced."""
    with whole(path) as beside:
        beside.write_text(text, "utf-8")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def tree_to_disk(path: Path) -> None:
    """Bring a file, or a folder after all that it holds, to the disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            to_disk(Path(folder, name))
    to_disk(path)


def to_disk(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no fsync of folders
            raise
    finally:
        os.close(handle)


def checked_output(path: Path | None, inputs: Mapping[str, Path | None]) -> None:
    """Refuse, before any work, an output file that cannot be written or that is one of `inputs`."""
    if path is None:
        return
    for name, other in inputs.items():
        if other is not None and other.exists() and path.exists() and path.samefile(other):
            raise RefimplError(
                f"-o {path} is also {name}", "an output that is not an input", "choose another -o"
            )
    other_kind = path.exists() and not path.is_file()  # a folder, a pipe, a device
    if other_kind or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise RefimplError(
            f"-o {path}: not a file in a folder that may be written",
            "the name of a file in a folder that exists",
            "create the folder, or choose another -o",
        )
