"""What numbers depend on: the model's files, the tokens, the versions, and the run."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.running.file_system import file_digest
from refimpl.version import SPEC, __version__

Stamps = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Run:
    """How a run went; memory is for residual states, peak memory what was resident, in bytes."""

    dtype: str
    threads: int
    memory: int  # bytes allowed for residual states and SparseGPT's matrices
    seconds: float
    peak_memory: int | None  # largest resident memory in bytes
    versions: Mapping[str, str]  # of refimpl, numpy and python


def versions() -> dict[str, str]:
    """Versions of the packages that compute the numbers."""
    return {"refimpl": __version__, "numpy": np.__version__}


def identity(model: Model) -> dict[str, Any]:
    """What all numbers of a model depend on: its files and the versions, as JSON."""
    return {
        "model": model.name,
        "files": [list(stamp) for stamp in stamps(model)],
        "config": sha256(repr(sorted(model.config_file.items())).encode()).hexdigest(),
        "versions": versions() | {"spec": str(SPEC)},
    }


def model_sha256(model: Model) -> str:
    """SHA-256 of a model, whatever its folder is called: its configuration, then its files."""
    digest = sha256(repr(sorted(model.config_file.items())).encode())
    for path in sorted(file.path for file in model.files):
        digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()


def stamps(model: Model) -> Stamps:
    """Name, size in bytes and modification time in ns of each of a model's files."""
    stats = [(file.path.name, file.path.stat()) for file in model.files]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def check_unchanged(model: Model, begun: Stamps) -> None:
    """Refuse files of other sizes or times than when the run began."""
    with suppress(OSError):
        if stamps(model) == begun:
            return
    raise RefimplError(
        f"{model.path}: the model's files changed while they were used",
        "files that stay as they are during a run",
        "repeat the command",
    )
