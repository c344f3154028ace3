"""Units of work: pieces of a long computation that do not depend on one another.

A unit carries paths, indices, options and token ids, never weights. It runs on the threads of this
process, or wherever an executor takes it, where the model is opened by its path. What units give
does not depend on where they ran, nor on how many of them ran at once; sums over them are made in
the order of their numbers.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.loading.checkpoint import read_model
from refimpl.model.config import Config
from refimpl.model.floating_point import loud
from refimpl.model.model import Model
from refimpl.running.executors import LostWorkerError, Pool
from refimpl.running.identity import stamps
from refimpl.running.threads import Workers

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Tick = Callable[[float], None]
"""Called with the cost of what was done."""

AHEAD = 2  # units handed over per worker, so that none waits for the next


class Unit(Protocol[T_co]):
    """A piece of work that can be pickled."""

    @property
    def dtype(self) -> npt.DTypeLike:
        """Of the computation."""
        ...

    def cost(self, config: Config) -> float:
        """How much work it is, in the unit of the progress."""
        ...

    def run(self, model: Model, workers: Workers, tick: Tick) -> T_co:
        """Do it on some threads, and report the cost of each piece that is done."""
        ...


@dataclass(frozen=True)
class ModelFiles:
    """A model by the paths of its files.

    Args:
        path: What was given to `read_model`, absolute.
        config: Its `config.json`, if it was read from a file.
        stamps: Name, size and time of each file, so that nobody computes with others.
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
        """Open the model, once in each process: two are, while a model is pruned into another.

        Raises:
            RefimplError: It cannot be read here, or the files are others.
        """
        return _opened(self)


@lru_cache(maxsize=2)
def _opened(files: ModelFiles) -> Model:
    model = read_model(files.path, files.config)
    if stamps(model) != files.stamps:
        raise RefimplError(
            f"{files.path}: sizes or times of the files differ between this worker and its client",
            "the same files under the same path, on a shared disk or copied with their times",
            "share the folder, or copy it with its times (rsync -t)",
        )
    return model


def results(
    units: Iterable[Unit[T]], model: Model, engine: Pool, workers: Workers, tick: Tick
) -> Iterator[tuple[Any, T]]:
    """Run units where the engine says.

    Args:
        units: The units; few of them are looked at before they are needed.
        model: The model they read.
        engine: Where they run.
        workers: Threads, for units that run here.
        tick: Called with the cost of what was done.

    Yields:
        Each unit and what it gave, as they end, which elsewhere may be in any order.

    Raises:
        RefimplError: What a unit raises; `LostWorkerError` where a worker was lost for good.
    """
    if engine.executor is None:
        for unit in units:
            yield unit, unit.run(model, workers, tick)
        return
    files, waiting = ModelFiles.of(model), iter(units)
    flying: dict[Future[T], Unit[T]] = {}
    try:
        while True:
            for unit in islice(waiting, AHEAD * engine.workers - len(flying)):
                flying[engine.executor.submit(_run, files, unit)] = unit
            if not flying:
                return
            done = wait(flying, return_when=FIRST_COMPLETED).done
            for future in sorted(done, key=_failed):  # what ended well is not lost with the others
                unit, result = flying.pop(future), future.result()
                yield unit, result
                tick(unit.cost(model.config))
    except (BrokenExecutor, CancelledError) as error:
        raise LostWorkerError(error) from error
    finally:
        for future in flying:
            future.cancel()


def _failed(future: Future[Any]) -> bool:
    return future.cancelled() or future.exception() is not None


def _run(files: ModelFiles, unit: Unit[T]) -> T:
    """Run a unit in the process that it was sent to, BLAS on one thread."""
    with loud(unit.dtype), Workers(1) as workers:
        return unit.run(files.open(), workers, lambda cost: None)


class InOrder(Generic[T]):
    """Numbered results, handed on in the order of their numbers, in whatever order they come.

    Example:
        >>> ordered = InOrder[str]()
        >>> list(ordered.add(1, "b")), list(ordered.add(0, "a"))
        ([], ['a', 'b'])
    """

    def __init__(self) -> None:
        self._next, self._waiting = 0, dict[int, T]()

    def add(self, number: int, result: T) -> Iterator[T]:
        """Take a result.

        Args:
            number: Its number; all from 0 come once.
            result: The result.

        Yields:
            Results whose turn it is.
        """
        self._waiting[number] = result
        while self._next in self._waiting:
            yield self._waiting.pop(self._next)
            self._next += 1
