"""Calibration in work units: residual states in files that all workers can read."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from refimpl.model.config import Config
from refimpl.model.forward import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import Statistic, add_sums, sum_of_squares
from refimpl.model.stream import Stream
from refimpl.pruning.partial_pruning import PartialPruning, read_states
from refimpl.pruning.pruned_files import PrunedFiles
from refimpl.running.settings import Resources
from refimpl.running.threads import Workers
from refimpl.running.work_units import InOrder, ModelFiles, Tick, results
from refimpl.storage.arrays import read_array, received, sent, write_array

U = TypeVar("U", bound="SequencesUnit")
MAX_SEQUENCES = 8  # of a work unit, which reads its block once; a lost worker repeats them all
EXCHANGE = "sent-"  # begins the name of the folder for arrays that workers exchange

SequenceSums = Mapping[str, Array | str]
"""Sums of one sequence by trace point, matrices by the names of files."""


@dataclass(frozen=True)
class SequencesUnit:
    """A work unit on a few sequences before a block.

    `ids` are [S] by number of the sequence, `states` the file of the states of all sequences (None
    before block 0), `folder` that for the arrays that result.
    """

    block: int
    ids: Mapping[int, Array]
    states: str | None
    dtype: npt.DTypeLike
    folder: str

    def cost(self, config: Config) -> float:
        """Block passes."""
        return len(self.ids)

    def streams(self, model: Model) -> Iterator[tuple[int, Stream]]:
        """The number of each sequence, and a stream that holds this sequence alone."""
        for n, row in self.ids.items():
            states = None
            if self.states is not None:
                shape = (len(row), model.config.hidden_size)
                states = {n: np.array(read_states(Path(self.states), shape, self.dtype)[n])}
            yield n, Stream(model, {n: row}, self.dtype, states, self.block)


@dataclass(frozen=True)
class SumsUnit(SequencesUnit):
    """Sums of what the linears of a dense block read."""

    statistic: Statistic

    def run(self, model: Model, workers: Workers, tick: Tick) -> dict[int, SequenceSums]:
        """The sums of each sequence by its number: their total depends on the order."""
        weights, sums = model.block(self.block, self.dtype), dict[int, SequenceSums]()
        for n, stream in self.streams(model):
            _, of_points = stream.through_with_sums(stream.states[n], weights, self.statistic)
            sums[n] = {
                point: sent(total, Path(self.folder, f"sums-{self.block}-{n}-{point}"))
                for point, total in of_points.items()
            }
        return sums


@dataclass(frozen=True)
class PassUnit(SequencesUnit):
    """States that pass a pruned block, which the new model's files hold."""

    pruned: ModelFiles

    def run(self, model: Model, workers: Workers, tick: Tick) -> None:
        """Write the state of each sequence after the block to a file."""
        weights = self.pruned.open().block(self.block, self.dtype)
        for n, stream in self.streams(model):
            after = stream.through(stream.states[n], weights)
            write_array(_state_file(Path(self.folder), self.block, n), after)


class RemoteCalibration:
    """States in files, which pass the blocks in work units: the same bits as `LocalCalibration`.

    A worker reads a dense block from the model, and a pruned one from the new model's files.

    The partial pruning holds the states before each block, and those of an earlier run.
    """

    def __init__(
        self,
        model: Model,
        ids: Array,
        statistic: Statistic,
        resources: Resources,
        partial_pruning: PartialPruning,
        files: PrunedFiles,
    ) -> None:
        self.sequences, self._index = len(ids), len(partial_pruning.counts)
        self._model, self._ids, self._statistic = model, ids, statistic
        self._resources, self._partial, self._files = resources, partial_pruning, files
        for old in partial_pruning.folder.glob(f"{EXCHANGE}*"):
            shutil.rmtree(old)
        # A folder of this run alone: a worker that was taken for lost may still write into another.
        self._folder = Path(tempfile.mkdtemp(prefix=EXCHANGE, dir=partial_pruning.folder))
        self._state_files = list[Path]()

    def sums(self, weights: Weights) -> Mapping[str, Array]:
        """Sum in work units; of one sequence each where sums are matrices, which are large."""
        for path in self._state_files:  # the partial results hold these states by now
            path.unlink()
        self._state_files = []
        total, ordered = dict[str, Array](), InOrder[SequenceSums]()
        most = MAX_SEQUENCES if self._statistic is sum_of_squares else 1
        units = self._units(partial(SumsUnit, statistic=self._statistic), most)
        pool, workers = self._resources.pool, self._resources.workers
        for _, by_sequence in results(units, self._model, pool, workers, self._tick):
            for n, of_sequence in by_sequence.items():
                for sums in ordered.add(n, of_sequence):
                    add_sums(total, {point: received(x) for point, x in sums.items()})
        return total

    def advance(self, pruned: Callable[[], Weights]) -> Sequence[Array]:
        """Pass in work units; the states are mapped from the files that they wrote."""
        block = self._index
        if block + 1 == self._model.config.num_blocks:
            return ()
        make = partial(PassUnit, pruned=ModelFiles.of(self._files.open()))
        pool, workers = self._resources.pool, self._resources.workers
        for _ in results(self._units(make), self._model, pool, workers, self._tick):
            pass
        self._index += 1
        self._state_files = [_state_file(self._folder, block, n) for n in range(self.sequences)]
        return [read_array(path) for path in self._state_files]

    def _units(self, make: Callable[..., U], most: int = MAX_SEQUENCES) -> Iterator[U]:
        """A work unit for each worker, or more of them where sequences are many."""
        states, block = None, self._index
        if block:
            states = str(self._partial.states_file(block - 1).absolute())
        size = min(most, -(-self.sequences // self._resources.pool.workers))
        for start in range(0, self.sequences, size):
            numbers = range(start, min(start + size, self.sequences))
            ids = {n: self._ids[n] for n in numbers}
            yield make(block, ids, states, self._resources.dtype, str(self._folder.absolute()))

    def _tick(self, passes: float) -> None:
        """Report one pass at a time."""
        for _ in range(round(passes)):
            self._resources.tick()


def _state_file(folder: Path, block: int, sequence: int) -> Path:
    """The file of one state after a block, until one file holds all of them."""
    return folder / f"state-{block}-{sequence}"
