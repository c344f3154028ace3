"""What a new folder may replace, and what it must not contain or lie in."""

import os
from pathlib import Path

from refimpl.errors import RefimplError

RECORD = "pruning.json"  # says how a pruned model was made


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


def refuse_existing(target: Path, force: bool) -> None:
    """Refuse to replace a folder without force, and anything but a model's folder with it."""
    if not os.path.lexists(target):
        return
    if not force:
        raise RefimplError(
            f"-o {target} exists", "the path of a new folder", "add --force to replace it"
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
    """Refuse a folder that is or holds an input called `name`, or that lies in it."""
    if _holds(target, other):
        raise _overlap(target, "is, or holds,", f"{name} ({other})")
    if other.is_dir() and any(parent.samefile(other) for parent in target.parents):
        raise _overlap(target, "lies in", f"{name} ({other})")


def _holds(target: Path, other: Path) -> bool:
    """Whether a folder is or holds another file or folder, or the link that leads to it."""
    paths = {Path(os.path.realpath(other)), Path(os.path.abspath(other))}
    above = {parent for path in paths for parent in (path, *path.parents)}
    return target.exists() and any(path.exists() and path.samefile(target) for path in above)


def _overlap(target: Path, relation: str, other: str) -> RefimplError:
    return RefimplError(
        f"-o {target} {relation} {other}",
        "a folder apart from all inputs",
        "choose another -o",
    )
