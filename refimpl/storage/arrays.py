"""Arrays that workers exchange: vectors in the work unit itself, larger ones in files."""

import json
from pathlib import Path
from uuid import uuid4

import numpy as np

from refimpl.model.ops import Array
from refimpl.storage.file_system import open_file

HEADER = 128  # bytes before the values: JSON, as NumPy's own header is not safe to read in threads


def write_array(path: Path, array: Array) -> None:
    """Write an array, whole or not at all: two workers may run the same work unit at once."""
    beside = path.with_name(f"{path.name}-{uuid4().hex}")  # in a folder that the run removes
    with beside.open("xb") as file:
        file.write(json.dumps([array.dtype.str, array.shape]).encode().ljust(HEADER))
        file.write(np.ascontiguousarray(array).data)
    beside.replace(path)


def read_array(path: Path) -> Array:
    """Map an array from the file that `write_array` wrote, read-only."""
    with open_file(path) as file:
        dtype, shape = json.loads(file.read(HEADER))
        return np.memmap(file, dtype, "r", HEADER, tuple(shape))


def sent(array: Array, path: Path) -> Array | str:
    """A vector itself; for a larger array the absolute path of its file, which others can read."""
    if array.ndim < 2:
        return array
    write_array(path, array)
    return str(path.absolute())


def received(array: Array | str) -> Array:
    """The array that was sent to this reader alone: its file is removed."""
    if not isinstance(array, str):
        return array
    values = np.array(read_array(Path(array)))
    Path(array).unlink()
    return values
