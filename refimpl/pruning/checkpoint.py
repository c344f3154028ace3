"""What a run that prunes a model keeps for the case of a kill, block by block."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from refimpl.model.ops import Array
from refimpl.storage.files import to_disk
from refimpl.storage.folder import RESULTS
from refimpl.storage.partial_results import PartialResults

COPIED = "copied"


@dataclass(frozen=True)
class Counts:
    """Weights of one linear: ``zeros = pruned + kept_zeros``.

    Args:
        weights: All of them.
        pruned: Those that were decided not to stay.
        zeros: Zeros in the new file, read back from it; -0.0 is one.
        kept_zeros: Weights that stay and are zero: they were, or the stored dtype made them so.
    """

    weights: int
    pruned: int
    zeros: int
    kept_zeros: int


class KeptBlocks:
    """How far a model is pruned: its files in `new` hold the blocks that are done.

    Beside `new`, in `kept`, are the counts of these blocks and the calibration's residual states
    after the last one: one set of states, two for a moment. Everything is on the disk before a
    block counts as done, so a kill loses the block it was at, and nothing else.

    Args:
        new: The new folder, from `new_folder`; `kept` is beside it.
        run: What the run is: everything that the new model depends on.

    Raises:
        RefimplError: What is kept is of another run, or damaged.
    """

    def __init__(self, new: Path, run: Mapping[str, Any]) -> None:
        self.folder, self._new = new.parent / RESULTS, new
        self._part = PartialResults[str, Any](self.folder / "blocks", run, resume=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._part.__exit__(kind, error, trace)

    @property
    def added(self) -> tuple[str, ...] | None:
        """Files that got a format when they were copied; None if not all are copied."""
        added = self._part.results.get(COPIED)
        return None if added is None else tuple(added)

    @property
    def counts(self) -> dict[int, Mapping[str, Counts]]:
        """Counts of the blocks that are done."""
        return {
            int(key): {name: Counts(**found) for name, found in block.items()}
            for key, block in self._part.results.items()
            if key != COPIED
        }

    def states(self) -> list[Array] | None:
        """The calibration's residual states after the last block that is done; None for none."""
        path = self.states_file(len(self.counts) - 1)
        if not path.exists():
            return None
        with path.open("rb") as file:
            return [np.load(file, allow_pickle=False) for _ in range(int(np.load(file)))]

    def copied(self, added: Sequence[str]) -> None:
        """Remember that all files are copied."""
        self._to_disk()
        self._part.add({COPIED: list(added)})

    def add(self, block: int, counts: Mapping[str, Counts], states: Sequence[Array]) -> None:
        """Remember that a block is done.

        Args:
            block: The block; all before it are done.
            counts: Of its linears.
            states: What the next block reads; empty where nobody looks.
        """
        if states:
            with self.states_file(block).open("wb") as file:
                np.save(file, len(states))
                for h in states:
                    np.save(file, h)
            to_disk(self.states_file(block))
        self._to_disk()
        self._part.add({str(block): {name: asdict(found) for name, found in counts.items()}})
        self.states_file(block - 1).unlink(missing_ok=True)

    def states_file(self, block: int) -> Path:
        """The file that holds the states after a block, while they are needed."""
        return self.folder / f"states-{block}"

    def _to_disk(self) -> None:
        """Bring the new model's files, and both folders' names, to the disk."""
        for path in (*self._new.iterdir(), self._new, self.folder):
            to_disk(path)


def read_state(path: Path, sequence: int) -> Array:
    """Read one of the states that are kept in a file.

    Args:
        path: The file.
        sequence: Which one, from 0.

    Returns:
        A residual stream, [1, S, D].
    """
    with path.open("rb") as file:
        count, start = int(np.load(file)), file.tell()
        each = (os.fstat(file.fileno()).st_size - start) // count  # all of one shape
        file.seek(start + sequence * each)
        found: Array = np.load(file, allow_pickle=False)
    return found
