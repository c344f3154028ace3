"""One linear after pruning, and the work unit that prunes it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.config import Config
from refimpl.model.model import BlockWeights, Model, zeroed
from refimpl.model.ops import Array
from refimpl.model.weight import count_bad
from refimpl.pruners.checks import Compat
from refimpl.pruners.compensation import Factor, upper_factor
from refimpl.pruners.decision import Goal, PrunerOptions
from refimpl.running.threads import Workers
from refimpl.running.work_units import Tick
from refimpl.scoring.pruned_alone import decided
from refimpl.storage.finished_units import read_tree

PrunedLinear = Mapping[str, Any]
"""A linear after pruning: `keep` as bits; `stored`, its new weights [out, in], or None if those
that stay did not change; `method`, if they were not chosen as others."""


def pruned_weights(
    model: Model,
    block: int,
    linears: Mapping[str, PrunedLinear],
    dtype: npt.DTypeLike,
    each: Callable[..., Iterable[Any]] = map,
) -> BlockWeights:
    """A block's weights after pruning, as a new model's files would hold them."""
    weights = model.block(block, dtype, each)

    def change(linear: PrunedLinear, dense: Array) -> Array:
        stored = linear["stored"]
        pruned = np.empty_like(dense)  # in its layout, on which rounding depends
        pruned[...] = zeroed(dense, kept(linear, dense.shape)) if stored is None else stored
        return pruned

    new = each(lambda x: weights.changed(f"{x}.weight", partial(change, linears[x])), linears)
    return weights | {f"{name}.weight": x for name, x in zip(linears, new, strict=True)}


def kept(linear: PrunedLinear, shape: tuple[int, ...]) -> Array:
    """Which weights stay."""
    return np.unpackbits(linear["keep"], count=prod(shape)).reshape(shape).astype(bool)


def stored_weight(
    model: Model, block: int, linear: str, keep: Array, new: Array | None = None
) -> Array:
    """Weights [out, in] in the stored dtype: ``W'_ij = keep_ij ? round(new_ij) : +0``.

    Rounds half to even; float64 becomes bfloat16 by way of float32, as in torch. Without new
    weights, those that stay are as they are stored.
    """
    name = f"blocks.{block}.{linear}"
    stored = model.weights[f"{name}.weight"].as_stored
    values = stored if new is None else new
    if keep.shape != stored.shape or values.shape != stored.shape or keep.dtype != bool:
        raise RefimplError(
            f"{name}: keep is {keep.dtype} {list(keep.shape)}, the weights are "
            f"{list(values.shape)}",
            f"both of shape {list(stored.shape)}, and keep of bool",
            "decide on the linears of this model",
        )
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # checked right after
        values = zeroed(values.astype(stored.dtype, copy=False), keep)
    if new is not None and (bad := count_bad(values)):
        raise RefimplError(
            f"{name}: {bad} of {values.size} new weights are NaN, Inf, or beyond "
            f"{stored.dtype.name}",
            f"weights within the range of {stored.dtype.name}",
            "use a larger damping, or convert the model to bfloat16 or float32 first",
        )
    return values


@dataclass(frozen=True)
class LinearUnit:
    """The work unit that prunes one linear, the one at `index` of its block.

    `sums` is the statistic of what it reads over all sequences, or the file of it, or None;
    `factor` is as of `compensated`.
    """

    block: int
    index: int
    name: str
    goal: Goal
    compat: Compat
    pruner: PrunerOptions
    sums: Array | str | None
    sequences: int
    dtype: npt.DTypeLike
    factor: Factor = upper_factor

    def cost(self, config: Config) -> float:
        """Nothing: progress counts blocks."""
        return 0.0

    def run(self, model: Model, workers: Workers, tick: Tick) -> tuple[str, PrunedLinear]:
        """Name and decision; the weights of the block were checked when it was read."""
        dense = model.weights[f"blocks.{self.block}.{self.name}.weight"].read_again(self.dtype)
        sums = self.sums
        if isinstance(sums, str):
            sums = read_tree(Path(sums), mapped=True)
        how = self.goal, self.pruner, self.compat, self.factor
        place = self.block, self.index
        keep, new, method = decided(self.name, place, dense, sums, self.sequences, *how)
        stored = None if new is None else stored_weight(model, self.block, self.name, keep, new)
        return self.name, {"keep": np.packbits(keep), "stored": stored, "method": method}
