"""What a new file or folder may replace, and what it must not be, contain or lie in."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.running.file_system import MIB, work_path, writing

RECORD = "pruning.json"  # says how a pruned model was made
SCORES = "scores.json"  # beside it: what its allocation was made of, if that was measured for it


def real_path(target: Path) -> Path:
    """The absolute path of a folder behind all links, which may exist; refuse files and links."""
    real = Path(os.path.realpath(target))
    if target.is_symlink() or (target.exists() and not target.is_dir()) or not real.name:
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
    with writing(target), suppress(FileNotFoundError):
        work_path(target).lstat()


def check_file(path: Path, inputs: Mapping[str, Path | None], force: bool) -> None:
    """Refuse an output file that cannot be written, or would damage an input; errors name these."""
    if not path.name or (os.path.exists(path) and not path.is_file()):
        raise RefimplError(f"-o {path} is not a file", "the name of a file", "choose another -o")
    check_parent(path)
    refuse_inputs(path, inputs)
    if not force:
        refuse_existing(path, force)


def check_folder(
    target: Path, inputs: Mapping[str, Path | None], force: bool, needed_bytes: int
) -> None:
    """Refuse a folder that could not be written, or would damage an input; errors name these."""
    target = real_path(target)
    check_parent(target)
    refuse_inputs(target, inputs)
    refuse_existing(target, force)
    left = sum(path.stat().st_size for path in work_path(target).rglob("*") if path.is_file())
    require_room(target.parent, needed_bytes - left, f"-o {target}")


def require_room(
    folder: Path, needed: int, what: str, remedy: str = "make room, or choose another -o"
) -> None:
    """Refuse what is too large for the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RefimplError(
            f"{what}: needs {needed / MIB:,.1f} MiB, and {free / MIB:,.1f} MiB are free",
            "room for all of it, also where it replaces an old one",
            remedy,
        )


def refuse_existing(target: Path, force: bool) -> None:
    """Refuse to replace a folder without force, and anything but a model's folder with it."""
    if not os.path.lexists(target):
        return
    if not force:
        raise RefimplError(
            f"-o {target} exists", "the path of something new", "add --force to replace it"
        )
    names = os.listdir(target) if target.is_dir() and not target.is_symlink() else ["?"]
    model = not names or RECORD in names or any(name.endswith(".safetensors") for name in names)
    if not model or os.path.ismount(target) or not os.access(target, os.W_OK | os.X_OK):
        raise RefimplError(
            f"-o {target} is not a model's folder that may be replaced",
            f"an empty folder, or one with {RECORD} or .safetensors files, which may be written",
            "choose another -o, or remove the folder yourself",
        )
    for name, folder in (("home", os.path.expanduser("~")), ("working", os.getcwd())):
        if _holds(target, Path(folder)):
            raise _overlap(target, "is, or holds,", f"the {name} folder")


def refuse_overlap(target: Path, name: str, other: Path) -> None:
    """Refuse an output that is or holds an input called `name`, or that lies in it."""
    if _holds(target, other):
        relation = "is, or holds," if target.is_dir() else "is also"
        raise _overlap(target, relation, f"{name} ({other})")
    real = Path(os.path.realpath(target.parent), target.name)
    if other.is_dir() and any(x.exists() and x.samefile(other) for x in real.parents):
        raise _overlap(target, "lies in", f"{name} ({other})")


def refuse_inputs(target: Path, inputs: Mapping[str, Path | None]) -> None:
    """Refuse an output that is, holds or lies in an input."""
    for name, path in inputs.items():
        if path is not None and path.exists():
            refuse_overlap(target, name, path)


def _holds(target: Path, other: Path) -> bool:
    """Whether an output is or holds another file or folder, or the link that leads to it."""
    paths = {Path(os.path.realpath(other)), Path(os.path.abspath(other))}
    above = {parent for path in paths for parent in (path, *path.parents)}
    return target.exists() and any(path.exists() and path.samefile(target) for path in above)


def _overlap(target: Path, relation: str, other: str) -> RefimplError:
    return RefimplError(
        f"-o {target} {relation} {other}",
        "an output apart from all inputs",
        "choose another -o",
    )
