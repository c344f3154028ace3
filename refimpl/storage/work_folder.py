"""The hidden folder beside an output, `.NAME.part`, with our mark, which the run at work locks.

A killed run leaves the mark without a lock. A folder without it is the user's, unless it is empty.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from refimpl.storage.file_system import ResumableError, foreign, is_folder, is_own, writing

try:
    import fcntl
except ImportError:  # Windows has no locks: the user must not start two runs at once
    fcntl = None  # type: ignore[assignment]

MARK, NEW = "refimpl.lock", "new"
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
            if not is_folder(work) or (os.listdir(work) and not os.path.lexists(mark)):
                raise foreign(work)
            file, free = _locked(mark)
        with file:
            if not free:
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


def _locked(path: Path) -> tuple[IO[bytes], bool]:
    """Our mark, locked until it is closed; False if another run holds or has just removed it."""
    if os.path.lexists(path) and not is_own(path):
        raise foreign(path)
    file = path.open("ab")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file, os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return file, False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            file.close()
            raise
    return file, True  # of a system without locks
