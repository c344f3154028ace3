"""What numbers depend on: the model's files, the tokens, the versions, and the run."""

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.model.model import Model
from refimpl.running.memory import peak_memory
from refimpl.running.threads import Workers
from refimpl.tokens import Tokens
from refimpl.version import __version__


@dataclass(frozen=True)
class TokenFacts:
    """The origin of tokens, without the tokens; fields are as in `Tokens`."""

    samples: int
    seq_len: int
    source: str
    kind: str
    bos: int | None
    sha256: str


@dataclass(frozen=True)
class Runtime:
    """The software ("numpy" or "onnxruntime") and device ("cpu", or a GPU's name) of the blocks."""

    runtime: str = "numpy"
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)


NUMPY = Runtime()


@dataclass(frozen=True)
class Run:
    """How a run went: memory is what residual states may use, peak memory what was resident, bytes.

    The versions are those of refimpl, numpy, python, and the runtime.
    """

    dtype: str
    threads: int
    memory: int
    seconds: float
    peak_memory: int | None
    versions: Mapping[str, str]
    runtime: str = "numpy"
    device: str = "cpu"


def token_facts(tokens: Tokens) -> TokenFacts:
    """The origin of tokens."""
    count, length = tokens.ids.shape
    return TokenFacts(count, length, tokens.source, tokens.kind, tokens.bos, tokens.sha256)


def run_since(
    started: float,
    dtype: npt.DTypeLike,
    workers: Workers,
    memory: int,
    runtime: Runtime = NUMPY,
) -> Run:
    """The run that began when `time.perf_counter()` was `started`, and ends now."""
    return Run(
        np.dtype(dtype).name,
        workers.threads,
        memory,
        time.perf_counter() - started,
        peak_memory(),
        versions() | {"python": platform.python_version(), **runtime.versions},
        runtime.runtime,
        runtime.device,
    )


def versions() -> dict[str, str]:
    """Versions of the packages that compute the numbers."""
    return {"refimpl": __version__, "numpy": np.__version__}


def identity(model: Model) -> dict[str, Any]:
    """What all numbers of a model depend on: its files and the versions, as JSON."""
    return {
        "model": model.name,
        "files": [list(file) for file in stamps(model)],
        "config": sha256(repr(sorted(model.config_file.items())).encode()).hexdigest(),
        "versions": versions(),
    }


def stamps(model: Model) -> tuple[tuple[str, int, int], ...]:
    """Name, size in bytes and modification time in ns of each of a model's files."""
    stats = [(file.path.name, file.path.stat()) for file in model.files]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
