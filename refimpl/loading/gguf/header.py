"""The header of a GGUF file, read with a bound on everything that the file claims."""

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from refimpl.errors import RefimplError, unreadable
from refimpl.loading.gguf.metadata_types import check_types
from refimpl.storage.file_system import open_file

VERSIONS = (2, 3)
MOST_ENTRIES, MOST_ELEMENTS, MOST_DIMENSIONS = 1 << 16, 1 << 20, 4
MOST_NAME, MOST_STRING = 1 << 10, 1 << 24  # bytes of a name; of all else that is a string
_NUMBERS = dict(zip(range(13), ("B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d"),
                    strict=True))  # fmt: skip
_STRING, _ARRAY, _ALIGNMENT = 8, 9, 32


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file: its name, shape (rows first), number of its type, first byte."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its data; arrays of numbers are NumPy's, of strings tuples."""

    metadata: Mapping[str, Any]
    tensors: tuple[TensorEntry, ...]


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is not empty."""
    try:
        with open_file(path) as file:
            if not file.seek(0, os.SEEK_END):
                raise damaged(path, "it is empty")
            file.seek(0)
            yield file
    except OSError as error:
        raise unreadable(path, error, "a readable GGUF file") from error


def damaged(path: Path, problem: str) -> RefimplError:
    """The error for a file that is not what its format requires."""
    return RefimplError(
        f"{path} is not a whole GGUF file: {problem}",
        "a GGUF file of version 2 or 3, little-endian, with a valid header, offsets and length",
        "download or convert the file again, and compare its size with the source",
    )


def read_header(path: Path, file: BinaryIO) -> Header:
    """Read the header; no count in it is believed before there are bytes for it."""
    reader = _Reader(path, file)
    if reader.take(4) != b"GGUF":
        raise damaged(path, "it does not begin with GGUF")
    if (version := reader.number("I")) not in VERSIONS:
        raise damaged(path, f"its version is {version}")
    num_tensors = reader.count("tensors", MOST_ENTRIES, 24)
    num_entries = reader.count("metadata entries", MOST_ENTRIES, 13)
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        key = reader.string("a key", MOST_NAME)
        if key in metadata:
            raise damaged(path, f"two values of {key}")
        metadata[key] = reader.value(key, reader.number("I"))
    check_types(metadata, path)
    entries = [reader.tensor() for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if alignment not in [8 << shift for shift in range(14)]:
        raise damaged(path, f"its alignment is {alignment}, not a power of 2 from 8 to 65536")
    start = -(-reader.at // alignment) * alignment
    names = {entry.name for entry in entries}
    if len(names) < len(entries):
        raise damaged(path, "two tensors of one name")
    if crooked := [entry.name for entry in entries if entry.offset % alignment]:
        raise damaged(path, f"{crooked[0]} is not aligned to {alignment} bytes")
    return Header(
        metadata,
        tuple(TensorEntry(x.name, x.shape, x.kind, start + x.offset) for x in entries),
    )


class _Reader:
    """A place in a header, which moves on."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file, self.at = path, file, 0
        self._size = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        """The next bytes."""
        content = self._file.read(count) if count <= self._size - self.at else b""
        if len(content) < count:
            raise damaged(self.path, f"it ends in its header, at byte {self._size}")
        self.at += count
        return content

    def number(self, code: str) -> Any:
        """The next number."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, what: str, most: int, size: int) -> int:
        """The next count of things that take at least `size` bytes each."""
        number: int = self.number("Q")
        if number > most or number * size > self._size - self.at:
            raise damaged(self.path, f"{number} {what}, more than {most} or than it has bytes for")
        return number

    def string(self, what: str, most: int = MOST_STRING) -> str:
        """The next string."""
        raw = self.take(self.count(f"bytes in {what}", most, 1))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise damaged(self.path, f"{what} is not UTF-8 ({raw[:20]!r})") from None

    def value(self, key: str, kind: int) -> Any:
        """The next value of metadata."""
        if kind == _STRING:
            return self.string(key)
        if kind != _ARRAY:
            return self.number(self._code(key, kind))
        kind = self.number("I")
        if kind == _STRING:
            count = self.count(f"strings in {key}", MOST_ELEMENTS, 8)
            return tuple(self.string(key, MOST_NAME) for _ in range(count))
        dtype = np.dtype(f"<{self._code(key, kind)}")
        count = self.count(f"numbers in {key}", MOST_ELEMENTS, dtype.itemsize)
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def tensor(self) -> TensorEntry:
        """The next tensor; its offset counts from the start of the data."""
        name = self.string("the name of a tensor", MOST_NAME)
        if not 1 <= (dimensions := self.number("I")) <= MOST_DIMENSIONS:
            raise damaged(self.path, f"{name} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        if not 0 < prod(shape) < 1 << 62:
            raise damaged(self.path, f"{name} has the shape {list(shape)}")
        return TensorEntry(name, shape, self.number("I"), self.number("Q"))

    def _code(self, key: str, kind: int) -> str:
        """The struct code of a kind of number."""
        if not (code := _NUMBERS.get(kind, "")):
            nested = "an array in an array" if kind == _ARRAY else f"of the unknown type {kind}"
            raise damaged(self.path, f"{key} is {nested}")
        return code
