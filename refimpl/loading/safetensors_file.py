"""Tensors in safetensors files: mapped into memory, read one at a time, written whole."""

import json
import mmap
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from refimpl.errors import RefimplError
from refimpl.model.ops import Array

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_WRITTEN = {dtype: name for name, dtype in DTYPES.items()} | {
    np.dtype(f"{kind}{size}"): f"{kind.upper()}{8 * size}" for kind in "iu" for size in (1, 2, 4, 8)
}
_WRITTEN |= {np.dtype(bool): "BOOL"}


@dataclass(frozen=True)
class Stored:
    """One tensor of a file.

    Args:
        file: The mapped file.
        name: The tensor's name in it.
        dtype: The file's name of its dtype, such as "BF16".
        shape: Its shape.
        offset: Where its bytes start, in bytes from the start of the file.
    """

    file: "SafetensorsFile"
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def array(self) -> Array:
        """The tensor, a read-only view of the mapped file; its dtype must be one of `DTYPES`."""
        dtype, count = DTYPES[self.dtype], int(np.prod(self.shape, dtype=np.int64))
        return np.frombuffer(self.file.map, dtype, count, self.offset).reshape(self.shape)


class SafetensorsFile:
    """A safetensors file: its tensors and metadata, with the data mapped, not read.

    Args:
        path: The file.

    Raises:
        RefimplError: No such file, not readable, truncated, overlapping, or not safetensors.

    Source:
        The format and its checks: the safetensors library (a peer), which looks through the header
        before we read it.

    Differs:
        From safetensors' NumPy loader: bfloat16 is supported, and pages can be given back.

    Example:
        >>> file = SafetensorsFile(Path("fixtures/llama/model.safetensors"))
        >>> file.tensors["model.norm.weight"].array.shape
        (32,)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                with safe_open(path, framework="np"):  # checks header, offsets and length
                    pass
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise RefimplError(
                f"{path}: cannot be read ({error.strerror or error})",
                "a readable safetensors file",
                "check the path and its permissions",
            ) from error
        except (SafetensorError, ValueError) as error:
            raise RefimplError(
                f"{path}: not a whole safetensors file ({error})",
                "a file written by safetensors (its library checks header, offsets and length)",
                "download or save the file again; compare its size with the source",
            ) from error
        self.metadata: Mapping[str, str] = header.pop("__metadata__", None) or {}
        self.tensors = {
            name: Stored(
                self,
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
            )
            for name, entry in header.items()
        }

    def release(self) -> None:
        """Let the system take back the pages read so far; views stay valid and are read again."""
        if hasattr(self.map, "madvise"):  # not on Windows
            self.map.madvise(mmap.MADV_DONTNEED)


def save_tensors(
    path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file: every tensor in row-major order, in place only when whole.

    The same arrays give the same bytes: tensors are sorted by item size (so that each is aligned)
    and name. The file is written beside its target, and renamed when it is complete.

    Args:
        path: The file to write; replaced if it exists.
        arrays: Tensors by name, of any strides and byte order.
        metadata: Texts for the header.

    Raises:
        RefimplError: A dtype that safetensors does not have, or a place that cannot be written to.

    Source:
        The format: safetensors (a peer), whose library reads the result in the tests.

    Differs:
        From safetensors 0.8.0, which silently writes other bytes for arrays that are not
        contiguous (transposed, Fortran, strided), and copies all tensors at once.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "x.safetensors"
        ...     save_tensors(path, {"w": np.arange(6.0).reshape(2, 3).T})
        ...     SafetensorsFile(path).tensors["w"].array.tolist()
        [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    """
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        array = arrays[name]
        start, end = end, end + array.nbytes
        dtype = _WRITTEN.get(array.dtype.newbyteorder("="))
        if dtype is None:
            raise RefimplError(
                f"{name}: dtype {array.dtype} cannot be written to {path}",
                f"one of {', '.join(_WRITTEN.values())}",
                "convert the array first",
            )
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                array = arrays[name]
                whole = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
                file.write(whole.reshape(-1).view(np.uint8).data)
        part.replace(path)
    except OSError as error:
        raise RefimplError(
            f"{path}: cannot be written ({error.strerror})",
            "a folder that may be written to, on a disk with space",
            "choose another place, or make room",
        ) from error
    finally:
        with suppress(OSError):  # renamed, or never there
            part.unlink()
