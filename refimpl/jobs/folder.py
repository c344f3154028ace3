"""A folder that appears whole or not at all.

All work happens in one hidden folder beside the target, `.NAME.part`, which holds a `lock` while a
run is at work. Steps, in this order; a run may be killed between any two, or within one:

1. what an earlier run left in `.NAME.part` is undone: see `_recover`;
2. `.NAME.part/new` is made, filled by the caller, and brought to the disk;
3. with force, an existing target is moved aside, to `.NAME.part/old`;
4. `.NAME.part/new` is renamed to the target;
5. the old folder is renamed to `.NAME.part/deleted`, and deleted;
6. `.NAME.part` is removed.

Between 3 and 4 no folder stands under the target's name; the next run puts the old one back.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from refimpl.errors import RefimplError
from refimpl.jobs.place import place, refuse_existing, refuse_overlap

try:
    import fcntl
except ImportError:  # Windows: no lock, so two runs at once are the user's to avoid
    fcntl = None  # type: ignore[assignment]

LOCK, NEW, OLD, DELETED = "lock", "new", "old", "deleted"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of file systems that have none
MIB = 1 << 20


@contextmanager
def new_folder(target: Path, force: bool) -> Iterator[Path]:
    """Make a folder that stands under its name only when it is whole.

    Args:
        target: Its name, in a folder that exists.
        force: Whether an existing folder of models is replaced.

    Yields:
        An empty folder to be filled; renamed to `target` when the caller is done with it, removed
        where the caller fails or is interrupted.

    Raises:
        RefimplError: The target exists, another run is writing it, or nothing can be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as parent:
        ...     with new_folder(Path(parent) / "out", force=False) as folder:
        ...         _ = (folder / "a.txt").write_text("whole")
        ...         before = os.listdir(parent)
        ...     before, os.listdir(parent)
        (['.out.part'], ['out'])
    """
    target = place(target)
    work = _work_folder(target)
    with _written(target), _alone(work, target):
        _recover(work, target)
        refuse_existing(target, force)
        try:
            new = work / NEW
            new.mkdir()
            yield new
            for here, _, names in os.walk(new):
                for path in (*(Path(here, name) for name in names), Path(here)):
                    _to_disk(path)
            _swap(work, target, force)
        except BaseException:
            with suppress(OSError):  # what cannot be undone now, the next run undoes
                _recover(work, target)
            raise


def check_target(
    target: Path, inputs: Mapping[str, Path | None], force: bool, needed_bytes: int
) -> None:
    """Refuse, before any work, a folder that could not be written, or that would damage something.

    What a killed run left beside the target is undone first.

    Args:
        target: The folder to be made.
        inputs: Files and folders that are read, by what to call them.
        force: Whether an existing folder of models may be replaced.
        needed_bytes: Room the new folder takes.

    Raises:
        RefimplError: The target exists and force is not given, or is no folder of models; it is,
            holds, or lies in the folder of an input; its parent is missing or may not be written;
            another run is writing it; the disk has too little room.
    """
    target = place(target)
    parent = target.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise RefimplError(
            f"-o {target}: {parent} is missing, or may not be written",
            "a name in a folder that exists and may be written",
            "create the folder, or choose another -o",
        )
    work = _work_folder(target)
    with _written(target):
        if work.exists():
            with _alone(work, target):
                _recover(work, target)
        for name, path in inputs.items():
            if path is not None and path.exists():
                refuse_overlap(target, name, path)
        refuse_existing(target, force)
        free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise RefimplError(
            f"-o {target}: needs {needed_bytes / MIB:,.1f} MiB, and {free / MIB:,.1f} MiB are free",
            "room for a whole new model, also where it replaces an old one",
            "make room, or choose another -o",
        )


def _work_folder(target: Path) -> Path:
    """Where the folder is made: beside its target, so that a rename brings it there."""
    return target.with_name(f".{target.name}.part")


@contextmanager
def _written(target: Path) -> Iterator[None]:
    """Say which folder it was that the system refused to write."""
    try:
        yield
    except OSError as error:
        raise RefimplError(
            f"{target}: cannot be written ({error.strerror or error})",
            "a folder that may be written, on a disk with room",
            "choose another place with -o, or make room",
        ) from error


@contextmanager
def _alone(work: Path, target: Path) -> Iterator[None]:
    """Make the work folder and hold its lock; in the end it is removed, if nothing is left in it.

    A killed run leaves its folder, but holds no lock.
    """
    work.mkdir(exist_ok=True)
    lock = work / LOCK
    try:
        if fcntl is None:
            yield
            return
        with lock.open("wb") as file:
            if not _locked(file, lock):
                raise RefimplError(
                    f"{target}: another run is writing it (in {work})",
                    "one run at a time for one folder",
                    "wait for it to end, or choose another -o",
                )
            try:
                yield
            finally:
                lock.unlink()
    finally:
        with suppress(OSError):  # something that could not be undone is still in it
            work.rmdir()


def _locked(file: BinaryIO, lock: Path) -> bool:
    """Lock a file, unless another run has it or has just removed it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), lock.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return True
        raise


def _recover(work: Path, target: Path) -> None:
    """Undo what is left of a run: an old folder goes back if there is no new one, the rest goes."""
    if (work / OLD).exists():
        if os.path.lexists(target):
            _delete_old(work)
        else:
            _rename(work / OLD, target)
    for name in (NEW, DELETED):
        if (work / name).exists():
            shutil.rmtree(work / name)


def _swap(work: Path, target: Path, force: bool) -> None:
    """Put the new folder in the place of the old one."""
    if os.path.lexists(target):
        refuse_existing(target, force)  # it may have come while we were at work
        _rename(target, work / OLD)
    _rename(work / NEW, target)
    try:
        if (work / OLD).exists():
            _delete_old(work)
    except OSError as error:
        raise RefimplError(
            f"{target}: is whole, but what it replaced cannot be deleted ({error.strerror})",
            "an old folder that may be deleted",
            f"delete {work} yourself",
        ) from error


def _delete_old(work: Path) -> None:
    """Delete the folder that was moved aside, which must not be found again half deleted."""
    if (work / DELETED).exists():
        shutil.rmtree(work / DELETED)
    _rename(work / OLD, work / DELETED)
    shutil.rmtree(work / DELETED)


def _rename(source: Path, target: Path) -> None:
    """Rename, and bring it to the disk before anything else happens."""
    source.rename(target)
    for parent in {source.parent, target.parent}:
        _to_disk(parent)


def _to_disk(path: Path) -> None:
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
