"""The executors that a command opens by name; the library takes any that is open."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor  # processes take long to import
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any, NoReturn

from refimpl.errors import RefimplError, need
from refimpl.running.threads import thread_count

NAMES = "threads, processes, dask=ADDRESS or mpi"
WAIT = 30  # seconds for a scheduler to answer, and for its first worker


def open_executor(name: str, threads: int | None = None) -> AbstractContextManager[Executor | None]:
    """Open what --executor names (None: threads of this process), of so many processes."""
    if name == "threads":
        return nullcontext()
    if name == "processes":
        return _processes(thread_count(threads))
    if name.startswith("dask=") and name != "dask=":
        return _dask(name.removeprefix("dask="))
    if name == "mpi":
        return _mpi()
    raise RefimplError(f"executor {name!r} is unknown", NAMES, "choose one of these")


@contextmanager
def _processes(count: int) -> Iterator[Executor]:
    """Open processes that end at once with the block, and with this process if it is killed."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context, resource_tracker

    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_end_with_parent)
    try:
        if hasattr(signal, "pthread_sigmask"):  # Ctrl-C is this process's, which ends the others
            resource_tracker.ensure_running()  # which would unblock it
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            with suppress(BrokenExecutor):  # of which the first work unit tells
                while len(pool._processes) < count:  # each inherits the mask
                    pool.submit(time.sleep, 0.1)  # keeps one from taking the next call
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield pool
    finally:
        processes = [*(pool._processes or {}).values()]
        manager: Any = pool._executor_manager_thread
        pool.shutdown(wait=False, cancel_futures=True)  # or Python 3.11 fails at cancelled calls
        for process in processes:
            process.kill()
        if manager is not None:
            manager.join()


def _end_with_parent() -> None:
    """End this process with its parent, whatever it computes."""
    from multiprocessing import parent_process

    def end() -> NoReturn:
        if parent := parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    """Open the workers of a dask scheduler, which repeats the work of a lost one on another."""
    need("dask", "distributed")
    from distributed import Client

    with ExitStack() as ends:
        try:
            client = ends.enter_context(Client(address, timeout=WAIT))
            client.wait_for_workers(1, WAIT)
        except (OSError, ValueError) as error:
            raise RefimplError(
                f"no dask scheduler with a worker answers at {address} ({error})",
                "the address that a scheduler prints when it starts, such as tcp://10.0.0.1:8786",
                "start one with `dask scheduler`, and workers with `dask worker ADDRESS`",
            ) from error
        executor = client.get_executor(pure=False)
        executor._max_workers = sum(client.nthreads().values())  # as in other executors
        yield executor


@contextmanager
def _mpi() -> Iterator[Executor]:
    """Open the processes of ``mpiexec -n 5 python -m mpi4py.futures -m refimpl ...``."""
    try:
        from mpi4py.futures import MPIPoolExecutor
    except (ImportError, RuntimeError) as error:  # the latter without an MPI library
        raise RefimplError(
            f"--executor mpi needs a package that cannot be imported ({error})",
            "refimpl with its extra [mpi], and an MPI library",
            "pip install 'refimpl[mpi]'; and an MPI library",
        ) from error
    with MPIPoolExecutor() as executor:
        yield executor
