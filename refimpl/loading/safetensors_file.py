"""Safetensors files: checked when they are opened, and mapped into memory."""

import json
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from refimpl.errors import RefimplError, unreadable
from refimpl.model.weight import MappedFile, StoredTensor


class SafetensorsFile(MappedFile):
    """A safetensors file: its metadata and tensors by name.

    The safetensors library checks header, offsets and length first; its NumPy loader is not used,
    because it copies every tensor it returns.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                with safe_open(path, framework="np"):
                    pass
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
                super().__init__(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise unreadable(path, error, "a readable safetensors file") from error
        except (SafetensorError, ValueError) as error:
            raise RefimplError(
                f"{path} is not a whole safetensors file ({error})",
                "a file written by safetensors, with a valid header, offsets and length",
                "download or save the file again, and compare its size with the source",
            ) from error
        self.metadata: Mapping[str, str] = header.pop("__metadata__", None) or {}
        self.tensors = {
            name: StoredTensor(
                self,
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
            )
            for name, entry in header.items()
        }
