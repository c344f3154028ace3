"""Files that appear whole or not at all."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file beside its target and rename it when it is whole.

    Args:
        path: The target; replaced if it exists.
        content: What to write; NaN and Inf are not allowed in it.

    Raises:
        RefimplError: The folder is missing or cannot be written, the disk is full.
    """
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"  # ASCII: any name can be written
    beside = None
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(beside, 0o666 & ~mask)
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
