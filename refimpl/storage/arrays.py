"""Arrays on their way between workers: vectors in the unit itself, larger ones in files."""

from pathlib import Path
from uuid import uuid4

import numpy as np

from refimpl.model.ops import Array


def write_array(path: Path, array: Array) -> None:
    """Write an array, whole or not at all.

    A unit may run twice, the second time beside the first, where a worker was taken to be lost.

    Args:
        path: The file; replaced if it exists.
        array: The array.
    """
    beside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with beside.open("wb") as file:
            np.save(file, array)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sent(array: Array, path: Path) -> Array | str:
    """What is sent: a vector itself, a matrix as the name of a file that the other one sees too.

    Args:
        array: The array.
        path: Where a matrix is written.

    Returns:
        The array, or the absolute path.
    """
    if array.ndim < 2:
        return array
    write_array(path, array)
    return str(path.absolute())


def received(array: Array | str) -> Array:
    """The inverse, for one who is the only reader: a file is removed.

    Args:
        array: From `sent`.

    Returns:
        The array.
    """
    if not isinstance(array, str):
        return array
    found: Array = np.load(array, allow_pickle=False)
    Path(array).unlink()
    return found
