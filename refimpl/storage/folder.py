"""A folder that appears whole or not at all, though it takes a long time and may replace another.

All work happens in one hidden folder beside the target, `.NAME.part` (`work_folder.py`). A run may
be killed between any two of these steps, or within one:

1. undo what an earlier run left in `.NAME.part` (`_recover`);
2. make `.NAME.part/new`, let the caller fill it, and bring it to the disk;
3. with force, move an existing target aside, to `.NAME.part/old`;
4. rename `.NAME.part/new` to the target;
5. rename the old folder to `.NAME.part/deleted`, and delete it;
6. remove `.NAME.part`.

Between 3 and 4 no folder has the target's name; the next run puts the old one back.

A run that can be resumed keeps its partial results in `.NAME.part/kept`, which counts only while
`.NAME.part/new` exists; both stay when such a run is killed before step 4, if there is any result.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.storage.file_system import (
    MIB,
    foreign,
    is_folder,
    keep_rights,
    remove,
    to_disk,
    tree_to_disk,
    writing,
)
from refimpl.storage.partial_results import PartialResultsError, holds_results, recurs
from refimpl.storage.target_checks import (
    real_path,
    refuse_existing,
    refuse_long_name,
    refuse_overlap,
)
from refimpl.storage.work_folder import NEW, work_folder, work_path

OLD, DELETED, RESULTS = "old", "deleted", "kept"


@contextmanager
def new_folder(
    target: Path, force: bool, resumable: bool = False, keep: bool = False
) -> Iterator[Path]:
    """Yield a folder to be filled, renamed to `target` at the end, and removed after an error.

    With `force` it replaces an existing folder of models. If a later run can continue this one
    (`resumable`), it may be that of an earlier run, and it and the folder `kept` beside it stay
    after an error that does not recur, and with `keep` after any error if there is a result.
    """
    target = real_path(target)
    with _recovered(target, resumable) as work:
        refuse_existing(target, force)
        try:
            new = work / NEW
            new.mkdir(exist_ok=resumable)
            if resumable:
                (work / RESULTS).mkdir(exist_ok=True)
            yield new
            keep_rights(new, target)
            tree_to_disk(new)
            _swap(work, target, force)
        except BaseException as error:
            if not resumable or recurs(error):
                _undo_useless(work, target, keep and resumable)
            raise


@contextmanager
def partial_results_folder(target: Path, keep: bool) -> Iterator[Path]:
    """Yield the folder for partial results before a resumable `new_folder`, which finds it again.

    With `keep`, it outlives any error if there is a result.
    """
    target = real_path(target)
    with _recovered(target, resumable=True) as work:
        try:
            for name in (NEW, RESULTS):
                (work / name).mkdir(exist_ok=True)
            yield work / RESULTS
        except BaseException as error:
            if recurs(error):
                _undo_useless(work, target, keep)
            raise


@contextmanager
def removed_if_refused(target: Path, keep: bool) -> Iterator[None]:
    """What follows a `partial_results_folder`: its folder goes after an error that comes again."""
    try:
        yield
    except BaseException as error:
        if recurs(error):
            target = real_path(target)
            with suppress(OSError, RefimplError), _recovered(target, resumable=True) as work:
                _undo_useless(work, target, keep)
        raise


def stopped_results(target: Path) -> list[Path]:
    """The files of partial results that a stopped run of a folder left."""
    results = work_path(Path(os.path.realpath(target))) / RESULTS
    return [path for path in sorted(results.glob("*")) if holds_results(path)]


def damaged(path: Path) -> PartialResultsError:
    """The error for a file in the hidden folder that is not as an earlier run wrote it."""
    return PartialResultsError(
        f"{path} is damaged, or missing",
        "the files that an earlier run wrote",
        f"remove {path.parent.parent / RESULTS} to start anew",
    )


def check_target(
    target: Path,
    inputs: Mapping[str, Path | None],
    force: bool,
    needed_bytes: int,
    resumable: bool = False,
) -> None:
    """Refuse, before any work, a folder that could not be written, or that would damage something.

    What a killed run left beside the target is undone first, unless it can be resumed. `inputs`
    are files and folders by the names that errors give them.
    """
    target = real_path(target)
    parent, work = target.parent, work_path(target)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise RefimplError(
            f"-o {target}: {parent} is missing, or may not be written",
            "a path in a folder that exists and may be written",
            "create the folder, or choose another -o",
        )
    refuse_long_name(target)
    if os.path.lexists(work):
        with _recovered(target, resumable):
            pass
    with writing(target):
        for name, path in inputs.items():
            if path is not None and path.exists():
                refuse_overlap(target, name, path)
        refuse_existing(target, force)
        free = shutil.disk_usage(parent).free
        if resumable and (work / NEW).exists():  # its files are written already
            free += sum(path.stat().st_size for path in (work / NEW).iterdir())
    if free < needed_bytes:
        raise RefimplError(
            f"-o {target}: needs {needed_bytes / MIB:,.1f} MiB, and {free / MIB:,.1f} MiB are free",
            "room for a whole new model, also where it replaces an old one",
            "make room, or choose another -o",
        )


@contextmanager
def _recovered(target: Path, resumable: bool) -> Iterator[Path]:
    """Make and lock the hidden folder, and undo what an earlier run left."""
    with work_folder(target) as work:
        for name in (NEW, OLD, DELETED, RESULTS):
            if os.path.lexists(work / name) and not is_folder(work / name):
                raise foreign(work / name)
        _recover(work, target, resumable)
        yield work


def _recover(work: Path, target: Path, resumable: bool) -> None:
    """Undo what an earlier run left, but keep, or refuse if this run is not resumable, results."""
    _restore(work, target)
    if (work / NEW).exists() and (work / RESULTS).exists():
        if resumable:
            return
        if not stopped_results(target):
            _undo(work, target)
            return
        raise RefimplError(
            f"{work} holds the partial results of an earlier run",
            "an output that no stopped run was writing",
            f"repeat the command of that run, or remove {work / RESULTS} to start anew",
        )
    _undo(work, target)


def _undo_useless(work: Path, target: Path, keep: bool) -> None:
    """Undo what a refused run did; with `keep`, not if it has results that a later run can use."""
    with suppress(OSError):  # the next run undoes the rest
        if keep and stopped_results(target):
            _restore(work, target)
        else:
            _undo(work, target)


def _undo(work: Path, target: Path) -> None:
    """Put an old folder back and remove the new one."""
    _restore(work, target)
    for name in (RESULTS, NEW):  # nothing resumes the new folder without the first
        if (work / name).exists():
            _delete(work, name)


def _restore(work: Path, target: Path) -> None:
    """Put an old folder back if there is no new one; else delete it."""
    if (work / OLD).exists():
        if os.path.lexists(target):
            _delete(work, OLD)
        else:
            _rename(work / OLD, target)
    remove(work / DELETED)


def _swap(work: Path, target: Path, force: bool) -> None:
    """Put the new folder in the place of the old one."""
    if os.path.lexists(target):
        refuse_existing(target, force)  # it may have appeared during the work
        _rename(target, work / OLD)
    _rename(work / NEW, target)
    if (work / RESULTS).exists():
        shutil.rmtree(work / RESULTS)
    try:
        if (work / OLD).exists():
            _delete(work, OLD)
    except OSError as error:
        raise RefimplError(
            f"{target} is whole, but the folder it replaces cannot be deleted ({error.strerror})",
            "an old folder that may be deleted",
            f"delete {work} yourself",
        ) from error


def _delete(work: Path, name: str) -> None:
    """Delete a folder under another name, so that no run finds it half deleted."""
    remove(work / DELETED)
    _rename(work / name, work / DELETED)
    shutil.rmtree(work / DELETED)


def _rename(source: Path, target: Path) -> None:
    """Rename a folder, and bring both names to the disk before anything else happens."""
    source.rename(target)
    for parent in {source.parent, target.parent}:
        to_disk(parent)
