"""Settings of a computation, and the resources that they open."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Checked
from refimpl.model.floating_point import loud
from refimpl.model.model import Model
from refimpl.running.memory import parse_memory
from refimpl.running.provenance import UnchangedFiles
from refimpl.running.threads import Progress, Workers, cores
from refimpl.storage.partial_results import Decode, PartialResults, partial_results


@dataclass
class Resources:
    """Open resources of a computation: memory is bytes for the states of all workers together.

    Work units run on the executor, on the threads here if it is None; `partial` is None if no
    partial results are kept.
    """

    dtype: np.dtype[Any]
    memory: int
    workers: Workers
    executor: Executor | None
    partial: PartialResults[Any, Any] | None
    progress: Progress
    total: float = 0.0
    done: float = 0.0

    @property
    def at_once(self) -> int:
        """About how many work units run at once: one here, on all threads."""
        executor = self.executor
        return 1 if executor is None else getattr(executor, "_max_workers", None) or cores()

    def tick(self, cost: float = 1.0) -> None:
        """Report that work of this cost is done, in the unit of `total`."""
        self.done += cost
        self.progress(self.done, self.total)


@dataclass(frozen=True)
class Settings(Checked):
    """How and where a computation runs; its numbers depend on `dtype` alone.

    The fields are arguments of `score`.
    """

    dtype: npt.DTypeLike = np.float32
    threads: int | None = None
    memory: str | int | None = None
    executor: Executor | None = None
    progress: Progress = lambda done, total: None
    part: Path | None = None
    resume: bool = False

    @contextmanager
    def open(
        self,
        model: Model | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
        decode: Decode | None = None,
    ) -> Iterator[Resources]:
        """Open threads and partial results, with loud arithmetic, and close them at the end.

        The partial results depend on the model and on `options`, and `decode` says what their lines
        stand for. The files of the model must not change until the end.
        """
        memory = parse_memory(self.memory)
        files = None if model is None else UnchangedFiles(model)
        identity = {**(files.identity if files else {}), **options}
        check = files.check if files else None
        with (
            loud(self.dtype),
            partial_results(self.part, identity, self.resume, decode, check) as partial,
            Workers(self.threads) as workers,
        ):
            dtype = np.dtype(self.dtype)
            yield Resources(dtype, memory, workers, self.executor, partial, self.progress)
            if files is not None:
                files.check_at_end(partial)
