"""Steps on the file system: errors as ours, files that are never links, and bytes on the disk."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from math import inf
from pathlib import Path

from refimpl.errors import RefimplError

MIB = 1 << 20
AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)  # whatever it is, no wait


class ResumableError(RefimplError):
    """An error that need not come again when the run is repeated: its finished units stay."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system into the error that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise ResumableError(
            f"{path}: cannot be written ({error.strerror or error})",
            "a path in a folder that exists and may be written, on a disk with room",
            "choose another place with -o, or make room",
        ) from error


def foreign(path: Path) -> RefimplError:
    """The error for a file or folder that has a name of ours, but that refimpl did not make."""
    return RefimplError(
        f"{path} was not made by refimpl, which needs this name while it works",
        "no such file, or one that an earlier run left",
        "move it away, or choose another -o",
    )


def open_file(path: Path, most: float = inf) -> BufferedReader:
    """Open a regular file, no pipe or device, of at most `most` bytes: the gate for all reading."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | AT_ONCE))  # noqa: SIM115
    try:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise RefimplError(
                f"{path} is not a regular file",
                "a regular file, not a pipe or a device",
                "check the path, or copy the content to a file",
            )
        if found.st_size > most:
            raise RefimplError(
                f"{path} is larger than {most / MIB:,.0f} MiB",
                f"at most {most / MIB:,.0f} MiB",
                "check that this is the right file, or use a part of it",
            )
        if AT_ONCE:
            os.set_blocking(file.fileno(), True)
    except BaseException:
        file.close()
        raise
    return file


def is_own(path: Path) -> bool:
    """Whether a path is a file with one name, as ours are, and not a link."""
    return path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_folder(path: Path) -> bool:
    """Whether a path is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists."""
    if is_folder(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


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
