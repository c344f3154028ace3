"""Files that appear whole or not at all."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Args:
        path: The target; replaced if it exists.
        content: What to write; NaN and Inf are not allowed in it.

    Raises:
        RefimplError: The folder is missing or cannot be written, the disk is full.
    """
    # ASCII: any name can be written
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text beside its target and rename it when it is whole.

    Args:
        path: The target; replaced if it exists.
        text: What to write, in UTF-8.

    Raises:
        RefimplError: The folder is missing or cannot be written, the disk is full.
    """
    beside = None
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        open_to_others(Path(beside))
        os.replace(beside, path)
    except OSError as error:
        raise RefimplError(
            f"{path}: cannot be written ({error.strerror})",
            "a folder that exists, may be written, and has room",
            "choose another place with -o",
        ) from error
    finally:
        if beside is not None and os.path.exists(beside):
            os.unlink(beside)


def open_to_others(*paths: Path) -> None:
    """Give new files and folders the rights that the user's umask leaves them.

    Args:
        paths: What was made under a temporary name, which nobody else may read.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in paths:
        os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~mask)


def checked_output(path: Path | None, inputs: Mapping[str, Path | None]) -> None:
    """Refuse, before any work, an output that cannot be written or that is an input.

    Args:
        path: Where the result shall go, or None.
        inputs: What is read, by its name in the command line.

    Raises:
        RefimplError: The output is one of the inputs, a folder, or in a folder that is missing.
    """
    if path is None:
        return
    for name, other in inputs.items():
        if other is not None and other.exists() and path.exists() and path.samefile(other):
            raise RefimplError(
                f"-o {path} is also {name}", "an output that is not an input", "choose another -o"
            )
    other_kind = path.exists() and not path.is_file()  # a folder, a pipe, a device
    if other_kind or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise RefimplError(
            f"-o {path}: not a file in a folder that may be written",
            "the name of a file in a folder that exists",
            "create the folder, or choose another -o",
        )
