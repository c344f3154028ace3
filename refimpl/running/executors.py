"""Where work units run: on threads of this process, or on an executor's workers."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from refimpl.errors import RefimplError
from refimpl.running.threads import cores, thread_count
from refimpl.storage.partial_results import ResumableError

NAMES = "threads, processes, dask=ADDRESS or mpi"
WAIT = 30  # seconds for a scheduler to answer, and for its first worker


@dataclass(frozen=True)
class Pool:
    """The executor for work units (None: threads of this process), and about how many run at once.

    All workers share the memory that may be used.
    """

    executor: Executor | None = None
    workers: int = 1


LOCAL = Pool()


class LostWorkerError(ResumableError):
    """A worker died and no other could run its work unit; the results of the others are kept."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(
            f"a worker was lost ({type(error).__name__}: {error or 'no reason given'})",
            "workers that live until their work is done; most die of too little memory",
            "use a smaller --memory or fewer --threads, and repeat the command with --resume",
        )


@contextmanager
def open_pool(choice: Executor | str | None, threads: int | None = None) -> Iterator[Pool]:
    """Open the pool that --executor names, and close it at the end; an executor is left open.

    `threads` is the number of processes that "processes" starts: one per core if None.
    """
    if choice is None or choice == "threads":
        yield LOCAL
    elif isinstance(choice, Executor):
        yield Pool(choice, getattr(choice, "_max_workers", None) or cores())
    elif choice == "processes":
        with _processes(thread_count(threads)) as pool:
            yield pool
    elif choice.startswith("dask=") and choice != "dask=":
        with _dask(choice.removeprefix("dask=")) as pool:
            yield pool
    elif choice == "mpi":
        with _mpi() as pool:
            yield pool
    else:
        raise RefimplError(f"executor {choice!r} is unknown", NAMES, "choose one of these")


@contextmanager
def _processes(count: int) -> Iterator[Pool]:
    """Open processes that end with the block, and with this process even if it is killed."""
    import multiprocessing  # takes longer to import than most commands to start
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import resource_tracker

    theirs, ours = multiprocessing.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=_follow, initargs=(theirs,)
    )
    try:
        if hasattr(signal, "pthread_sigmask"):  # Ctrl-C is this process's, which ends the others
            resource_tracker.ensure_running()  # which would unblock it
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            for _ in range(count):  # each starts a process, which inherits the mask
                pool.submit(os.getpid)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield Pool(pool, count)
    except BaseException:
        ours.close()  # ends them at once, whatever they are doing
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()


def _follow(pipe: Any) -> None:
    """End this process when the other end of the pipe is closed, or its process has died."""

    def end() -> NoReturn:
        pipe.poll(None)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@contextmanager
def _dask(address: str) -> Iterator[Pool]:
    """Open a dask scheduler's workers; it repeats the work of a lost worker on another one."""
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise _missing("dask", error) from error
    try:
        client = Client(address, timeout=WAIT)
    except (OSError, ValueError) as error:
        raise RefimplError(
            f"no dask scheduler answers at {address} ({error})",
            "the address that a scheduler prints when it starts, such as tcp://10.0.0.1:8786",
            "start one with `dask scheduler`, and workers with `dask worker ADDRESS`",
        ) from error
    with client:
        try:
            client.wait_for_workers(1, WAIT)
        except TimeoutError as error:
            raise RefimplError(
                f"the dask scheduler at {address} has no workers",
                "one worker or more",
                f"start them with `dask worker {address} --nthreads 1`",
            ) from error
        try:
            with client.get_executor(pure=False) as executor:
                yield Pool(executor, sum(client.nthreads().values()))
        except KilledWorker as error:
            raise LostWorkerError(error) from error


@contextmanager
def _mpi() -> Iterator[Pool]:
    """Open the processes of ``mpiexec -n 5 python -m mpi4py.futures -m refimpl ...``."""
    try:
        from mpi4py.futures import MPIPoolExecutor
    except (ImportError, RuntimeError) as error:  # the latter without an MPI library
        raise _missing("mpi", error) from error
    with MPIPoolExecutor() as executor:
        yield Pool(executor, max(1, executor.num_workers))


def _missing(extra: str, error: Exception) -> RefimplError:
    return RefimplError(
        f"--executor {extra} needs a package that cannot be imported ({error})",
        f"refimpl with the extra [{extra}]",
        f"pip install 'refimpl[{extra}]'" + ("; and an MPI library" if extra == "mpi" else ""),
    )
