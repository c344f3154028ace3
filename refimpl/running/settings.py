"""Settings of a computation, its memory, and the resources that it opens."""

import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
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
from refimpl.model.ops import within_range
from refimpl.running import file_system as disk
from refimpl.running.blas import blas_name, require_right_products
from refimpl.running.provenance import Run, check_unchanged, identity, stamps, versions
from refimpl.running.threads import Progress, Workers

Tick = Callable[[float], None]  # called with the cost of the work that is done
_DEFAULT = 2048 * disk.MIB
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_memory(size: str | int | None, more: int = 0) -> int:
    """Bytes of a size such as 1000, "512M" or "1.5GiB"; of None, free ones: 2 GiB and `more`."""
    require(size, str | int | None, "memory")
    if size is None:
        return min(_DEFAULT + -(-more // disk.MIB) * disk.MIB, free_memory())
    read = re.fullmatch(r"([0-9.]{1,20})([KMGT]?)(IB|B)?", str(size).strip().upper())
    with suppress(ValueError):
        if read and (parsed := int(float(read[1]) * _FACTORS[read[2]])) > 0:
            return parsed
    raise RefimplError(
        f"`memory` {size!r}",
        "a size such as 512M or 1.5G",
        "use for example `memory=1G`",
    )


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
        return _DEFAULT


def peak_memory() -> int | None:
    """The largest resident memory of this process so far in bytes, mapped pages included."""
    with suppress(OSError, StopIteration), open("/proc/self/status") as lines:
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")
        )
    return None  # not Linux


@dataclass
class Resources:
    """Open resources of a computation, and its progress."""

    dtype: np.dtype[Any]
    memory: int  # bytes for the states
    workers: Workers
    finished: disk.FinishedUnits | None  # None: nothing is kept
    earlier: Mapping[str, Any]  # results that an earlier run kept
    progress: Progress
    total: float = 0.0
    done: float = 0.0

    def run_since(self, started: float) -> Run:
        """The run that began when `time.perf_counter()` was `started`, and ends now."""
        return Run(
            self.dtype.name,
            self.workers.threads,
            self.memory,
            time.perf_counter() - started,
            peak_memory(),
            versions() | {"python": platform.python_version(), "blas": blas_name()},
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
    """How a computation runs; its numbers depend on `dtype` alone.

    `progress` is called with the cost that is done and in all; True shows the share on stderr.
    `finished` is the folder of finished work units, which a run of the same continues, and which
    the caller removes in the end.
    """

    dtype: npt.DTypeLike = option(
        "float32", "Precision of the computation. float64 certifies float32."
    )
    threads: int | None = option(
        None, "Worker threads, 1 or more. Default: one per core.", "N"
    )
    memory: str | int | None = option(
        None,
        "Memory for the residual states, such as 512M or 1.5G. Results do not depend on it. "
        "Default: the free memory, at most 2 GiB.",
        "SIZE",
    )
    progress: Progress | bool = False
    finished: Path | None = None

    @contextmanager
    def open(
        self,
        model: Model | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Iterator[Resources]:
        """Open threads and finished units of a model, which must not change, and of `options`."""
        memory, begun = (
            parse_memory(self.memory),
            None if model is None else stamps(model),
        )
        require_right_products()
        with ExitStack() as opened:
            opened.enter_context(within_range(self.dtype))
            dtype, finished = np.dtype(self.dtype), None
            if model is not None and self.finished is not None:
                work = opened.enter_context(disk.work_folder(self.finished))
                known = {**identity(model), **options, "dtype": dtype.name}
                finished = opened.enter_context(disk.finished_units(work, known))
            workers = opened.enter_context(Workers(self.threads))
            earlier = {} if finished is None else finished.earlier
            shown = (
                _shown_progress
                if self.progress is True
                else self.progress or (lambda *_: None)
            )
            yield Resources(dtype, memory, workers, finished, earlier, shown)
            if model is not None and begun is not None:
                check_unchanged(model, begun)


def _shown_progress(done: float, total: float) -> None:
    """Show on stderr what share is done."""
    end = "\n" if done >= total * (1 - 1e-9) else "\r"
    print(f"{done / max(total, 1e-9):4.0%} done", end=end, file=sys.stderr, flush=True)
