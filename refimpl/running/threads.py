"""Worker threads, each with BLAS on one core."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from threading import Lock
from typing import Any, Self, TypeVar

from threadpoolctl import ThreadpoolController

from refimpl.arguments import integer, require

T = TypeVar("T")
U = TypeVar("U")
Progress = Callable[[float, float], None]
"""Called with the cost done and the cost in all."""


def thread_count(threads: int | None) -> int:
    """The number of threads that was asked for; if None, one per core that this process may use."""
    require(threads, integer(1, 1024) | None, "threads")
    if threads is None and hasattr(os, "sched_getaffinity"):
        threads = len(os.sched_getaffinity(0))
    return threads or os.cpu_count() or 1


class Workers:
    """Threads that each run NumPy on one core: faster than products of each state on all cores."""

    _lock, _open = Lock(), 0  # of this process
    _limit: Any = None

    def __init__(self, threads: int | None = None) -> None:
        wanted = thread_count(threads)
        self._blas = ThreadpoolController().select(user_api="blas")
        self.threads = (
            wanted if len(self._blas) else 1
        )  # without a BLAS that can be limited

    def __enter__(self) -> Self:
        with Workers._lock:
            if not Workers._open:
                Workers._limit = self._blas.limit(limits=1)
            Workers._open += 1
        self._pool = ThreadPoolExecutor(self.threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        with Workers._lock:
            Workers._open -= 1
            if not Workers._open:
                Workers._limit.restore_original_limits()

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Hand a task to the threads, which take tasks in this order."""
        return self._pool.submit(copy_context().run, task)  # with our numpy.errstate

    def run(
        self, tasks: Iterable[Callable[[], T]], done: Callable[[], None] | None = None
    ) -> list[T]:
        """The results of tasks, in order; `done` is called after each; one worker is the caller."""
        results, alone = [], self.threads == 1
        for task in tasks if alone else [self.submit(task).result for task in tasks]:
            results.append(copy_context().run(task) if alone else task())
            if done is not None:
                done()
        return results

    def map(self, function: Callable[[U], T], items: Iterable[U]) -> list[T]:
        """The results of a function of each item, in order."""
        return self.run([partial(function, item) for item in items])
