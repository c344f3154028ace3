"""Files of our mark and two sizes, JSON, arrays, and a checksum; each is whole or absent."""

import json
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import crc32

import numpy as np

from refimpl.storage.file_system import is_own, open_file, to_disk

MARK, LINE = b"refimpl ", 64  # bytes; arrays begin at multiples of the line's length
ARRAY = "array"  # key of an object that stands for an array: its dtype, shape and first byte
DAMAGES = (ValueError, TypeError, LookupError, OverflowError, RecursionError, OSError)


def write_tree(path: Path, tree: Any, synced: bool = False) -> None:
    """Write lists and objects of numbers, texts and arrays; on request, bring them to the disk."""
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
