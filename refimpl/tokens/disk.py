"""Reading files, with errors a user can act on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError


def parsed(raw: bytes, where: str) -> Any:
    """Parse JSON.

    Args:
        raw: What the file says.
        where: The file, and the line where there are many.

    Returns:
        The value.

    Raises:
        RefimplError: Not JSON.

    Source:
        Ours.

    Example:
        >>> parsed(b"[1, 2]", "ids.jsonl line 1")
        [1, 2]
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RefimplError(f"{where} is not JSON ({error})", "JSON", "correct it") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that cannot be read into an error of ours.

    Args:
        path: The file that is read inside.

    Raises:
        RefimplError: The file is missing, or is a folder, or may not be read.

    Source:
        Ours.

    Example:
        >>> with reading(Path("ids.jsonl")):
        ...     raw = b"[1, 2]"
    """
    try:
        yield
    except OSError as error:
        raise RefimplError(
            f"{path}: {error.strerror or error}",
            "a file that can be read",
            "check the path and its permissions",
        ) from error
