"""Arrays by name from NumPy's files; nothing is unpickled."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import ZipFile

import ml_dtypes
import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import reading
from refimpl.model.ops import Array
from refimpl.oracle.judging.candidate_arrays import CANDIDATE_DTYPES
from refimpl.storage.file_system import MIB, open_file

MOST = 4096 * MIB  # bytes of all arrays of an archive or a folder, which are read into memory
DENSEST, SMALL = (
    16,
    64 * MIB,
)  # arrays are at most so many times as large as their archive, or small
HEADER = 1 << 16  # bytes in which the header of an array must be
PICKLE = "data.pkl"  # in a file that torch.save wrote
NAMES = {dtype.name for dtype in CANDIDATE_DTYPES.values()}
PAIR = np.dtype("V2")  # what NumPy makes of bfloat16


def pickled(path: Path) -> RefimplError:
    """The error for a file that only unpickling reads, which runs what the file says."""
    return RefimplError(
        f"{path} holds pickled objects, and reading them runs code that the file chooses",
        "arrays: .npz, .npy or safetensors",
        "rewrite it where it was written: docs/how-to/candidates.md has the ten lines",
    )


def npz_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz` file."""
    with _whole(path), open_file(path) as file, ZipFile(file) as archive:
        members, arrays = archive.infolist(), dict[str, Array]()
        if any(PurePosixPath(x.filename).name == PICKLE for x in members):
            raise pickled(path)
        limit = min(MOST, max(SMALL, DENSEST * os.fstat(file.fileno()).st_size))
        _require(path, sum(x.file_size for x in members), limit)
        for x in members:
            with archive.open(x) as member:
                arrays[x.filename.removesuffix(".npy")] = _array(member, x.file_size, x.filename)
        return arrays


def npy_arrays(folder: Path) -> dict[str, Array]:
    """The arrays of the `.npy` files of a folder, by the names of the files."""
    arrays, left = dict[str, Array](), MOST
    with reading(folder, "a readable folder"):
        paths = sorted(folder.glob("*.npy"))
    for path in paths:
        with _whole(path), open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            _require(folder, MOST - left + size, MOST)
            arrays[path.stem], left = _array(file, size, path.name), left - size
    return arrays


def _require(path: Path, size: int, limit: int) -> None:
    """Refuse more bytes of arrays than there is room for."""
    if size > limit:
        raise RefimplError(
            f"the arrays of {path} take {size / MIB:,.0f} MiB",
            f"at most {limit / MIB:,.0f} MiB: {DENSEST} times an archive, {MOST / MIB:,.0f} in all",
            "save fewer arrays, or save them as safetensors",
        )


def _array(file: IO[bytes], size: int, name: str) -> Array:
    """The array of a `.npy` file of so many bytes; ValueError if it is none."""
    start = BytesIO(file.read(min(size, HEADER)))
    version = np.lib.format.read_magic(start)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name}: version {version} of the format")
    header = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = header[version[0] - 1](start)
    if dtype.hasobject:
        raise ValueError(f"{name}: Python objects, which only unpickling reads")
    if dtype.name not in NAMES and dtype != PAIR:
        raise ValueError(f"{name}: dtype {dtype}")
    content = np.frombuffer(start.read() + file.read(), dtype)
    content = content.view(ml_dtypes.bfloat16) if dtype == PAIR else content
    return content.reshape(shape, order="F" if by_columns else "C")


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn whatever zipfile, NumPy and the system raise for a damaged file into our error."""
    try:
        with reading(path):
            yield
    except RefimplError:
        raise
    except Exception as error:  # zlib.error, EOFError, RuntimeError, even tokenize.TokenError
        raise RefimplError(
            f"{path} holds no whole arrays ({error})",
            f"what numpy.savez or numpy.save writes, of {', '.join(sorted(NAMES))}",
            "save the arrays again, each of numbers",
        ) from error
