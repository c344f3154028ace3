"""Work units: pieces of a long computation that do not depend on one another.

A unit carries paths, indices, options and token ids, never weights. It runs on the threads of this
process, or on an executor's workers, which open the model by its path. Its result does not depend
on where it runs, nor on how many units run at once; sums over units are made in numerical order.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from traceback import walk_tb
from typing import Any, Generic, Protocol, TypeVar

import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.loading.checkpoint import read_model
from refimpl.model.config import Config
from refimpl.model.floating_point import loud
from refimpl.model.model import Model
from refimpl.running.executors import LostWorkerError, Pool
from refimpl.running.provenance import stamps
from refimpl.running.threads import Workers

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Tick = Callable[[float], None]
"""Called with the cost of the work that is done."""

AHEAD = 2  # units submitted per worker, so that no worker waits for the next one


class WorkUnit(Protocol[T_co]):
    """A piece of work that can be pickled."""

    @property
    def dtype(self) -> npt.DTypeLike:
        """Dtype of the computation."""
        ...

    def cost(self, config: Config) -> float:
        """Its cost, in the unit of the progress."""
        ...

    def run(self, model: Model, workers: Workers, tick: Tick) -> T_co:
        """Its result; `tick` gets the cost of each piece that is done."""
        ...


@dataclass(frozen=True)
class ModelFiles:
    """A model by the absolute paths of its files and `config.json`, if that is not in metadata.

    By name, size and time of each file, workers recognise other files.
    """

    path: str
    config: str | None
    stamps: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, model: Model) -> "ModelFiles":
        """The files of an open model."""
        config = None if model.config_path is None else os.path.abspath(model.config_path)
        return cls(os.path.abspath(model.path), config, stamps(model))

    def open(self) -> Model:
        """Open the model, once in each process."""
        return _opened(self)


@lru_cache(maxsize=2)  # one model is read while it is pruned into another
def _opened(files: ModelFiles) -> Model:
    model = read_model(files.path, files.config)
    if stamps(model) != files.stamps:
        raise RefimplError(
            f"{files.path}: sizes or times of the files differ between this worker and its client",
            "the same files under the same path, on a shared disk or copied with their times",
            "share the folder, or copy it with `rsync -t`",
        )
    return model


def results(
    units: Iterable[WorkUnit[T]], model: Model, pool: Pool, workers: Workers, tick: Tick
) -> Iterator[tuple[Any, T]]:
    """Run units in a pool, or on `workers` here, and yield each with its result as they end.

    In a pool they end in any order. Few units are generated before they are needed.
    """
    if pool.executor is None:
        for unit in units:
            yield unit, unit.run(model, workers, tick)
        return
    files = ModelFiles.of(model)
    waiting: Iterator[WorkUnit[T]] = iter(units)
    submitted: dict[Future[T], WorkUnit[T]] = {}
    try:
        while True:
            for unit in islice(waiting, AHEAD * pool.workers - len(submitted)):
                submitted[pool.executor.submit(_run, files, unit)] = unit
            if not submitted:
                return
            done = wait(submitted, return_when=FIRST_COMPLETED).done
            for future in sorted(done, key=_failed):  # good results are not lost with others
                unit = submitted.pop(future)
                if _misread(future):
                    waiting = chain([unit], waiting)
                    continue
                yield unit, future.result()
                tick(unit.cost(model.config))
    except (BrokenExecutor, CancelledError) as error:
        raise LostWorkerError(error) from error
    finally:
        for future in submitted:
            future.cancel()


def _failed(future: Future[Any]) -> bool:
    return future.cancelled() or future.exception() is not None


def _misread(future: Future[Any]) -> bool:
    """Whether dask took a result for an error: its worker died when the result had just arrived.

    In that case, `distributed._cascade_future` unpacks the result as if it were an exception.
    """
    error = None if future.cancelled() else future.exception()
    if not isinstance(error, TypeError | ValueError) or "unpack" not in str(error):
        return False
    functions = [frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)]
    return functions[-1:] == ["_cascade_future"]  # none, if it comes from another process


def _run(files: ModelFiles, unit: WorkUnit[T]) -> T:
    """Run a unit in a worker's process, with BLAS on one thread."""
    with loud(unit.dtype), Workers(1) as workers:
        return unit.run(files.open(), workers, lambda cost: None)


class InOrder(Generic[T]):
    """Hands numbered results on in the order of their numbers, in whatever order they come."""

    def __init__(self) -> None:
        self._next, self._waiting = 0, dict[int, T]()

    def add(self, number: int, result: T) -> Iterator[T]:
        """Take a result, and yield those that are next; each number from 0 comes once."""
        self._waiting[number] = result
        while self._next in self._waiting:
            yield self._waiting.pop(self._next)
            self._next += 1
