"""The results of a run so far, a file for each work unit, in a folder named by what they need."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import crc32

import numpy as np

from refimpl.errors import RefimplError
from refimpl.storage.file_system import (
    DONE,
    ResumableError,
    foreign,
    is_folder,
    is_own,
    open_file,
    to_disk,
    work_path,
    writing,
)

RUN, UNFINISHED = re.compile("[0-9a-f]{32}"), re.compile(r"\.[0-9a-f]{32}")  # names we give
MARK, LINE = b"refimpl ", 64  # bytes; arrays begin at multiples of the line's length
ARRAY = "array"  # key of an object that stands for an array: its dtype, shape and first byte
DAMAGES = (ValueError, TypeError, LookupError, OverflowError, RecursionError, OSError)


class FinishedUnits:
    """The finished units of one run by their names; `check` is called before one is written."""

    def __init__(self, folder: Path, check: Callable[[], None] = lambda: None) -> None:
        self.folder, self._check = folder, check
        if os.path.lexists(folder) and not is_folder(folder):
            raise foreign(folder)
        with writing(folder):
            folder.mkdir(exist_ok=True)

    @property
    def earlier(self) -> dict[str, Any]:
        """Results by key, of units that are objects."""
        names = [name for name in sorted(os.listdir(self.folder)) if not UNFINISHED.fullmatch(name)]
        units = [unit for unit in map(self.read, names) if isinstance(unit, dict)]
        return {key: result for unit in units for key, result in unit.items()}

    def read(self, name: str, mapped: bool = False) -> Any:
        """A unit, or None if it is absent or damaged; mapped arrays are read when used."""
        path = self.folder / name
        with suppress(*DAMAGES):
            return read_tree(path, mapped, checked=True) if is_own(path) else None
        return None

    def write(self, name: str, result: Any) -> None:
        """Keep a unit."""
        path = self.folder / name
        self._check()
        with writing(path):
            if os.path.lexists(path) and not is_tree(path):
                raise foreign(path)
            write_tree(path, result, synced=True)

    def forget(self, name: str) -> None:
        """Remove a unit that no run needs any more, if it is there."""
        if is_tree(self.folder / name):
            (self.folder / name).unlink()


@contextmanager
def finished_units(
    work: Path,
    identity: Mapping[str, Any],
    check: Callable[[], None] = lambda: None,
) -> Iterator[FinishedUnits]:
    """The finished units of a run, whose `identity` is all that they depend on, as JSON."""
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    units = FinishedUnits(work / digest[:32], check)
    try:
        yield units
    except (RefimplError, ArithmeticError) as error:  # the latter: a number left its range
        if not isinstance(error, ResumableError):  # it would come again
            with suppress(OSError):
                discard(units.folder)
        raise
    finally:
        with suppress(OSError):  # it is not empty
            units.folder.rmdir()


def discard(folder: Path) -> None:
    """Remove the units in a folder, and the folder if nothing else is in it."""
    for path in folder.iterdir():
        if is_tree(path) or (UNFINISHED.fullmatch(path.name) and is_own(path)):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()


def runs(work: Path) -> list[Path]:
    """The folders of all runs in the hidden folder."""
    if not is_folder(work):
        return []
    return [x for x in sorted(work.iterdir()) if RUN.fullmatch(x.name) and is_folder(x)]


def are_left(output: Path) -> bool:
    """Whether a stopped run left finished units, or a copy with finished blocks."""
    work = work_path(output)
    units = [path for folder in runs(work) for path in folder.iterdir() if is_tree(path)]
    return bool(units) or (is_folder(work) and is_own(work / DONE))


def write_tree(path: Path, tree: Any, synced: bool = False) -> None:
    """Write lists and objects of numbers, texts and arrays to a file, whole or not at all.

    It has a line with our mark and two sizes, JSON, the arrays, and a checksum of all that.
    """
    arrays, end = list[bytes | memoryview](), 0

    def reference(x: Any) -> Any:
        nonlocal end
        if isinstance(x, np.generic):
            return x.item()
        if not (isinstance(x, np.ndarray) and x.dtype.isnative):
            raise TypeError(f"{type(x).__name__} in a file of arrays")
        place = {ARRAY: [x.dtype.name, x.shape, end]}
        arrays.extend([np.ascontiguousarray(x).reshape(-1).view(np.uint8).data, _pad(x.nbytes)])
        end += x.nbytes + len(arrays[-1])
        return place

    text = json.dumps(tree, default=reference).encode()
    text += _pad(len(text))
    sizes = b"%016x %016x" % (len(text), LINE + len(text) + end + 4)
    beside, check = path.with_name(f".{uuid4().hex}"), 0
    try:
        with beside.open("xb") as file:
            for piece in ((MARK + sizes).ljust(LINE - 1) + b"\n", text, *arrays):
                file.write(piece)
                check = crc32(piece, check)
            file.write(check.to_bytes(4, "little"))
        if synced:
            to_disk(beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def read_tree(path: Path, mapped: bool = False, checked: bool = False) -> Any:
    """What `write_tree` wrote, or one of `DAMAGES`; mapped arrays are read when they are used."""
    with open_file(path) as file:
        content = mmap(file.fileno(), 0, access=ACCESS_READ)
    length, size = (int(x, 16) for x in content[len(MARK) : LINE].split())
    if content[: len(MARK)] != MARK or size != len(content):
        raise ValueError("another file, or not all of it")
    with memoryview(content) as whole:
        if checked and crc32(whole[:-4]) != int.from_bytes(whole[-4:], "little"):
            raise ValueError("another checksum")

    def array(row: dict[str, Any]) -> Any:
        if row.keys() != {ARRAY}:
            return row
        name, shape, start = row[ARRAY]
        values = np.frombuffer(content, np.dtype(name), prod(shape), LINE + length + start)
        return values.reshape(shape) if mapped else values.reshape(shape).copy()

    return json.loads(content[LINE : LINE + length], object_hook=array)


def is_tree(path: Path) -> bool:
    """Whether a file begins like those of `write_tree`, has one name, and is no link."""
    if not is_own(path):
        return False
    with open_file(path) as file:
        return file.read(len(MARK)) == MARK


def _pad(size: int) -> bytes:
    """Spaces up to the next multiple of a line."""
    return b" " * (-size % LINE)
