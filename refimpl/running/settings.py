"""Settings of a computation, the memory that it may use, and the resources that it opens."""

import platform
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Checked, option, require
from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.model.ops import loud
from refimpl.running.file_system import MIB, work_folder
from refimpl.running.finished_units import FinishedUnits, finished_units
from refimpl.running.provenance import Run, check_unchanged, identity, stamps, versions
from refimpl.running.threads import Progress, Workers

DEFAULT_MEMORY = 2048 * MIB
FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_memory(size: str | int | None, more: int = 0) -> int:
    """Bytes of a size such as 1000, "512M" or "1.5GiB"; of None, free ones: 2 GiB and `more`."""
    require(size, str | int | None, "memory")
    if size is None:
        return min(DEFAULT_MEMORY + -(-more // MIB) * MIB, free_memory())
    number = str(size).strip().upper().removesuffix("IB").removesuffix("B")
    unit = number[-1:] if number[-1:] in FACTORS else ""
    try:
        parsed = int(float(number.removesuffix(unit)) * FACTORS[unit])
    except (ValueError, OverflowError):
        parsed = 0
    if parsed <= 0:
        raise RefimplError(
            f"`memory` {size!r}", "a size such as 512M or 1.5G", "use for example `memory=1G`"
        )
    return parsed


def require_memory(memory: int, need: int, thing: str, size: str, less: str) -> None:
    """Refuse to begin what does not fit into the memory."""
    if memory < need:
        raise RefimplError(
            f"memory of {memory} bytes does not hold {thing}",
            f"at least {need} bytes: {size}",
            f"use `memory={need}` or more, or {less}",
        )


def free_memory() -> int:
    """Bytes that are available without swapping."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        return DEFAULT_MEMORY


def peak_memory() -> int | None:
    """The largest resident memory of this process so far in bytes, mapped pages included."""
    with suppress(OSError, StopIteration), open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def progress_line() -> Progress:
    """A function that shows on stderr what share is done, and about how long the rest takes."""
    started = time.perf_counter()

    def show(done: float, total: float) -> None:
        share = min(done / total, 1.0) if total else 1.0
        left = (time.perf_counter() - started) * (1 / share - 1) if share else 0.0
        end = "\n" if share > 1 - 1e-9 else "\r"
        print(f"{share:4.0%} done, about {left:.0f} s left ", end=end, file=sys.stderr, flush=True)

    return show


@dataclass
class Resources:
    """Open resources of a computation, and its progress."""

    dtype: np.dtype[Any]
    memory: int  # bytes for the states of all workers together
    workers: Workers
    executor: Executor | None  # None: the threads here
    finished: FinishedUnits | None  # None: nothing is kept
    earlier: Mapping[str, Any]  # results that an earlier run kept
    progress: Progress
    total: float = 0.0
    done: float = 0.0

    @property
    def at_once(self) -> int:
        """How many work units run at once: one here, on all threads."""
        return 1 if self.executor is None else self.workers.threads

    def run_since(self, started: float) -> Run:
        """The run that began when `time.perf_counter()` was `started`, and ends now."""
        return Run(
            self.dtype.name,
            self.workers.threads,
            self.memory,
            time.perf_counter() - started,
            peak_memory(),
            versions() | {"python": platform.python_version()},
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

    `executor` is any `concurrent.futures.Executor`, which is left open, or None for threads here;
    `threads` is then the number of its workers.
    `progress` is called with the cost that is done and in all; True shows both on stderr.
    `finished` is the folder of finished work units, which a run of the same continues, and which
    the caller removes in the end.
    """

    dtype: npt.DTypeLike = option(
        np.float32, "Precision of the computation. float64 certifies float32."
    )
    threads: int | None = option(None, "Worker threads, 1 or more. Default: one per core.", "N")
    memory: str | int | None = option(
        None,
        "Memory for the residual states of all workers together, such as 512M or 1.5G. Results do "
        "not depend on it. Default: the free memory, at most 2 GiB.",
        "SIZE",
    )
    executor: Executor | None = option(
        None,
        "Run the work on the workers of this dask scheduler instead of threads of this process. "
        "Results do not depend on it.",
        "dask=ADDRESS",
        type=str,
    )
    progress: Progress | bool = False
    finished: Path | None = None

    @contextmanager
    def open(
        self, model: Model | None = None, options: Mapping[str, Any] = MappingProxyType({})
    ) -> Iterator[Resources]:
        """Open threads and finished units of a model, which must not change, and of `options`."""
        memory, progress = parse_memory(self.memory), self.progress
        if isinstance(progress, bool):
            progress = progress_line() if progress else lambda done, total: None
        begun = None if model is None else stamps(model)
        with ExitStack() as opened:
            opened.enter_context(loud(self.dtype))
            dtype, finished = np.dtype(self.dtype), None
            if model is not None and self.finished is not None:
                work = opened.enter_context(work_folder(self.finished))
                known = {**identity(model), **options, "dtype": dtype.name}
                finished = opened.enter_context(finished_units(work, known))
            workers = opened.enter_context(Workers(self.threads))
            earlier = {} if finished is None else finished.earlier
            yield Resources(dtype, memory, workers, self.executor, finished, earlier, progress)
            if model is not None and begun is not None:
                check_unchanged(model, begun)
