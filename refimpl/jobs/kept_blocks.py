"""What a run that prunes a model keeps for the case of a kill, block by block."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from refimpl.jobs.folder import KEPT, to_disk
from refimpl.jobs.part import Part
from refimpl.model.ops import Array

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
        self.folder, self._new = new.parent / KEPT, new
        self._part = Part[str, Any](self.folder / "blocks", run, resume=True)

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
        added = self._part.found.get(COPIED)
        return None if added is None else tuple(added)

    @property
    def counts(self) -> dict[int, Mapping[str, Counts]]:
        """Counts of the blocks that are done."""
        return {
            int(key): {name: Counts(**found) for name, found in block.items()}
            for key, block in self._part.found.items()
            if key != COPIED
        }

    def states(self) -> list[Array] | None:
        """The calibration's residual states after the last block that is done; None for none."""
        path = self._states(len(self.counts) - 1)
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
            with self._states(block).open("wb") as file:
                np.save(file, len(states))
                for h in states:
                    np.save(file, h)
            to_disk(self._states(block))
        self._to_disk()
        self._part.add({str(block): {name: asdict(found) for name, found in counts.items()}})
        self._states(block - 1).unlink(missing_ok=True)

    def _states(self, block: int) -> Path:
        return self.folder / f"states-{block}"

    def _to_disk(self) -> None:
        """Bring the new model's files, and both folders' names, to the disk."""
        for path in (*self._new.iterdir(), self._new, self.folder):
            to_disk(path)
