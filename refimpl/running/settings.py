"""Settings of a computation, and the resources that they open."""

import platform
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Checked, option
from refimpl.model.floating_point import loud
from refimpl.model.model import Model
from refimpl.running.memory import parse_memory, peak_memory
from refimpl.running.provenance import NUMPY, Run, Runtime, UnchangedFiles, versions
from refimpl.running.threads import Progress, Workers, cores
from refimpl.storage.file_system import work_folder
from refimpl.storage.finished_units import FinishedUnits, finished_units


@dataclass
class Resources:
    """Open resources of a computation, and its progress."""

    dtype: np.dtype[Any]
    memory: int  # bytes for the states of all workers together
    workers: Workers
    executor: Executor | None  # None: the threads here
    finished: FinishedUnits | None  # None: nothing is kept
    progress: Progress
    earlier: Mapping[str, Any] = field(default_factory=dict)  # results that an earlier run kept
    total: float = 0.0
    done: float = 0.0

    @property
    def at_once(self) -> int:
        """About how many work units run at once: one here, on all threads."""
        executor = self.executor
        return 1 if executor is None else getattr(executor, "_max_workers", None) or cores()

    def run_since(self, started: float, runtime: Runtime = NUMPY) -> Run:
        """The run that began when `time.perf_counter()` was `started`, and ends now."""
        return Run(
            self.dtype.name,
            self.workers.threads,
            self.memory,
            time.perf_counter() - started,
            peak_memory(),
            versions() | {"python": platform.python_version(), **runtime.versions},
            runtime.runtime,
            runtime.device,
        )

    def keep(self, results: Mapping[str, Any]) -> None:
        """Keep the results of a work unit by key, under the first, if any are kept."""
        if self.finished is not None:
            self.finished.write(next(iter(results)), results)

    def tick(self, cost: float = 1.0) -> None:
        """Report that work of this cost is done, in the unit of `total`."""
        self.done += cost
        self.progress(self.done, self.total)


@dataclass(frozen=True)
class Settings(Checked):
    """How and where a computation runs; its numbers depend on `dtype` alone.

    `executor` is any `concurrent.futures.Executor`, which is left open, or None for threads here.
    `progress` is called with the cost that is done and in all. `finished` is the folder of finished
    work units, which a run of the same continues, and which the caller removes in the end.
    """

    dtype: npt.DTypeLike = option(
        np.float32, "Precision of the computation. float64 certifies float32."
    )
    threads: int | None = option(
        None, "Worker threads or processes, 1 or more. Default: one per core.", "N"
    )
    memory: str | int | None = option(
        None,
        "Memory for the residual states of all workers together, such as 512M or 1.5G. Results do "
        "not depend on it. Default: the free memory, at most 2 GiB.",
        "SIZE",
    )
    executor: Executor | None = option(
        None,
        "Where the work runs: threads of this process, processes on this machine, dask=ADDRESS "
        "(workers of that scheduler), or mpi (processes that mpiexec started). Results do not "
        "depend on it. Default: threads.",
        "WHERE",
        type=str,
    )
    progress: Progress = lambda done, total: None
    finished: Path | None = None

    @contextmanager
    def open(
        self, model: Model | None = None, options: Mapping[str, Any] = MappingProxyType({})
    ) -> Iterator[Resources]:
        """Open threads and finished units of a model, which must not change, and of `options`."""
        memory = parse_memory(self.memory)
        files = None if model is None else UnchangedFiles(model)
        with ExitStack() as opened:
            opened.enter_context(loud(self.dtype))
            finished = None
            if files is not None and self.finished is not None:
                work, identity = opened.enter_context(work_folder(self.finished)), files.identity
                known = {**identity, **options, "dtype": np.dtype(self.dtype).name}
                units = finished_units(work, known, files.check)
                finished = opened.enter_context(units)
            workers = opened.enter_context(Workers(self.threads))
            earlier = {} if finished is None else finished.earlier
            settings = np.dtype(self.dtype), memory, workers, self.executor, finished
            yield Resources(*settings, self.progress, earlier)
            if files is not None:
                files.check(whole=True)
