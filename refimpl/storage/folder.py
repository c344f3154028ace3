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

A run that can be taken up keeps what it has found so far in `.NAME.part/kept`, which means
something only while `.NAME.part/new` is there; of a run that was killed before step 4 both stay.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.storage.files import rename, tree_to_disk, writing
from refimpl.storage.lock import can_lock, locked
from refimpl.storage.partial_results import final
from refimpl.storage.target_checks import place, refuse_existing, refuse_overlap

LOCK, NEW, OLD, DELETED, KEPT = "lock", "new", "old", "deleted", "kept"
MIB = 1 << 20


@contextmanager
def new_folder(
    target: Path, force: bool, resume: bool | None = None, keep: bool = False
) -> Iterator[Path]:
    """Make a folder that stands under its name only when it is whole.

    Args:
        target: Its name, in a folder that exists.
        force: Whether an existing folder of models is replaced.
        resume: None where the run cannot be taken up; else whether what an earlier one left is.
        keep: Whether what a run that can be taken up has found outlives any error.

    Yields:
        A folder to be filled, empty unless a run is taken up; renamed to `target` when the caller
        is done with it, removed where the caller fails or is interrupted. Of a run that can be
        taken up it stays, with the folder `kept` beside it, unless the input or the disk failed;
        with keep even then.

    Raises:
        RefimplError: The target exists, another run is writing it, nothing can be written, or an
            earlier run could be taken up and is not to be.

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
    with writing(target), _alone(work, target):
        _recover(work, target, resume)
        refuse_existing(target, force)
        try:
            new = work / NEW
            new.mkdir(exist_ok=resume is True)
            if resume is not None:
                (work / KEPT).mkdir(exist_ok=resume)
            yield new
            tree_to_disk(new)
            _swap(work, target, force)
        except BaseException as error:
            if resume is None or final(error):
                undo = resume is None or not keep
                with suppress(OSError):  # what cannot be undone now, the next run undoes
                    _recover(work, target, resume=True, undo=undo)
            raise


@contextmanager
def kept_folder(target: Path, resume: bool) -> Iterator[Path]:
    """Where a run keeps what it finds before it makes its folder.

    Args:
        target: The folder that it will make.
        resume: Whether what an earlier run left is taken up, and outlives any error.

    Yields:
        The folder `kept`, which `new_folder` with resume finds again.

    Raises:
        RefimplError: As for `new_folder`.
    """
    target = place(target)
    work = _work_folder(target)
    with writing(target), _alone(work, target):
        _recover(work, target, resume)
        try:
            for name in (NEW, KEPT):
                (work / name).mkdir(exist_ok=resume)
            yield work / KEPT
        except BaseException as error:
            if final(error) and not resume:
                with suppress(OSError):
                    _recover(work, target, undo=True)
            raise


def check_target(
    target: Path,
    inputs: Mapping[str, Path | None],
    force: bool,
    needed_bytes: int,
    resume: bool = False,
) -> None:
    """Refuse, before any work, a folder that could not be written, or that would damage something.

    What a killed run left beside the target is undone first, unless it can be taken up.

    Args:
        target: The folder to be made.
        inputs: Files and folders that are read, by what to call them.
        force: Whether an existing folder of models may be replaced.
        needed_bytes: Room the new folder takes.
        resume: Whether a run that can be taken up is.

    Raises:
        RefimplError: The target exists and force is not given, or is no folder of models; it is,
            holds, or lies in the folder of an input; its parent is missing or may not be written;
            another run is writing it; the disk has too little room; an earlier run could be taken
            up and is not to be.
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
    with writing(target):
        if work.exists():
            with _alone(work, target):
                _recover(work, target, resume)
        for name, path in inputs.items():
            if path is not None and path.exists():
                refuse_overlap(target, name, path)
        refuse_existing(target, force)
        free = shutil.disk_usage(parent).free
        if resume and (work / NEW).exists():  # files that stand already
            free += sum(path.stat().st_size for path in (work / NEW).iterdir())
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
def _alone(work: Path, target: Path) -> Iterator[None]:
    """Make the work folder and hold its lock; in the end it is removed, if nothing is left in it.

    A killed run leaves its folder, but holds no lock.
    """
    work.mkdir(exist_ok=True)
    lock = work / LOCK
    try:
        if not can_lock():
            yield
            return
        with lock.open("wb") as file:
            if not locked(file, lock):
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


def _recover(work: Path, target: Path, resume: bool | None = None, undo: bool = False) -> None:
    """Undo what is left of a run: an old folder goes back if there is no new one, the rest goes.

    What can be taken up stays if it is to be, or is to be undone; else it is refused.
    """
    if (work / OLD).exists():
        if os.path.lexists(target):
            _delete_old(work)
        else:
            rename(work / OLD, target)
    if (work / DELETED).exists():
        shutil.rmtree(work / DELETED)
    if (work / NEW).exists() and (work / KEPT).exists() and not undo:
        if resume:
            return
        raise RefimplError(
            f"{work} holds what an earlier run has found so far",
            "no such folder, or --resume",
            f"add --resume to take it up, or remove {work / KEPT} to start anew",
        )
    for name in (KEPT, NEW):  # without the first, nobody takes up the second
        if (work / name).exists():
            rename(work / name, work / DELETED)
            shutil.rmtree(work / DELETED)


def _swap(work: Path, target: Path, force: bool) -> None:
    """Put the new folder in the place of the old one."""
    if os.path.lexists(target):
        refuse_existing(target, force)  # it may have come while we were at work
        rename(target, work / OLD)
    rename(work / NEW, target)
    if (work / KEPT).exists():
        shutil.rmtree(work / KEPT)
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
    rename(work / OLD, work / DELETED)
    shutil.rmtree(work / DELETED)
