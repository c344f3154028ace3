"""Settings of a computation, and the resources that they open."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.floating_point import loud
from refimpl.running.executors import Pool, open_pool
from refimpl.running.memory import parse_memory
from refimpl.running.threads import Progress, Workers
from refimpl.storage.partial_results import Decode, PartialResults, partial_results


@dataclass
class Resources:
    """Open resources of a computation.

    Args:
        dtype: Dtype of the computation.
        memory: Bytes for the residual states of all workers together.
        workers: Threads of this process.
        pool: Where work units run.
        partial: Partial results in a file; None if none are kept.
        progress: Called with the cost done and in all.
        total: Cost in all.
        done: Cost done so far.
    """

    dtype: np.dtype[Any]
    memory: int
    workers: Workers
    pool: Pool
    partial: PartialResults[Any, Any] | None
    progress: Progress
    total: float = 0.0
    done: float = 0.0

    def tick(self, cost: float = 1.0) -> None:
        """Report that work of this cost is done, in the unit of `total`."""
        self.done += cost
        self.progress(self.done, self.total)


@dataclass(frozen=True)
class Settings:
    """How and where a computation runs; its numbers depend on `dtype` alone.

    Args:
        dtype: float32, or float64 to certify.
        threads: Worker threads, or processes; one per core if None.
        memory: Memory for residual states, such as "1G"; the free memory, at most 2 GiB, if None.
        executor: Where work units run: a name that `open_pool` accepts, or an executor.
        progress: Called with the cost done and in all.
        part: The file for partial results, or None; the caller removes it at the end.
        resume: Whether to continue from the partial results in that file.
    """

    dtype: npt.DTypeLike = np.float32
    threads: int | None = None
    memory: str | int | None = None
    executor: Executor | str | None = None
    progress: Progress = lambda done, total: None
    part: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if np.dtype(self.dtype) not in (np.float32, np.float64):
            raise RefimplError(
                f"dtype {np.dtype(self.dtype)} is not supported",
                "float32 or float64",
                "choose one of these",
            )

    @contextmanager
    def open(
        self, identity: Mapping[str, Any], decode: Decode | None = None
    ) -> Iterator[Resources]:
        """Open threads, pool and partial results, with loud arithmetic, and close them at the end.

        Args:
            identity: Everything that the partial results depend on.
            decode: What each key and value of the partial results stand for.
        """
        memory = parse_memory(self.memory)
        with (
            loud(self.dtype),
            partial_results(self.part, identity, self.resume, decode) as partial,
            open_pool(self.executor, self.threads) as pool,
            Workers(self.threads) as workers,
        ):
            dtype = np.dtype(self.dtype)
            yield Resources(dtype, memory, workers, pool, partial, self.progress)
