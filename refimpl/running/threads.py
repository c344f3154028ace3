"""Worker threads, each with BLAS on one core."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from threading import Lock
from typing import Any, Self, TypeVar

from threadpoolctl import ThreadpoolController

from refimpl.errors import RefimplError

MOST_THREADS = 1024
T = TypeVar("T")
U = TypeVar("U")
Progress = Callable[[float, float], None]
"""Called with the cost done and the cost in all."""


class _BlasLimit:
    """Keeps BLAS on one thread while this process has any open `Workers`."""

    def __init__(self) -> None:
        self._lock, self._users = Lock(), 0
        self._limit: Any = None

    def acquire(self, blas: Any) -> None:
        """Limit BLAS for the first user."""
        with self._lock:
            if self._users == 0:
                self._limit = blas.limit(limits=1)
            self._users += 1

    def release(self) -> None:
        """Restore BLAS after the last user."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limit.restore_original_limits()


BLAS_LIMIT = _BlasLimit()


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def thread_count(threads: int | None) -> int:
    """The number of threads or processes that was asked for; one per core if it is None."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise RefimplError(
            f"{threads} threads", f"from 1 to {MOST_THREADS:,}", "use --threads 1, or omit it"
        )
    return threads or cores()


class Workers:
    """Threads that each run NumPy on one core: one per core if `threads` is None.

    The states of an experiment are independent, so one state per thread is faster than one matrix
    product on all threads. Where BLAS cannot be limited to one thread, there is one worker.
    """

    def __init__(self, threads: int | None = None) -> None:
        wanted = thread_count(threads)
        self._blas = ThreadpoolController().select(user_api="blas")
        self.threads = wanted if len(self._blas) else 1

    def __enter__(self) -> Self:
        BLAS_LIMIT.acquire(self._blas)
        self._pool = ThreadPoolExecutor(self.threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        BLAS_LIMIT.release()

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Hand a task to the threads, which take tasks in this order."""
        return self._pool.submit(copy_context().run, task)  # with our numpy.errstate

    def run(
        self, tasks: Iterable[Callable[[], T]], done: Callable[[], None] | None = None
    ) -> list[T]:
        """The results of tasks, in order; `done` is called after each, in order.

        One worker is the caller itself, who has nothing else to do.
        """
        results, alone = [], self.threads == 1
        for task in tasks if alone else [self.submit(task).result for task in tasks]:
            results.append(copy_context().run(task) if alone else task())
            if done is not None:
                done()
        return results

    def map(self, function: Callable[[U], T], items: Iterable[U]) -> list[T]:
        """The results of a function of each item, in order."""
        return self.run([partial(function, item) for item in items])
