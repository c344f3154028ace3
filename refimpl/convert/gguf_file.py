"""GGUF files by gguf's own reader, with a bound on all that their headers claim."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    dequantize,
)

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.model.weight import STORED_DTYPES, WeightFile

DAMAGES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
MOST_ENTRIES, MOST_ELEMENTS = 1 << 16, 1 << 23
WEIGHTS_AT_ONCE = 1 << 20  # weights that are de-quantised at once


class BoundedReader(GGUFReader):
    """gguf's reader, which raises an error at the end of the file instead of reading on."""

    elements = 0  # of all arrays of the metadata

    def _get(
        self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None
    ) -> Any:
        little = np.dtype(dtype).newbyteorder("<")
        end = int(offset) + int(count) * little.itemsize
        if end > self.data.size:
            raise ValueError(f"it ends at byte {self.data.size:,}, before byte {end:,}")
        return np.frombuffer(self.data, little, int(count), int(offset))

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == GGUFValueType.ARRAY:
            self.elements += int(self._get(orig_offs + 4, np.uint64)[0])
            nested = self._get(orig_offs, np.uint32)[0] == GGUFValueType.ARRAY
            if nested or self.elements > MOST_ELEMENTS:
                raise ValueError("an array in an array, or too many elements of arrays")
        return super()._get_field_parts(orig_offs, raw_type)


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file: its type, its shape (rows first) and its first byte."""

    file: WeightFile
    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def dtype(self) -> str:
        """Its dtype after reading, a key of `STORED_DTYPES`."""
        return self.kind.name if self.kind.name in STORED_DTYPES else "F32"

    @property
    def array(self) -> Array:
        """All of it."""
        return self._values(0, prod(self.shape)).reshape(self.shape)

    def part(self, index: int) -> Array:
        """One tensor of a stack, such as an expert's."""
        size = prod(self.shape[1:])
        return self._values(index * size, size).reshape(self.shape[1:])

    def pieces(self) -> Iterator[Array]:
        """All of it, some values at a time."""
        block, count = GGML_QUANT_SIZES[self.kind][0], prod(self.shape)
        step = WEIGHTS_AT_ONCE // block * block
        for start in range(0, count, step):
            yield self._values(start, min(step, count - start))

    def _values(self, start: int, count: int) -> Array:
        """So many values."""
        block, size = GGML_QUANT_SIZES[self.kind]
        stored = self.file.read(
            self.offset + start // block * size, count // block * size
        )
        if self.kind.name in STORED_DTYPES:
            return stored.view(STORED_DTYPES[self.kind.name])
        return dequantize(stored.reshape(1, -1), self.kind)[0]


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Turn what gguf and values of wrong types raise into one error."""
    try:
        with np.errstate(all="ignore"):
            yield
    except RefimplError:
        raise
    except DAMAGES as error:
        raise RefimplError(
            f"{path} cannot be converted: {error}",
            "a whole GGUF file of version 2 or 3, as llama.cpp's converter writes it",
            "compare the file with its source, or use the original checkpoint in safetensors",
        ) from error


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """The metadata and the tensors of a GGUF file, or of all files of a split model."""
    metadata, tensors = _read_file(path)
    for i in range(1, count := metadata.get("split.count", 1)):
        part = path.with_name(path.name.replace("-00001-of-", f"-{i + 1:05}-of-"))
        own, more = _read_file(part) if part.is_file() else ({}, {})
        if (own.get("split.no"), own.get("split.count")) != (
            i,
            count,
        ) or tensors.keys() & more:
            raise ValueError(
                f"it is one of {count} files: pass the first, beside {part.name}"
            )
        tensors |= more
    return metadata, tensors


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """The metadata and the tensors of one file, whose bytes are all there."""
    counts = np.fromfile(path, "<u8", 2, offset=8)  # of tensors, and of metadata
    if len(counts) < 2 or counts.max() > MOST_ENTRIES:
        raise ValueError(f"its header has the counts {counts.tolist()}")
    reader, tensors = BoundedReader(path), dict[str, GgufTensor]()
    end = reader.data_offset
    with path.open("rb") as opened:
        file = WeightFile(path, opened)
    for x in sorted(reader.tensors, key=lambda x: x.data_offset):
        if x.data_offset < end:
            raise ValueError(
                f"{x.name} begins before byte {end:,}, in what is before it"
            )
        end, shape = x.data_offset + x.n_bytes, tuple(map(int, x.shape[::-1]))
        tensors[x.name] = GgufTensor(file, x.name, x.tensor_type, shape, x.data_offset)
    for kind in {x.kind for x in tensors.values()}:  # those that the library reads
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    return {name: field.contents() for name, field in reader.fields.items()}, tensors
