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

from refimpl.loading.config_json import read_config
from refimpl.loading.safetensors_file import DTYPES, SafetensorsFile, save_tensors
from refimpl.loading.tensor_claims import roles
from refimpl.model.ops import Array

Change = Callable[[dict[str, Array]], object]
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


def arrays_of(case: str) -> dict[str, Array]:
    """A fixture's tensors by the file's names."""
    file = SafetensorsFile(FIXTURES / case / "model.safetensors")
    return {name: stored.array for name, stored in file.tensors.items()}


def config_of(case: str, **changes: Any) -> dict[str, Any]:
    """A fixture's `config.json` with some keys changed."""
    return json.loads((FIXTURES / case / "config.json").read_text("utf-8")) | changes


def write(folder: Path, arrays: Mapping[str, Array], config: Mapping[str, Any]) -> Path:
    """A model's folder."""
    folder.mkdir(exist_ok=True)
    save_tensors(folder / "model.safetensors", arrays)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def altered(folder: Path, case: str, change: Change, **config: Any) -> Path:
    """A fixture with its tensors changed, and keys of its configuration."""
    arrays = arrays_of(case)
    change(arrays)
    return write(folder, arrays, config_of(case, **config))


def write_raw(path: Path, header: Mapping[str, Any], data: bytes, pad: str = "") -> Path:
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
    size, end, header = DTYPES[dtype].itemsize, 0, {}
    for _, role in roles(read_config(config), "model."):
        if role.tensor not in header:
            start, end = end, end + int(np.prod(role.shape)) * size
            offsets = [start, end]
            header[role.tensor] = {"dtype": dtype, "shape": role.shape, "data_offsets": offsets}
    folder.mkdir()
    path = write_raw(folder / "model.safetensors", header, b"")
    os.truncate(path, path.stat().st_size + end)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
