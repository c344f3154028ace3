"""Outputs: what they may replace; they appear whole or not at all, wherever a run is killed.

A run makes `new` in the hidden folder, moves an old folder there, to `old`, renames `new` to the
target, and deletes the old one. The next run undoes or ends what a killed one began.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.running import file_system as disk

_OLD, _DELETED = "old", "deleted"
RECORD = "pruning.json"  # says how a pruned model was made
SCORES = "scores.json"  # beside it: what its allocation was made of, if that was measured for it


@contextmanager
def whole(target: Path, force: bool = False, resumable: bool = False) -> Iterator[Path]:
    """Yield a path for a new file or folder, renamed to `target` when it is whole.

    It replaces a file, or with `force` a model's folder; an error restores both. If it is
    `resumable`, the path may exist, and an error that need not come again leaves it.
    """
    with disk.writing(target), disk.work_folder(disk.work_path(target)) as work:
        undo(work, target, resumable)
        new = work / disk.NEW
        try:
            yield new
            if (
                new.is_dir()
            ):  # some libraries make their files private, whatever the umask says
                rights = new.stat().st_mode & 0o666
                for path in filter(Path.is_file, new.rglob("*")):
                    path.chmod(rights)
            tree_to_disk(new)
            if new.is_dir() and os.path.lexists(target):
                refuse_existing(target, force)  # it may have appeared during the work
                _rename(
                    target, work / _OLD
                )  # until the next rename none has its name: see `undo`
            _rename(new, target)
            undo(work, target)
        except BaseException as error:
            with suppress(OSError):  # the next run undoes the rest
                undo(work, target, resumable and not disk.comes_again(error))
            raise
        for folder in filter(disk.is_folder, work.glob(disk.RUN_FOLDER)):
            disk.remove(folder)


def undo_killed(target: Path) -> None:
    """Undo what a killed run of `whole` left beside an output, but for what can be continued."""
    if target.name and os.path.lexists(
        disk.work_path(target)
    ):  # "", "." and "/" are refused later
        with disk.writing(target), disk.work_folder(disk.work_path(target)) as work:
            undo(work, target, resumable=True)


def undo(work: Path, target: Path, resumable: bool = False) -> None:
    """Put an old folder back, or delete it beside a new one; a `resumable` copy may stay."""
    if not (
        resumable and disk.is_own(work / disk.DONE) and disk.is_folder(work / disk.NEW)
    ):
        disk.remove(work / disk.DONE)
        disk.remove(work / disk.NEW)
    disk.remove(work / f".{disk.DONE}")
    if disk.is_folder(work / _OLD) and not os.path.lexists(target):
        _rename(work / _OLD, target)
    with disk.writing(work / _OLD):
        disk.remove(work / _DELETED)
        if os.path.lexists(work / _OLD):
            _rename(
                work / _OLD, work / _DELETED
            )  # so that no run finds it half deleted
            disk.remove(work / _DELETED)


def json_text(content: Mapping[str, Any]) -> str:
    """JSON for a file: without NaN or Inf, and in ASCII, in which any name can be written."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; an existing file is replaced."""
    with whole(path) as new:
        new.write_text(text, "utf-8")


def _rename(source: Path, target: Path) -> None:
    """Rename a file or a folder, and bring both names to the disk before anything else happens."""
    source.replace(target)
    for parent in {source.parent, target.parent}:
        disk.to_disk(parent)


def tree_to_disk(path: Path) -> None:
    """Bring a file, or a folder after all that it holds, to the disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            disk.to_disk(Path(folder, name))
    disk.to_disk(path)


def real_path(target: Path) -> Path:
    """The absolute path of a folder behind all links, which may exist; refuse files and links."""
    real = Path(os.path.realpath(target))
    if (
        target.is_symlink()
        or (target.exists() and not target.is_dir())
        or not real.name
    ):
        raise RefimplError(
            f"-o {target} is a link, or not a folder",
            "the path of a new folder",
            "choose another -o",
        )
    return real


def check_parent(target: Path) -> None:
    """Refuse an output whose folder is missing or may not be written, and a name too long."""
    parent = target.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise RefimplError(
            f"-o {target}: {parent} is missing, or may not be written",
            "a path in a folder that exists and may be written",
            "create the folder, or choose another -o",
        )
    with disk.writing(target), suppress(FileNotFoundError):
        disk.work_path(target).lstat()


def check_file(path: Path, inputs: Mapping[str, Path | None], force: bool) -> None:
    """Refuse an output file that cannot be written, or would damage an input; errors name these."""
    if not path.name or (os.path.exists(path) and not path.is_file()):
        raise RefimplError(
            f"-o {path} is not a file", "the name of a file", "choose another -o"
        )
    check_parent(path)
    refuse_overlap(path, inputs)
    if not force:
        refuse_existing(path, force)


def check_folder(
    target: Path, inputs: Mapping[str, Path | None], force: bool | None
) -> None:
    """Refuse a folder that could not be written, or would damage an input; errors name these.

    `force` is None if no option replaces a folder.
    """
    target = real_path(target)
    check_parent(target)
    refuse_overlap(target, inputs)
    refuse_existing(target, force)


def refuse_existing(target: Path, force: bool | None) -> None:
    """Refuse to replace a folder without force, and anything but a model's folder with it."""
    if not os.path.lexists(target):
        return
    if not force:
        step = "choose another -o" if force is None else "add --force to replace it"
        raise RefimplError(f"-o {target} exists", "the path of something new", step)
    names = os.listdir(target) if target.is_dir() and not target.is_symlink() else ["?"]
    model = (
        not names
        or RECORD in names
        or any(name.endswith(".safetensors") for name in names)
    )
    if not model or os.path.ismount(target) or not os.access(target, os.W_OK | os.X_OK):
        raise RefimplError(
            f"-o {target} is not a model's folder that may be replaced",
            f"an empty folder, or one with {RECORD} or .safetensors files, which may be written",
            "choose another -o, or remove the folder yourself",
        )
    home = Path(os.path.expanduser("~"))
    refuse_overlap(
        target, {"the home folder": home, "the working folder": Path.cwd()}, inside=True
    )


def refuse_overlap(
    target: Path, inputs: Mapping[str, Path | None], inside: bool = False
) -> None:
    """Refuse an output that is or holds an input, by its name, or lies in one if it must not."""
    beside = [
        x
        for x in Path(os.path.realpath(target.parent), target.name).parents
        if x.exists()
    ]
    for name, other in (
        (x, y) for x, y in inputs.items() if y is not None and y.exists()
    ):
        paths = {Path(os.path.realpath(other)), Path(os.path.abspath(other))}
        above = {
            parent
            for path in paths
            for parent in (path, *path.parents)
            if parent.exists()
        }
        is_above = target.exists() and any(x.samefile(target) for x in above)
        within = (
            not inside and other.is_dir() and any(x.samefile(other) for x in beside)
        )
        if is_above or within:
            holds = "is, or holds," if target.is_dir() else "is also"
            raise RefimplError(
                f"-o {target} {holds if is_above else 'lies in'} {name} ({other})",
                "an output apart from all inputs",
                "choose another -o",
            )
