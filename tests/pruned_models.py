"""Models whose weights go by decisions of the test: for tests of what is in the files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from refimpl import Model, PrunerOptions
from refimpl.allocation.scores_json import Targets
from refimpl.model.model import zeroed
from refimpl.model.ops import Array
from refimpl.model.stream import Stream
from refimpl.pruning.block import PrunedLinear, input_sums, new_weights, pruned_linears
from refimpl.pruning.pruned_files import PrunedFiles
from refimpl.running.settings import Resources


@dataclass(frozen=True)
class Decision:
    """Which weights of a linear stay, [out, in], and new values of those, if they get any."""

    keep: Array
    new: Array | None = None


Decisions = Mapping[int, Mapping[str, Decision]]


def as_decided(model: Model, block: int, linears: Mapping[str, Decision]) -> Any:
    """Linears as `PrunedFiles` writes them."""
    stored = {
        name: model.weights[f"blocks.{block}.{name}.weight"].stored for name in linears
    }
    return {
        name: PrunedLinear(
            np.packbits(x.keep),
            x.keep.shape,
            None
            if x.new is None
            else new_weights(x.new, x.keep, stored[name].numpy_dtype),
        )
        for name, x in linears.items()
    }


def write_pruned(model: Model, into: Path, decisions: Decisions) -> Any:
    """Write a model, pruned as decided, into a folder; the counts of its linears."""
    files = PrunedFiles(model, into, {})
    return [
        files.write(i, as_decided(model, i, x)) for i, x in sorted(decisions.items())
    ]


def pruned_blocks(
    model: Model,
    targets: Targets,
    pruner: PrunerOptions,
    ids: Array | None,
    resources: Resources,
) -> Iterator[Any]:
    """Prune a model block by block, as `prune` does: linears, weights, and what was read."""
    dtype, workers, needs = resources.dtype, resources.workers, pruner.record.needs
    stream = Stream(
        model, dict(enumerate([] if ids is None or needs is None else ids)), dtype
    )
    for i, shapes in enumerate(model.config.linears):
        weights = model.block(i, dtype)
        _, sums = input_sums(stream, weights, needs, workers)
        by_point = {x: np.copy(getattr(y, "outer", y)) for x, y in sums.items()}
        goals = {name: targets.goal(i, j) for j, name in enumerate(shapes)}
        dtypes = {
            x: model.weights[f"blocks.{i}.{x}.weight"].stored.numpy_dtype
            for x in shapes
        }
        how = (
            goals,
            sums,
            max(len(stream.states), 1),
            pruner,
            workers,
            targets.compat,
            dtypes,
        )
        linears = pruned_linears(i, shapes, weights, *how)
        new = {
            f"{name}.weight": zeroed(weights[f"{name}.weight"], x.keep)
            if x.new is None
            else x.new.astype(dtype)
            for name, x in linears.items()
        }
        pruned = weights | new
        stream.advance({n: stream.through(h, pruned) for n, h in stream.states.items()})
        yield SimpleNamespace(index=i, linears=linears, weights=pruned, sums=by_point)
