"""Reading files, with errors a user can act on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError


def parsed(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RefimplError(f"{where} is no JSON ({error})", "JSON", "correct it") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RefimplError(
            f"{path}: {error.strerror or error}",
            "a file that can be read",
            "check the path and its permissions",
        ) from error
