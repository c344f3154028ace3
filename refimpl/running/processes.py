"""A pool of processes that ends at once, whatever they compute, and that Ctrl-C does not reach."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import NoReturn


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Open processes that end with the block, and with this process even if it is killed."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, spawn, initializer=_end_with_parent)
    try:
        if hasattr(signal, "pthread_sigmask"):  # Ctrl-C is this process's, which ends the others
            resource_tracker.ensure_running()  # which would unblock it
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            while len(pool._processes) < count:  # each inherits the mask
                pool.submit(time.sleep, 0.1)  # keeps one from taking the next call
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield pool
    finally:
        for process in [*(pool._processes or {}).values()]:
            process.kill()
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this process with its parent."""

    def end() -> NoReturn:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
