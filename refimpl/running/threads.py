"""Worker threads with single-threaded BLAS, memory to spend, and progress."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from threading import Lock
from typing import Any, Self, TypeVar

from threadpoolctl import ThreadpoolController

from refimpl.errors import RefimplError

T = TypeVar("T")
U = TypeVar("U")
Progress = Callable[[float, float], None]
"""Called with the units of work done and the units in all."""

MIB = 1 << 20
DEFAULT_MEMORY = 2048 * MIB
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class _OneCore:
    """BLAS on one thread for as long as anyone in this process wants it so."""

    def __init__(self) -> None:
        self._lock, self._users = Lock(), 0
        self._limit: Any = None

    def take(self, blas: Any) -> None:
        """Limit BLAS, if nobody has done so."""
        with self._lock:
            if self._users == 0:
                self._limit = blas.limit(limits=1)
            self._users += 1

    def give_back(self) -> None:
        """Undo that, if nobody else wants it."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limit.restore_original_limits()


ONE_CORE = _OneCore()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


class Workers:
    """Threads that each run NumPy on one core.

    States of an experiment are independent, so one state per thread beats one matrix product on
    all threads. Where BLAS cannot be limited to one thread, there is one worker.

    Args:
        threads: Number of threads; None for one per core this process may use.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise RefimplError(
                f"{threads} threads", "1 or more", "use --threads 1 or leave it away"
            )
        controller = ThreadpoolController()
        self._blas = controller.select(user_api="blas")
        self.threads = (threads or cores()) if len(self._blas) else 1

    def __enter__(self) -> Self:
        ONE_CORE.take(self._blas)
        self._pool = ThreadPoolExecutor(self.threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        ONE_CORE.give_back()

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Hand a task to the threads, which take tasks in this order."""
        return self._pool.submit(copy_context().run, task)  # with our numpy.errstate

    def run(
        self, tasks: Iterable[Callable[[], T]], done: Callable[[], None] | None = None
    ) -> list[T]:
        """Run tasks on the threads.

        Args:
            tasks: Functions without arguments.
            done: Called after each task, in order.

        Returns:
            Their results, in order.
        """
        results = []
        for future in [self.submit(task) for task in tasks]:
            results.append(future.result())
            if done is not None:
                done()
        return results

    def map(self, function: Callable[[U], T], items: Iterable[U]) -> list[T]:
        """As `map`, on the threads.

        Args:
            function: Of one item.
            items: Items.

        Returns:
            The results, in order.
        """
        return self.run([partial(function, item) for item in items])


def parse_memory(text: str | int | None) -> int:
    """Bytes to spend on states, from a text such as "1.5G"; by default what is free, at most 2 GiB.

    Args:
        text: A number of bytes, or a number with K, M, G or T (powers of 1024; "iB" may follow).

    Returns:
        Bytes.

    Raises:
        RefimplError: Not a size.

    Example:
        >>> parse_memory("1.5G") == 3 * 2**29
        True
    """
    if text is None:
        return min(DEFAULT_MEMORY, _free_memory())
    number = str(text).strip().upper().removesuffix("IB").removesuffix("B")
    unit = number[-1:] if number[-1:] in UNITS else ""
    try:
        size = int(float(number.removesuffix(unit)) * UNITS[unit])
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise RefimplError(
            f"memory {text!r}", "a size such as 512M or 1.5G", "use for example --memory 1G"
        )
    return size


def _free_memory() -> int:
    """Memory that may be had without swapping, in bytes."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        return DEFAULT_MEMORY


def peak_memory() -> int | None:
    """Largest resident memory of this process so far, mapped pages included, in bytes."""
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
