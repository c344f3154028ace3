"""What a computation runs with: the settings that travel together, and what they open."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.arithmetic import loud
from refimpl.running.executors import Pool, open_pool
from refimpl.running.threads import Progress, Workers, parse_memory
from refimpl.storage.partial_results import PartialResults, kept_in

Meaning = Callable[[str, Any], tuple[Any, Any]]


@dataclass
class Resources:
    """What a computation runs on.

    Args:
        dtype: Dtype of the computation.
        memory: Bytes for residual states, of all workers together.
        workers: Threads of this process.
        pool: Where work units run.
        partial: What was computed so far, kept in a file; None if nothing is kept.
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
        """Report that work of this cost is done."""
        self.done += cost
        self.progress(self.done, self.total)


@dataclass(frozen=True)
class Settings:
    """How and where a computation runs; its numbers depend on `dtype` alone.

    Args:
        dtype: float32, or float64 to certify.
        threads: Worker threads, or processes; one per core if None.
        memory: Memory for residual states, such as "1G"; what is free, at most 2 GiB, if None.
        executor: Where work units run, see `running.executors.open_pool`.
        progress: Called with the cost done and in all.
        part: The file that keeps partial results, or None; the caller removes it in the end.
        resume: Whether to continue from what that file holds.

    Raises:
        RefimplError: Another dtype.
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
            raise RefimplError(f"dtype {self.dtype}", "float32 or float64", "choose one of these")

    @contextmanager
    def open(self, run: Mapping[str, Any], meaning: Meaning | None = None) -> Iterator[Resources]:
        """Open threads, pool and partial results, with loud arithmetic, and close them in the end.

        Args:
            run: Everything that the numbers depend on: the identity of the partial results.
            meaning: What a key and a value of the partial results stand for; the same if None.
        """
        memory = parse_memory(self.memory)
        with (
            loud(self.dtype),
            kept_in(self.part, run, self.resume, meaning) as partial,
            open_pool(self.executor, self.threads) as pool,
            Workers(self.threads) as workers,
        ):
            dtype = np.dtype(self.dtype)
            yield Resources(dtype, memory, workers, pool, partial, self.progress)
