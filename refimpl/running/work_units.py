"""Work units: independent pieces of a computation, whose results are the same wherever they run.

A unit carries paths, indices, options and token ids, never weights: workers open the model. They
are threads, or those of an executor: of a library's caller, or the one that --executor names.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from itertools import islice
from traceback import format_exc
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from refimpl.errors import RefimplError, need
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.model.ops import loud
from refimpl.running.file_system import ResumableError
from refimpl.running.provenance import Stamps, stamps
from refimpl.running.settings import Resources
from refimpl.running.threads import Workers

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Tick = Callable[[float], None]
"""Called with the cost of the work that is done."""

WAIT = 30  # seconds for a scheduler to answer, and for its first worker
AHEAD = 2  # units submitted per worker, so that no worker waits for the next one
AWAKE = 0.2  # seconds: a Ctrl-C that comes as a wait begins does not end that wait


class WorkUnit(Protocol[T_co]):
    """A piece of work that can be pickled."""

    @property
    def dtype(self) -> npt.DTypeLike:
        """Dtype of the computation."""

    def cost(self, config: Config) -> float:
        """Its cost, in the unit of the progress."""

    def run(self, model: Model, workers: Workers, tick: Tick) -> T_co:
        """Its result; `tick` gets the cost of each piece that is done."""


def results(units: Iterable[WorkUnit[T]], model: Model, resources: Resources) -> Iterator[T]:
    """Run units on the executor, or here on the threads, and yield each result as its unit ends."""
    executor = resources.executor
    if executor is None:
        for unit in units:
            yield unit.run(model, resources.workers, resources.tick)
        return
    config = None if model.config_path is None else os.path.abspath(model.config_path)
    where = model.reopen, os.path.abspath(model.path), config, stamps(model)
    run = partial(_run, where)
    waiting, submitted = iter(units), dict[Future[Any], WorkUnit[T]]()
    try:
        while True:
            for unit in islice(waiting, AHEAD * resources.at_once - len(submitted)):
                with _lost_workers():
                    submitted[executor.submit(run, unit)] = unit
            if not submitted:
                return
            for future in wait(submitted, AWAKE, FIRST_COMPLETED).done:
                unit = submitted.pop(future)
                with _lost_workers():
                    result, error = future.result()
                if error is not None:
                    raise error
                yield result
                resources.tick(unit.cost(model.config))
    finally:
        for future in submitted:
            future.cancel()


@contextmanager
def _lost_workers() -> Iterator[None]:
    """Whatever an executor raises is its own: a work unit returns its errors."""
    try:
        yield
    except Exception as error:
        raise ResumableError(
            f"a worker was lost ({type(error).__name__}: {error or 'no reason given'})",
            "workers with memory for their work, and work that can be sent to them",
            "use a smaller `memory` or fewer `threads`, and repeat the command",
        ) from error


def _run(where: Any, unit: WorkUnit[T]) -> tuple[T | None, Exception | None]:
    """The result of a unit in a worker's process, with BLAS on one thread; or its error."""
    try:
        with loud(unit.dtype), Workers(1) as workers:
            return unit.run(_opened(*where), workers, lambda cost: None), None
    except Exception as error:
        error.add_note(format_exc())  # which is not sent otherwise
        return None, error


@lru_cache(maxsize=1)
def _opened(
    reopen: Callable[[str, str | None], Model], path: str, config: str | None, expected: Stamps
) -> Model:
    """Open a model, once in each process; name, size and time of each file tell other files."""
    model = reopen(path, config)
    if stamps(model) != expected:
        raise RefimplError(
            f"{path}: sizes or times of the files differ between this worker and its client",
            "the same files under the same path, on a shared disk or copied with their times",
            "share the folder, or copy it with `rsync -t`",
        )
    return model


@contextmanager
def open_executor(name: str) -> Iterator[tuple[Executor, int]]:
    """Open the executor that --executor names; yields it and its number of workers.

    A dask scheduler repeats the work of a lost worker on another one.
    """
    address = name.removeprefix("dask=")
    if address in (name, ""):
        raise RefimplError(
            f"executor {name!r} is unknown",
            "dask=ADDRESS, with the address of a dask scheduler",
            "omit `executor` to use the threads of this process",
        )
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
        yield client.get_executor(pure=False), sum(client.nthreads().values())
