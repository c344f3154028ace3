"""The one gate for files and JSON: what is read, how much of it, and errors with the next step."""

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, BinaryIO

from refimpl.errors import RefimplError, unreadable

MIB = 1 << 20
DOCUMENT = 32 * MIB  # bytes of a JSON document: in memory it may take twenty times as much
LINES = 32 * MIB  # bytes of a file of JSON lines, which are read one by one
DEEPEST = 64  # nesting of JSON
WHOLE = 1 << 63  # the limit of integers


@contextmanager
def reading(path: Path, expected: str = "a file that can be read") -> Iterator[None]:
    """Turn any `OSError` inside into the error for a file that cannot be read."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error, expected) from error


def require_file(path: Path, most: float = inf, pipes: bool = False) -> None:
    """Refuse, before it is opened, what is no file (or pipe), or has more than `most` bytes.

    Devices have no end, and pipes block whoever opens them; OSError is left to `reading`.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not (stat.S_ISREG(found.st_mode) or (pipes and stat.S_ISFIFO(found.st_mode))):
        raise RefimplError(
            f"{path} is neither a file nor a pipe" if pipes else f"{path} is not a file",
            "a regular file" + (", or a pipe" if pipes else ""),
            "check the path, or copy the content to a file",
        )
    if found.st_size > most:
        raise too_large(path, most)


@contextmanager
def opened(path: Path, most: int) -> Iterator[BinaryIO]:
    """Open a file or a pipe of at most `most` bytes; a file that is larger is refused unread."""
    require_file(path, most, pipes=True)
    with path.open("rb") as file:
        yield file


def read_file(path: Path, most: int = DOCUMENT) -> bytes:
    """The bytes of a file or a pipe, which are at most `most`."""
    with opened(path, most) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise too_large(path, most)
    return content


def read_lines(path: Path, most: int = LINES) -> Iterator[tuple[int, bytes]]:
    """The lines of a file or a pipe that are not empty, and their numbers from 1."""
    content, number, last = read_file(path, most), 1, 0
    for found in re.finditer(rb"[^\n]+", content):  # 30 MB of empty lines take no time
        number, last = number + content.count(b"\n", last, found.start()), found.start()
        if found[0].strip():
            yield number, found[0]


def too_large(path: Path, most: float) -> RefimplError:
    """The error for a file of more than `most` bytes."""
    return RefimplError(
        f"{path} is larger than {most / MIB:,.0f} MiB",
        f"at most {most / MIB:,.0f} MiB",
        "check that this is the right file, or use a part of it",
    )


def parsed_json(text: str | bytes, limit: float = inf) -> Any:
    """Parse JSON within our limits of depth, and of numbers (smaller than `limit`); ValueError.

    NaN, Inf and integers of more than 64 bits are refused, so that what is read can be computed
    with and written again.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST}") from None
    _check(value, limit, 0)
    return value


def json_value(text: str | bytes, source: str, expected: str = "JSON") -> Any:
    """Parse JSON; `source` is the file, and the line if it has many."""
    try:
        return parsed_json(text)
    except ValueError as error:
        raise RefimplError(
            f"{source} is not JSON ({error})", expected, f"correct {source}"
        ) from error


def json_object(text: str | bytes, source: str, expected: str) -> dict[str, Any]:
    """Parse a JSON object."""
    value = json_value(text, source, expected)
    if not isinstance(value, dict):
        raise RefimplError(f"{source} is not a JSON object", expected, "correct it or get it again")
    return value


def _check(value: Any, limit: float, depth: int) -> None:
    """Refuse what is nested too deep, and numbers that are too large."""
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
