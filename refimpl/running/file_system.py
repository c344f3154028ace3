"""Steps on the file system: errors as ours, no links, bytes on the disk; and the hidden folder."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from math import inf
from pathlib import Path
from typing import IO

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


def comes_again(error: BaseException) -> bool:
    """Whether an error would come again if the run were repeated: what it kept is of no use."""
    return isinstance(error, RefimplError | ArithmeticError) and not isinstance(
        error, ResumableError
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


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a path, renamed to `path` when its file is on the disk; an error removes it."""
    beside = path.with_name(f".{path.name}")
    try:
        yield beside
        to_disk(beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


try:
    import fcntl
except ImportError:  # Windows has no locks: the user must not start two runs at once
    fcntl = None  # type: ignore[assignment]

MARK, NEW = "refimpl.lock", "new"
DONE = "done.json"  # which blocks of a copy in `new` are done
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # errors of file systems without locks


def work_path(target: Path) -> Path:
    """The hidden folder: beside the target, so that a rename is enough at the end."""
    return target.with_name(f".{target.name}.part")


@contextmanager
def work_folder(work: Path) -> Iterator[Path]:
    """Make, mark and lock the hidden folder, or a dead run's; remove it if nothing is left."""
    mark = work / MARK
    try:
        with writing(work):
            with suppress(FileExistsError):
                work.mkdir(0o700)  # the output may be private
            if not is_folder(work) or (os.listdir(work) and not is_own(mark)):
                raise RefimplError(
                    f"{work} was not made by refimpl, which needs this name while it works",
                    "no such file, or one that an earlier run left",
                    "move it away, or choose another -o",
                )
            file = mark.open("ab")
        with file:
            with writing(work):
                locked = _locked(file, mark)
            if not locked:
                raise ResumableError(
                    f"{work}: another run is writing it",
                    "one run at a time for one output",
                    "wait until it ends, or choose another -o",
                )
            try:
                yield work
            finally:
                with suppress(OSError):
                    if os.listdir(work) == [MARK]:
                        mark.unlink()
    finally:
        with suppress(OSError):  # it is not empty if a later run needs what is in it
            work.rmdir()


def _locked(file: IO[bytes], path: Path) -> bool:
    """Lock our mark until it is closed; False if another run holds or has just removed it."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return True
