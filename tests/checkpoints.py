"""Models on disk for the tests: fixtures with something changed, and any file at all."""

import json
import os
import re
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from refusals import refusal_of
from safetensors.numpy import save_file

from refimpl import Model, RefimplError, read_model
from refimpl.loading.checkpoint import roles
from refimpl.loading.config_json import read_config
from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.model.ops import Array
from refimpl.model.weight import STORED_DTYPES

Change = Callable[[dict[str, Array]], object]
needs_proc = pytest.mark.skipif(
    sys.platform != "linux", reason="reads /proc/self/status"
)


def arrays_of(case: str) -> dict[str, Array]:
    """A fixture's tensors by the file's names."""
    file = SafetensorsFile(FIXTURES / case / "model.safetensors")
    return {name: stored.array for name, stored in file.tensors.items()}


def config_of(case: str, **changes: Any) -> dict[str, Any]:
    """A fixture's `config.json` with some keys changed; those changed to `...` are deleted."""
    changed = json.loads((FIXTURES / case / "config.json").read_text("utf-8")) | changes
    return {key: value for key, value in changed.items() if value is not ...}


def save_tensors(
    path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file of any arrays: the library takes only contiguous ones."""
    path.unlink(missing_ok=True)  # the arrays may be views of the file
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    save_file(contiguous, path, dict(metadata) if metadata else None)


def write(
    folder: Path,
    arrays: Mapping[str, Array],
    config: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    folder.mkdir(exist_ok=True)
    save_tensors(folder / "model.safetensors", arrays, metadata)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def llama_of(
    folder: Path, dtype: str, metadata: Mapping[str, str] | None = None
) -> Path:
    """The llama fixture in one dtype, its file without metadata unless given."""
    arrays = {
        name: array.astype(STORED_DTYPES[dtype])
        for name, array in arrays_of("llama").items()
    }
    return write(folder, arrays, config_of("llama"), metadata)


def altered(folder: Path, case: str, change: Change, **config: Any) -> Path:
    """A fixture with its tensors changed, and keys of its configuration."""
    arrays = arrays_of(case)
    change(arrays)
    return write(folder, arrays, config_of(case, **config))


def write_raw(
    path: Path, header: Mapping[str, Any], data: bytes, pad: str = ""
) -> Path:
    """A safetensors file with any header at all."""
    text = json.dumps(header).encode() + pad.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def resident() -> int:
    """Bytes of memory that this process holds, mapped pages included."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def sparse(folder: Path, config: Mapping[str, Any], dtype: str = "F32") -> Path:
    """A model of zeros that takes no room on disk."""
    size, end, header = STORED_DTYPES[dtype].itemsize, 0, {}
    for _, role in roles(read_config(config), "model."):
        if role.tensor not in header:
            start, end = end, end + int(np.prod(role.shape)) * size
            offsets = [start, end]
            header[role.tensor] = {
                "dtype": dtype,
                "shape": role.shape,
                "data_offsets": offsets,
            }
    folder.mkdir()
    path = write_raw(folder / "model.safetensors", header, b"")
    os.truncate(path, path.stat().st_size + end)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refusal(path: Path, config: Path | None = None) -> RefimplError:
    return refusal_of(read_model, path, config)


def same_weights(model: Model, other: Model) -> None:
    assert model.config == other.config
    assert list(model.weights) == list(other.weights)
    for name in model.weights:
        left, right = (m.weights[name].read("float64") for m in (model, other))
        np.testing.assert_array_equal(left, right, err_msg=name)


def read_all(model: Model, dtype: str) -> None:
    model.check_finite(dtype)
    for i in range(model.config.num_blocks):
        model.block(i, dtype)
    model.head(dtype)
