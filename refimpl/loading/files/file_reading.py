"""The one gate for files and JSON: what is read, how much of it, and errors with the next step."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError, unreadable
from refimpl.running.file_system import MIB, open_file

DOCUMENT = 32 * MIB  # bytes of a JSON document: in memory twenty times as much
DEEPEST = 64  # nesting of JSON
WHOLE = 1 << 63  # the limit of integers


@contextmanager
def reading(path: Path, expected: str = "a file that can be read") -> Iterator[None]:
    """Turn any `OSError` inside into the error for a file that cannot be read."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error, expected) from error


def read_file(path: Path, most: int = DOCUMENT) -> bytes:
    """The bytes of a file, which are at most `most`, also if it grows meanwhile."""
    with open_file(path, most) as file:
        return file.read(most)


def parsed_json(text: str | bytes, limit: float = inf) -> Any:
    """Parse JSON that can be written again: no NaN or Inf, limits of depth and of numbers."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST}") from None
    _check(value, limit, 0)
    return value


def json_object(text: str | bytes, source: str, expected: str) -> dict[str, Any]:
    """Parse a JSON object; `source` is the file."""
    try:
        value = parsed_json(text)
    except ValueError as error:
        raise RefimplError(
            f"{source} is not JSON ({error})", expected, f"correct {source}"
        ) from error
    if not isinstance(value, dict):
        raise RefimplError(f"{source} is not a JSON object", expected, "correct it or get it again")
    return value


def _check(value: Any, limit: float, depth: int) -> None:
    """Refuse what is nested too deep, and numbers that are too large (integers: of 64 bits)."""
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST}")
    if isinstance(value, dict):
        for inner in value.values():
            _check(inner, limit, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, limit, depth + 1)
    elif isinstance(value, int | float):
        within = -WHOLE <= value < WHOLE if isinstance(value, int) else True
        if not within or not abs(value) < limit:
            raise ValueError(f"the number {json.dumps(value):.40}")
