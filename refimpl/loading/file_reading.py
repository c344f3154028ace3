"""Reading files and JSON, with errors that name the file and the next step."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError, unreadable


@contextmanager
def reading(path: Path, expected: str = "a file that can be read") -> Iterator[None]:
    """Turn any `OSError` inside into the error for a file that cannot be read."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error, expected) from error


def json_value(text: str | bytes, source: str, expected: str = "JSON") -> Any:
    """Parse JSON; `source` is the file, and the line if it has many."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefimplError(
            f"{source} is not JSON ({error})", expected, f"correct {source}"
        ) from error


def json_object(text: str | bytes, source: str, expected: str) -> dict[str, Any]:
    """Parse a JSON object."""
    value = json_value(text, source, expected)
    if not isinstance(value, dict):
        raise RefimplError(f"{source} is not a JSON object", expected, "correct it or get it again")
    return value
