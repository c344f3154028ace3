"""How far a model is pruned, on disk block by block, so that a later run can continue."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.model.ops import Array
from refimpl.pruning.pruned_files import Counts
from refimpl.storage.file_system import file_digest, is_own, open_file, remove, to_disk
from refimpl.storage.folder import RESULTS, damaged
from refimpl.storage.partial_results import PartialResults

COPIED = "copied"  # the key of the files that got a format when they were copied


class PartialPruning:
    """The blocks that are pruned so far, which the files of the new folder hold.

    The folder beside it holds the counts of these blocks, and the calibration's states after the
    last one. Everything is on the disk before a block counts as pruned, so that a kill loses
    nothing but the block in progress.
    """

    def __init__(self, new: Path, results: PartialResults[str, Any]) -> None:
        self.folder, self._new, self._results = results.path.parent, new, results
        if self.counts:
            last = len(self.counts) - 1
            wanted, path = results.results[str(last)]["states"], self.states_file(last)
            if wanted and not (is_own(path) and wanted == file_digest(path)):
                raise damaged(path)

    @property
    def format_added(self) -> tuple[str, ...] | None:
        """Files that got a format when they were copied; None until all files are copied."""
        names = self._results.results.get(COPIED)
        return None if names is None else tuple(names)

    @property
    def counts(self) -> dict[int, Mapping[str, Counts]]:
        """Counts of each linear of the blocks that are pruned."""
        return {
            int(key): {name: Counts(**counts) for name, counts in block["linears"].items()}
            for key, block in self._results.results.items()
            if key != COPIED
        }

    @property
    def digests(self) -> dict[str, str]:
        """Digest of each stored tensor of the blocks that are pruned."""
        blocks = (block for key, block in self._results.results.items() if key != COPIED)
        return {name: digest for block in blocks for name, digest in block["tensors"].items()}

    def states(self, shape: tuple[int, int], dtype: npt.DTypeLike) -> list[Array] | None:
        """The calibration's states [1, S, D] after the last pruned block, if any, for (S, D)."""
        path = self.states_file(len(self.counts) - 1)
        if not path.exists():
            return None
        with open_file(path) as file:
            return [*np.frombuffer(file.read(), dtype).reshape(-1, 1, *shape)]

    def states_file(self, block: int) -> Path:
        """The file that holds the states after a block, until the next block is pruned."""
        return self.folder / f"states-{block}"

    def add_copies(self, format_added: Sequence[str]) -> None:
        """Remember that all files are copied, and which of them got a format."""
        self._to_disk()
        self._results.add({COPIED: list(format_added)})

    def add(
        self,
        block: int,
        counts: Mapping[str, Counts],
        digests: Mapping[str, str],
        states: Sequence[Array],
    ) -> None:
        """Remember that a block is pruned, and the states [1, S, D] that the next block reads."""
        path, of_states = self.states_file(block), sha256()
        if states:
            remove(path)  # half of it, which a killed run was writing
            with path.open("xb") as file:
                for h in states:
                    content = np.ascontiguousarray(h).data
                    file.write(content)
                    of_states.update(content)
            to_disk(path)
        self._to_disk()
        results = {
            "linears": {name: asdict(x) for name, x in counts.items()},
            "tensors": dict(digests),
            "states": of_states.hexdigest() if states else None,
        }
        self._results.add({str(block): results})
        self.states_file(block - 1).unlink(missing_ok=True)

    def _to_disk(self) -> None:
        """Bring the new model's files, and the names in both folders, to the disk."""
        for path in (*self._new.iterdir(), self._new, self.folder):
            to_disk(path)


def results_file(new: Path) -> Path:
    """The file of partial results of the model that is made in a new folder."""
    return new.parent / RESULTS / "blocks"
