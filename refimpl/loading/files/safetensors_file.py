"""Safetensors files, checked when they are opened."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import DOCUMENT, reading
from refimpl.model.weight import StoredTensor, WeightFile
from refimpl.storage.file_system import open_file

METADATA = "__metadata__"


class SafetensorsFile(WeightFile):
    """A safetensors file: its metadata and tensors by name.

    The safetensors library checks header, offsets and length first; its NumPy loader is not used,
    because it copies every tensor it returns.
    """

    def __init__(self, path: Path) -> None:
        with reading(path, "a readable safetensors file"), open_file(path) as file:
            try:
                length = int.from_bytes(file.read(8), "little")
                if length > DOCUMENT:
                    raise ValueError(f"a header of {length:,} bytes")
                with safe_open(path, framework="np"):
                    pass
                header = json.loads(file.read(length))
                shapes = {n: x["shape"] for n, x in header.items() if n != METADATA}
                for name, shape in shapes.items():  # NumPy refuses some, though they are empty
                    if prod(size or 1 for size in shape) >= 1 << 60:
                        raise ValueError(f"{name}: the shape {shape}")
                super().__init__(path, file)
            except (SafetensorError, ValueError) as error:
                raise RefimplError(
                    f"{path} is not a whole safetensors file ({error})",
                    "a file written by safetensors, with a valid header, offsets and length",
                    "download or save the file again, and compare its size with the source",
                ) from error
        self.metadata: Mapping[str, str] = header.pop(METADATA, None) or {}
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
