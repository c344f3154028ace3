"""How numbers came about: the tokens, and the run."""

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from refimpl.running.threads import Workers, peak_memory
from refimpl.tokens import Tokens
from refimpl.version import __version__


@dataclass(frozen=True)
class TokenFacts:
    """Where the tokens came from, without the tokens.

    Args:
        samples: Number of sequences.
        seq_len: Tokens per sequence.
        source: One line for people.
        kind: "text", "ids" or "random".
        bos: Id at the start of every sample, or None.
        sha256: Of the ids.
    """

    samples: int
    seq_len: int
    source: str
    kind: str
    bos: int | None
    sha256: str


@dataclass(frozen=True)
class Runtime:
    """What ran the blocks.

    Args:
        runtime: "numpy" or "onnxruntime".
        device: "cpu", or a GPU and its name.
        versions: Of the runtime, by name, besides NumPy's.
    """

    runtime: str = "numpy"
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)


NUMPY = Runtime()


@dataclass(frozen=True)
class Run:
    """How the numbers were made.

    Args:
        dtype: Of the computation.
        threads: Worker threads.
        memory: Bytes allowed for residual states.
        seconds: Time it took.
        peak_memory: Largest resident memory in bytes, mapped pages included, where known.
        versions: refimpl, numpy and python, and of the runtime.
        runtime: What ran the blocks, "numpy" or "onnxruntime".
        device: Where: "cpu", or a GPU and its name.
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
    """Where tokens came from, without the tokens.

    Args:
        tokens: The tokens.

    Returns:
        Their facts.
    """
    count, length = tokens.ids.shape
    return TokenFacts(count, length, tokens.source, tokens.kind, tokens.bos, tokens.sha256)


def run_since(
    started: float,
    dtype: npt.DTypeLike,
    workers: Workers,
    memory: int,
    engine: Runtime = NUMPY,
) -> Run:
    """How a run that ends now went.

    Args:
        started: `time.perf_counter()` when it began.
        dtype: Of the computation.
        workers: Its threads.
        memory: Bytes allowed for residual states.
        engine: What ran the blocks.

    Returns:
        Its facts.
    """
    return Run(
        np.dtype(dtype).name,
        workers.threads,
        memory,
        time.perf_counter() - started,
        peak_memory(),
        versions() | {"python": platform.python_version(), **engine.versions},
        engine.runtime,
        engine.device,
    )


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {"refimpl": __version__, "numpy": np.__version__}
