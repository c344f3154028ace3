"""Steps on the file system: errors as ours, no links, bytes on the disk; and the hidden folder.

In it, an `.npz` holds the results of each work unit, in a folder named by all they depend on.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from io import BufferedReader
from math import inf
from pathlib import Path
from typing import IO, Any

from refimpl.errors import RefimplError

try:
    import fcntl
except ImportError:  # Windows has no locks: the user must not start two runs at once
    fcntl = None  # type: ignore[assignment]

MIB = 1 << 20


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
    resumable = isinstance(error, ResumableError)
    return isinstance(error, RefimplError | ArithmeticError) and not resumable


def open_file(path: Path, most: float = inf) -> BufferedReader:
    """Open a regular file, no pipe or device, of at most `most` bytes: the gate for all reading."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
        raise RefimplError(
            f"{path} is not a regular file",
            "a regular file, not a folder, a pipe or a device",
            "check the path, or copy the content to a file",
        )
    if status.st_size > most:
        raise RefimplError(
            f"{path} is larger than {most / MIB:,.0f} MiB",
            f"at most {most / MIB:,.0f} MiB",
            "check that this is the right file, or use a part of it",
        )
    return path.open("rb")


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
        if (
            error.errno != errno.EINVAL
        ):  # some network file systems have no fsync of folders
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


RUN_FOLDER = 32 * "[0-9a-f]"  # names of folders that we make
_TREE = "tree"  # the array that holds the JSON of a unit, in which _ARRAY is another one's name
_ARRAY = "array"
_MARK, NEW = "refimpl.lock", "new"
DONE = "done.json"  # which blocks of a copy in `new` are done


def work_path(target: Path) -> Path:
    """The hidden folder: beside the target, so that a rename is enough at the end."""
    return target.with_name(f".{target.name}.part")


@contextmanager
def work_folder(work: Path) -> Iterator[Path]:
    """Make, mark and lock the hidden folder, or a dead run's; remove it if nothing is left."""
    mark = work / _MARK
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
            _lock(file, mark)
            try:
                yield work
            finally:
                with suppress(OSError):
                    if os.listdir(work) == [_MARK]:
                        mark.unlink()
    finally:
        with suppress(OSError):  # it is not empty if a later run needs what is in it
            work.rmdir()


def _lock(file: IO[bytes], path: Path) -> None:
    """Lock our mark until it is closed; refuse one that another run holds, or has just removed."""
    with suppress(OSError):  # some network file systems have no locks
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return
        except (BlockingIOError, FileNotFoundError):
            pass
        raise ResumableError(
            f"{path.parent}: another run is writing it",
            "one run at a time for one output",
            "wait until it ends, or choose another -o",
        )


class FinishedUnits:
    """The finished units of one run by their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numpy = import_module("numpy")  # which the plugin of pytest does without
        with writing(folder):
            folder.mkdir(exist_ok=True)

    @property
    def earlier(self) -> dict[str, Any]:
        """The results by key of all units that are whole."""
        results = dict[str, Any]()
        for path in sorted(self.folder.glob("*.npz")):
            with (
                suppress(Exception),
                open_file(path) as file,
                self._numpy.load(file) as arrays,
            ):
                # Whatever a damaged file leads to: the unit is made again. Nothing is unpickled.
                results |= json.loads(
                    arrays[_TREE].tobytes(),
                    object_hook=lambda x: (
                        arrays[x[_ARRAY]] if x.keys() == {_ARRAY} else x
                    ),
                )
        return results

    def write(self, name: str, results: Mapping[str, Any]) -> None:
        """Keep a unit: lists and objects of numbers, texts and arrays, by key."""
        path, arrays = self.folder / f"{name}.npz", dict[str, Any]()

        def reference(x: Any) -> Any:
            if isinstance(x, self._numpy.generic):
                return x.item()
            arrays[str(len(arrays))] = x
            return {_ARRAY: str(len(arrays) - 1)}

        text = json.dumps(dict(results), default=reference).encode()
        arrays[_TREE] = self._numpy.frombuffer(text, "uint8")
        with writing(path), replaced(path) as beside, beside.open("wb") as file:
            self._numpy.savez(file, **arrays)


@contextmanager
def finished_units(work: Path, identity: Mapping[str, Any]) -> Iterator[FinishedUnits]:
    """The finished units of a run, whose `identity` is all that they depend on, as JSON."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    units = FinishedUnits(work / digest[:32])
    try:
        yield units
    except Exception as error:
        if comes_again(error):
            with suppress(OSError):
                remove(units.folder)
        raise
    finally:
        with suppress(OSError):  # it is not empty
            units.folder.rmdir()
