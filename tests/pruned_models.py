"""Models whose weights go by decisions of the test: for tests of what is in the files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from msgspec.structs import asdict

from refimpl import Model, PrunerOptions
from refimpl.allocation.targets import Targets
from refimpl.model.ops import Array
from refimpl.pruning import pruned_blocks as job
from refimpl.pruning.pruned_files import PrunedFiles
from refimpl.running.settings import Resources


@dataclass(frozen=True)
class Decision:
    """Which weights of a linear stay, [out, in], and new values of those, if they get any."""

    keep: Array
    new: Array | None = None


Decisions = Mapping[int, Mapping[str, Decision]]


def pruned_linears(model: Model, block: int, linears: Mapping[str, Decision]) -> dict[str, Any]:
    stored = {
        name: x.new if x.new is None else job.stored_weight(model, block, name, x.keep, x.new)
        for name, x in linears.items()
    }
    return {
        name: {"keep": np.packbits(x.keep), "stored": stored[name], "method": None}
        for name, x in linears.items()
    }


def write_pruned(model: Model, into: Path, decisions: Decisions) -> Any:
    """Write a model, pruned as decided, into a folder; the counts, and what became of its files."""
    into.mkdir(exist_ok=True)
    files = PrunedFiles(model, into)
    blocks = sorted(decisions.items())
    counts = [files.write(i, pruned_linears(model, i, x)) for i, x in blocks]
    return SimpleNamespace(counts=counts, **asdict(files.record()))


def pruned_blocks(
    model: Model, targets: Targets, pruner: PrunerOptions, ids: Array | None, resources: Resources
) -> Iterator[Any]:
    """Prune a model block by block, as `prune` does: linears, weights, and what was read."""
    blocks = job.BlockPruner(model, targets, pruner, job.calibration(model, pruner, ids), resources)
    for i, names in enumerate(model.config.linears):
        found, sums = dict(blocks.linears(i)), blocks.sums(i)
        weights = job.pruned_weights(model, i, found, resources.dtype)
        linears = {x: SimpleNamespace(keep=job.kept(found[x], shape)) for x, shape in names.items()}
        blocks.advance(partial(dict, weights))
        yield SimpleNamespace(index=i, linears=linears, weights=weights, sums=sums)
