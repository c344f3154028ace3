"""Calibration elsewhere: residual states in files, read and written by the units that need them."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy.typing as npt

from refimpl.loading.checkpoint import read_model
from refimpl.model.config import Config
from refimpl.model.forward import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import (
    Statistic,
    add_sums,
    sum_of_squares,
)
from refimpl.model.stream import Stream
from refimpl.pruning.calibration import Calibration, HeldStates
from refimpl.pruning.checkpoint import KeptBlocks, read_state
from refimpl.running.executors import Pool
from refimpl.running.threads import Workers
from refimpl.running.work_units import InOrder, ModelFiles, results
from refimpl.storage.arrays import read_array, received, sent, write_array

TOGETHER = 8  # sequences of a unit at most, which share its block: what a lost worker repeats
SENT = "sent-"  # begins the name of the folder for what is on its way

Sums = Mapping[str, Array | str]
"""Sums of one sequence by trace point, matrices by the names of files."""


@dataclass(frozen=True)
class Before:
    """Some sequences before a block.

    Args:
        block: The block.
        ids: Token ids of each, [S], by number of the sequence.
        states: The file that holds the states of all sequences; None before block 0.
        dtype: Of the computation.
    """

    block: int
    ids: Mapping[int, Array]
    states: str | None
    dtype: npt.DTypeLike

    def stream(self, model: Model) -> Iterator[tuple[int, Stream]]:
        """The number of each sequence, and a stream that holds it alone."""
        for n, row in self.ids.items():
            states = None if self.states is None else {n: read_state(Path(self.states), n)}
            yield n, Stream(model, {n: row}, self.dtype, states, self.block)


@dataclass(frozen=True)
class Passing:
    """Some sequences that pass a block.

    Args:
        before: The sequences.
        into: The folder for what comes of it.
    """

    before: Before
    into: str

    @property
    def dtype(self) -> npt.DTypeLike:
        """Of the computation; sums are float64."""
        return self.before.dtype

    def cost(self, config: Config) -> float:
        """Block passes."""
        return len(self.before.ids)


@dataclass(frozen=True)
class Summing(Passing):
    """Sums of what the linears of a dense block read.

    Args:
        before: The sequences.
        into: The folder for sums that are matrices.
        statistic: What is summed.
    """

    statistic: Statistic

    def run(self, model: Model, workers: Workers, tick: Callable[[float], None]) -> dict[int, Sums]:
        """The sums of each sequence by its number: their sum depends on the order."""
        weights, found = model.block(self.before.block, self.dtype), dict[int, Sums]()
        for n, stream in self.before.stream(model):
            _, sums = stream.through_with_sums(stream.states[n], weights, self.statistic)
            found[n] = {
                point: sent(total, Path(self.into, f"sums-{self.before.block}-{n}-{point}.npy"))
                for point, total in sums.items()
            }
        return found


@dataclass(frozen=True)
class Advancing(Passing):
    """States on their way through a pruned block.

    Args:
        before: The sequences.
        into: The folder for states.
        pruned: The new model's files, which hold the block.
    """

    pruned: ModelFiles

    def run(self, model: Model, workers: Workers, tick: Callable[[float], None]) -> None:
        """Write the state of each sequence after the block to a file."""
        weights = self.pruned.open().block(self.before.block, self.dtype)
        for n, stream in self.before.stream(model):
            after = stream.through(stream.states[n], weights)
            write_array(_loose(Path(self.into), self.before.block, n), after)


class SentStates:
    """States in files that all workers see, which pass in units: the same bits as `HeldStates`.

    A worker reads a dense block from the model, and a pruned one from the new model's files.

    Args:
        model: The model.
        ids: Calibration ids, [N, S].
        statistic: What is summed of the inputs of linears.
        workers: Threads, which have nothing to do.
        dtype: Of the computation; sums are float64.
        tick: Called after each block pass of a sequence.
        engine: Where the units run.
        kept: What holds the states before a block, and those of an earlier run.
        new: The new model's folder.
    """

    def __init__(
        self,
        model: Model,
        ids: Array,
        statistic: Statistic,
        workers: Workers,
        dtype: npt.DTypeLike,
        tick: Callable[[], None],
        engine: Pool,
        kept: KeptBlocks,
        new: Path,
    ) -> None:
        self._model, self._ids, self._statistic, self._dtype = model, ids, statistic, dtype
        self._engine, self._workers, self._tick = engine, workers, tick
        self._kept, self._new = kept, new
        for old in kept.folder.glob(f"{SENT}*"):
            shutil.rmtree(old)
        # A folder of this run alone: what was taken to be lost may still write into an older one.
        self._folder = Path(tempfile.mkdtemp(prefix=SENT, dir=kept.folder)).absolute()
        self._pruned, self._loose = 0, list[Path]()
        self.sequences = len(ids)

    def sums(self, index: int, weights: Weights) -> Mapping[str, Array]:
        """Sum in units; matrices are large, so that each unit has one sequence then."""
        for path in self._loose:  # whose states are all in one file now
            path.unlink()
        total, ordered, self._loose = dict[str, Array](), InOrder[Sums](), []
        most = None if self._statistic is sum_of_squares else 1
        folder = str(self._folder)
        units = [Summing(some, folder, self._statistic) for some in self._before(index, most)]
        for _, found in results(units, self._model, self._engine, self._workers, self._done):
            for n, one in found.items():
                for sums in ordered.add(n, one):
                    add_sums(total, {point: received(x) for point, x in sums.items()})
        return total

    def advance(self, index: int, weights: Weights) -> None:
        """Remember the block: its weights are in the file when its states are asked for."""
        self._pruned = index

    def behind(self) -> Sequence[Array]:
        """Pass in units; the states are those of the files that they wrote."""
        if self._pruned + 1 == self._model.config.num_blocks:
            return ()
        files = ModelFiles.of(self._opened())
        units = [Advancing(some, str(self._folder), files) for some in self._before(self._pruned)]
        for _ in results(units, self._model, self._engine, self._workers, self._done):
            pass
        self._loose = [_loose(self._folder, self._pruned, n) for n in range(self.sequences)]
        return [read_array(path) for path in self._loose]

    def _before(self, index: int, most: int | None = None) -> Iterator[Before]:
        """The sequences before a block, one group per worker, unless they are many."""
        file = str(self._kept.states_file(index - 1).absolute()) if index else None
        each = min(most or TOGETHER, -(-self.sequences // self._engine.workers))
        for start in range(0, self.sequences, each):
            some = range(start, min(start + each, self.sequences))
            yield Before(index, {n: self._ids[n] for n in some}, file, self._dtype)

    def _opened(self) -> Model:
        """The new model, as far as it is pruned."""
        model, config = self._model, self._new / "config.json"
        path = self._new if model.path.is_dir() else self._new / model.path.name
        return read_model(path, None if model.config_path is None else config)

    def _done(self, passes: float) -> None:
        for _ in range(round(passes)):
            self._tick()


def _loose(folder: Path, block: int, sequence: int) -> Path:
    """The file of one state behind a block, until all of them are kept in one."""
    return folder / f"state-{block}-{sequence}.npy"


def calibration_states(
    model: Model,
    ids: Array,
    statistic: Statistic,
    workers: Workers,
    dtype: npt.DTypeLike,
    tick: Callable[[], None],
    engine: Pool,
    kept: KeptBlocks,
    new: Path,
) -> Calibration:
    """The sequences before the first block that is not pruned yet.

    Args:
        model: The model, as all others as for `SentStates`.
        ids: Calibration ids.
        statistic: What is summed.
        workers: Threads.
        dtype: Of the computation.
        tick: Called after each block pass of a sequence.
        engine: Where they pass.
        kept: What an earlier run found, by whatever engine.
        new: The new model's folder.

    Returns:
        States in memory for the threads of this process, else in files.
    """
    if engine.executor is None:
        return HeldStates(model, ids, statistic, workers, dtype, tick, kept.states())
    return SentStates(model, ids, statistic, workers, dtype, tick, engine, kept, new)
