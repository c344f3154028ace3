"""A model pruned block by block, each block calibrated on inputs that passed the pruned ones."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.allocation.targets import Targets
from refimpl.errors import RefimplError
from refimpl.model.forward import Weights
from refimpl.model.model import BlockWeights, Model, zeroed
from refimpl.model.ops import Array
from refimpl.model.statistics import SUMS, input_of
from refimpl.model.stream import Stream
from refimpl.model.token_ids import checked_ids
from refimpl.model.weight import count_bad
from refimpl.pruners.checks import Compat
from refimpl.pruners.compensation import SharedFactor
from refimpl.pruners.decision import Goal, PrunerOptions
from refimpl.pruners.pruner import pruners
from refimpl.running.settings import Resources
from refimpl.running.threads import Workers
from refimpl.scoring.measurements import sums_of_all
from refimpl.scoring.pruned_alone import decided
from refimpl.tokens import Tokens

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

    `sums` is the statistic of what it reads over all sequences, or None.
    """

    block: int
    index: int
    name: str
    goal: Goal
    compat: Compat
    pruner: PrunerOptions
    sums: Array | SharedFactor | None
    sequences: int
    dtype: npt.DTypeLike

    def run(self, model: Model) -> tuple[str, PrunedLinear]:
        """Name and decision; the weights of the block were checked when it was read."""
        weight = model.weights[f"blocks.{self.block}.{self.name}.weight"]
        dense = weight.read_again(self.dtype)
        how = self.goal, self.pruner, self.compat, weight.stored.numpy_dtype
        place = self.block, self.index
        keep, new, method = decided(self.name, place, dense, self.sums, self.sequences, *how)
        stored = None if new is None else stored_weight(model, self.block, self.name, keep, new)
        return self.name, {"keep": np.packbits(keep), "stored": stored, "method": method}


@dataclass
class BlockPruner:
    """Decides on the linears of one block after another; the one place where a block is pruned.

    Inputs are ids [N, S] or None. An earlier run's states [1, S, D] before block `index` may be
    given.
    """

    model: Model
    targets: Targets
    pruner: PrunerOptions
    inputs: Array | None
    resources: Resources
    states: InitVar[Sequence[Array] | None] = None
    index: InitVar[int] = 0

    def __post_init__(self, states: Sequence[Array] | None, index: int) -> None:
        ids, self.stream = self.inputs, None
        if ids is not None:
            numbered = None if states is None else dict(enumerate(map(np.array, states)))
            rows, dtype = dict(enumerate(ids)), self.resources.dtype
            self.stream = Stream(self.model, rows, dtype, numbered, index)

    def sums(
        self, index: int, points: Collection[str] | None = None, workers: Workers | None = None
    ) -> Mapping[str, Array]:
        """Sums over the inputs of a dense block's linears, by trace point: of all or of some."""
        workers, dtype = workers or self.resources.workers, self.resources.dtype
        if self.stream is None:
            return {}
        weights, tick = self.model.block(index, dtype, workers.map), self.resources.tick
        statistic = SUMS[str(self.pruner.record.needs)]
        return sums_of_all(self.stream, weights, statistic, workers, tick, points)[1]

    def advance(self, pruned: Callable[[], Weights]) -> Sequence[Array]:
        """Pass the pruned block; returns the states [1, S, D] after it, none after the last one."""
        stream, states = self.stream, list[Array]()
        if stream is not None:
            if stream.index + 1 < stream.config.num_blocks:
                weights = pruned()
                passes = [partial(stream.through, h, weights) for h in stream.states.values()]
                states = self.resources.workers.run(passes, self.resources.tick)
            stream.advance(dict(enumerate(states)))
        return states

    def linears(
        self, index: int, points: Collection[str] | None = None, at_once: int | None = None
    ) -> Iterator[tuple[str, PrunedLinear]]:
        """Prune all linears of a dense block, or those that read at some trace `points`.

        Each is pruned on its own, on the threads. They come in any order.
        """
        model, shapes = self.model, self.model.config.linears[index]
        sequences = len(self.stream.states) if self.stream else 1
        with Workers(at_once or self.resources.workers.threads) as few:
            sums = self.sums(index, points, few)
            inputs = {
                point: x if x.ndim < 2 else SharedFactor(x, 2 / sequences)
                for point, x in sums.items()
            }
            del sums
            units = [
                LinearUnit(
                    index,
                    j,
                    name,
                    self.targets.goal(index, j),
                    self.targets.compat,
                    self.pruner,
                    inputs.get(input_of(name)),
                    sequences,
                    self.resources.dtype,
                )
                for j, name in enumerate(shapes)
                if points is None or input_of(name) in points
            ]
            # The largest first: threads end together, and hold fewer results beside their scores.
            units.sort(key=lambda unit: -prod(shapes[unit.name]))
            yield from few.map(lambda unit: unit.run(model), units)


def calibration(model: Model, pruner: PrunerOptions, tokens: Tokens | Array | None) -> Array | None:
    """Checked ids [N, S] for a pruner that needs inputs; else None."""
    record = pruner.record
    if record.needs is None:
        return None
    if tokens is None:
        raise RefimplError(
            f"{record.name} without calibration tokens",
            "token ids: the pruner looks at the inputs of linears",
            f"pass tokens, or use {next(x.name for x in pruners().values() if x.needs is None)}",
        )
    return checked_ids(tokens.ids if isinstance(tokens, Tokens) else tokens, model.config)
