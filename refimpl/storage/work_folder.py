"""The hidden folder beside an output, `.NAME.part`, in which a run makes it.

It holds our mark, a file that the run at work locks. A killed run leaves both, but no lock, so the
next run can tell that the rest is ours and that nobody needs it. A folder without the mark is the
user's, unless it is empty: a run may be killed before it makes the mark.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.storage.file_system import foreign, is_folder, open_own, writing
from refimpl.storage.lock import locked

MARK, NEW = "refimpl.lock", "new"


def work_path(target: Path) -> Path:
    """The hidden folder: beside the target, so that a rename is enough at the end."""
    return target.with_name(f".{target.name}.part")


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """Make, mark and lock the hidden folder, or that of a dead run; remove it if nothing is left.

    It is private, as the output may be.
    """
    work = work_path(target)
    with writing(target):
        with suppress(FileExistsError):
            work.mkdir(0o700)
        mark = work / MARK
        if not is_folder(work) or (os.listdir(work) and not os.path.lexists(mark)):
            raise foreign(work)
        try:
            with open_own(mark) as file:
                if not locked(file, mark):
                    raise RefimplError(
                        f"{target}: another run is writing it (in {work})",
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
