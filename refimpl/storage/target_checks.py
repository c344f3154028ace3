"""Where a new folder may go: what may be replaced, and what it must keep away from."""

import os
from pathlib import Path

from refimpl.errors import RefimplError

RECORD = "pruning.json"  # how a folder of ours came about


def place(target: Path) -> Path:
    """Find where a folder lies, behind all links in its path.

    Args:
        target: The folder, there or to be made.

    Returns:
        Its absolute path.

    Raises:
        RefimplError: It is itself a link, or there and no folder.

    Source:
        ours.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise RefimplError(
            f"-o {target}: a link, or not a folder",
            "the name of a folder, which is made",
            "choose another -o",
        )
    return Path(os.path.realpath(target))


def refuse_existing(target: Path, force: bool) -> None:
    """Refuse to replace a folder without force, and with it whatever is no folder of a model.

    Args:
        target: The folder, there or not.
        force: Whether an empty folder, or one with a model, may be replaced.

    Raises:
        RefimplError: It is there and may not be replaced.

    Source:
        ours.
    """
    if not os.path.lexists(target):
        return
    if not force:
        raise RefimplError(
            f"-o {target} exists", "a folder that is not there yet", "add --force to replace it"
        )
    names = os.listdir(target) if target.is_dir() and not target.is_symlink() else ["?"]
    model = not names or RECORD in names or any(name.endswith(".safetensors") for name in names)
    if not model or os.path.ismount(target) or not os.access(target, os.W_OK | os.X_OK):
        raise RefimplError(
            f"-o {target}: not a model's folder that may be replaced",
            f"an empty folder, or one with {RECORD} or .safetensors files, which may be written",
            "choose another -o, or remove the folder yourself",
        )
    for name, folder in (("home", os.path.expanduser("~")), ("working", os.getcwd())):
        if _holds(target, Path(folder)):
            raise _overlap(target, "is, or holds,", f"the {name} folder")


def refuse_overlap(target: Path, name: str, other: Path) -> None:
    """Refuse a folder that is or holds something that is read, or that lies in it.

    Args:
        target: The folder, there or not.
        name: What to call the other.
        other: A file or folder that is there.

    Raises:
        RefimplError: One of them is in the other's way, by whatever path.

    Source:
        ours.
    """
    if _holds(target, other):
        raise _overlap(target, "is, or holds,", f"{name} ({other})")
    if other.is_dir() and any(parent.samefile(other) for parent in target.parents):
        raise _overlap(target, "lies in", f"{name} ({other})")


def _holds(target: Path, other: Path) -> bool:
    """Whether a folder is or holds another file or folder, or the link that leads to it."""
    places = {Path(os.path.realpath(other)), Path(os.path.abspath(other))}
    above = {parent for place in places for parent in (place, *place.parents)}
    return target.exists() and any(p.exists() and p.samefile(target) for p in above)


def _overlap(target: Path, relation: str, other: str) -> RefimplError:
    """The refusal of a target that is in the way of something else."""
    return RefimplError(
        f"-o {target} {relation} {other}",
        "a folder apart from everything that is read",
        "choose another -o",
    )
