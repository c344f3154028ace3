"""Files and folders that appear whole or not at all, at whatever step a run is killed.

A run makes `new` in the hidden folder, moves an old folder there, to `old`, renames `new` to the
target, and deletes the old one. The next run undoes or ends what a killed one began.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.running.file_system import (
    DONE,
    NEW,
    comes_again,
    is_folder,
    is_own,
    remove,
    to_disk,
    work_folder,
    work_path,
    writing,
)
from refimpl.running.finished_units import runs
from refimpl.running.target_checks import refuse_existing

OLD, DELETED = "old", "deleted"


@contextmanager
def whole(target: Path, force: bool = False, resumable: bool = False) -> Iterator[Path]:
    """Yield a path for a new file or folder, renamed to `target` when it is whole.

    It replaces a file, or with `force` a model's folder, whose rights stay; an error restores both.
    If it is `resumable`, the path may exist, and an error that need not come again leaves it.
    """
    with writing(target), work_folder(work_path(target)) as work:
        undo(work, target, resumable)
        new = work / NEW
        try:
            yield new
            if new.is_dir():  # some libraries make their files private, whatever the umask says
                rights = new.stat().st_mode & 0o666
                for path in filter(Path.is_file, new.rglob("*")):
                    path.chmod(rights)
            keep_rights(new, target)
            tree_to_disk(new)
            if new.is_dir() and os.path.lexists(target):
                refuse_existing(target, force)  # it may have appeared during the work
                _rename(target, work / OLD)  # until the next rename none has its name: see `undo`
            _rename(new, target)
            undo(work, target)
        except BaseException as error:
            with suppress(OSError):  # the next run undoes the rest
                undo(work, target, resumable and not comes_again(error))
            raise
        for folder in runs(work):
            remove(folder)


def undo_killed(target: Path) -> None:
    """Undo what a killed run of `whole` left beside an output, but for what can be continued."""
    if target.name and os.path.lexists(work_path(target)):  # "", "." and "/" are refused later
        with writing(target), work_folder(work_path(target)) as work:
            undo(work, target, resumable=True)


def undo(work: Path, target: Path, resumable: bool = False) -> None:
    """Put an old folder back if there is no new one, else delete it; remove what was not whole.

    A `resumable` copy stays if some of its blocks are done.
    """
    if not (resumable and is_own(work / DONE) and is_folder(work / NEW)):
        remove(work / DONE)
        remove(work / NEW)
    remove(work / f".{DONE}")
    if is_folder(work / OLD) and not os.path.lexists(target):
        _rename(work / OLD, target)
    try:
        remove(work / DELETED)
        if os.path.lexists(work / OLD):
            _rename(work / OLD, work / DELETED)  # so that no run finds it half deleted
            remove(work / DELETED)
    except OSError as error:
        raise RefimplError(
            f"{target} is whole, but the folder it replaces cannot be deleted ({error.strerror})",
            "an old folder that may be deleted",
            f"delete {work} yourself",
        ) from error


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


def _rename(source: Path, target: Path) -> None:
    """Rename a file or a folder, and bring both names to the disk before anything else happens."""
    source.replace(target)
    for parent in {source.parent, target.parent}:
        to_disk(parent)


def keep_rights(new: Path, old: Path) -> None:
    """Give a new file or folder, and its files, the rights of the old ones that it replaces."""
    if not os.path.lexists(old) or old.is_symlink() or old.is_dir() != new.is_dir():
        return
    new.chmod(stat.S_IMODE(old.stat().st_mode))
    if new.is_dir():
        for path in new.iterdir():
            keep_rights(path, old / path.name)


def tree_to_disk(path: Path) -> None:
    """Bring a file, or a folder after all that it holds, to the disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            to_disk(Path(folder, name))
    to_disk(path)
