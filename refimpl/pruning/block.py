"""Pruning one block: sums over what its linears read, the decision on each, and new weights.

Whatever prunes a block uses these functions: the probes of `scoring`, and `prune`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np

from refimpl.arguments import Compat
from refimpl.errors import RefimplError
from refimpl.model import stream as streams
from refimpl.model.config import Linears
from refimpl.model.mixers.parts import Weights
from refimpl.model.model import BlockWeights, Later, zeroed
from refimpl.model.ops import Array
from refimpl.model.state import State
from refimpl.model.weight import count_bad
from refimpl.pruners.decision import Goal, PrunerOptions, decision
from refimpl.pruners.magnitude import MAGNITUDE
from refimpl.pruners.pruner import SharedFactor, Statistics
from refimpl.running.threads import Workers

Shapes = Mapping[str, tuple[int, int]]
"""Shapes [out, in] of the linears of a block, by name."""


@dataclass(frozen=True)
class InputSums:
    """Sums over what linears read, by trace point, over so many sequences.

    `points` names the trace points whose linears are pruned by these sums; None stands for all.
    """

    by_point: Mapping[str, Array | SharedFactor] = field(default_factory=dict)
    sequences: int = 1
    points: Collection[str] | None = None


@dataclass(frozen=True)
class PrunedLinear:
    """A linear after pruning.

    Args:
        bits: Which weights stay, packed.
        shape: [out, in].
        new: New weights, zero where none stays; None if those that stay did not change.
        method: The pruner that chose, if it was another than that of other linears.
    """

    bits: Array
    shape: tuple[int, ...]
    new: Array | None = None
    method: str | None = None

    @property
    def keep(self) -> Array:
        """Which weights stay, [out, in]."""
        return np.unpackbits(self.bits, count=prod(self.shape)).reshape(self.shape).astype(bool)

    def weight(self, weights: BlockWeights, name: str) -> Array | Later:
        """This linear's weight after pruning, from the dense weights of the block."""
        return weights.without(f"{name}.weight", self.keep) if self.new is None else self.new


def product_bytes(linears: Shapes, pruner: PrunerOptions) -> dict[str, int]:
    """Bytes of the matrices that pruning a block holds, by trace point; none if none are needed."""
    each = 8 * pruner.matrices if pruner.needs == "products" else 0
    return {streams.input_of(name): each * width**2 for name, (_, width) in linears.items()}


def matrix_bytes(linears: Linears, pruner: PrunerOptions) -> int:
    """Bytes of the matrices of the block that has most."""
    return max((sum(product_bytes(block, pruner).values()) for block in linears), default=0)


def portions(linears: Shapes, pruner: PrunerOptions, memory: float) -> list[Collection[str] | None]:
    """Trace points whose sums are in memory together.

    A block's outer products are summed a trace point at a time if all exceed half of the memory.
    """
    if 2 * sum(product_bytes(linears, pruner).values()) <= memory:
        return [None]
    return [(point,) for point in streams.inputs_of(linears)]


def input_sums(
    stream: streams.Stream,
    weights: Weights,
    needs: Statistics,
    workers: Workers,
    points: Collection[str] | None = None,
    tick: Callable[[], None] | None = None,
) -> InputSums:
    """Sum over what the dense linears of a stream's next block read: over all, or some, points."""
    _, total = sums_of_all(stream, weights, streams.SUMS[needs], workers, tick, points)
    count = len(stream.states)
    by_point = {x: y if y.ndim < 2 else SharedFactor(y, 2 / count) for x, y in total.items()}
    return InputSums(by_point, count, points)


def sums_of_all(
    stream: streams.Stream,
    weights: Weights,
    statistic: streams.Statistic,
    workers: Workers,
    tick: Callable[[], None] | None = None,
    points: Collection[str] | None = None,
) -> tuple[dict[int, State], dict[str, Array]]:
    """The states of a stream after its next block, and sums over the inputs of its linears.

    The sums are added in the order of the states. Outer products are large: they are added in
    place, and those of some trace points may be summed alone.
    """
    after, total, numbers = dict[int, State](), dict[str, Array](), list(stream.states)
    of_products, most = statistic is streams.SUMS["products"], workers.threads
    for start in range(0, len(numbers), most):
        together, read = numbers[start : start + most], list[Mapping[str, Array]]()
        how = weights, np.asarray if of_products else statistic
        passes = [partial(stream.through_with_sums, stream.states[n], *how) for n in together]
        for n, (h, sums) in zip(together, workers.run(passes, tick), strict=True):
            after[n] = h
            if of_products:
                read.append(sums)
            else:
                streams.add_sums(total, sums)
        for point in dict.fromkeys(p for x in read for p in x if points is None or p in points):
            inputs = [x[point] for x in read if point in x]
            width = inputs[0].shape[-1]
            if point not in total:
                total[point] = np.zeros((width, width))
            for rows in streams.product_rows(width):
                for products in workers.run(
                    [partial(streams.outer_products, x, rows) for x in inputs]
                ):
                    total[point][rows, rows.start :] += products
    return after, {p: streams.mirrored(x) if of_products else x for p, x in total.items()}


def pruned_linears(
    block: int,
    linears: Shapes,
    weights: Weights,
    goals: Sequence[Goal | None],
    sums: InputSums,
    pruner: PrunerOptions,
    workers: Workers,
    compat: Compat = "exact",
    new_dtype: Callable[[str], np.dtype[Any]] | None = None,
) -> dict[str, PrunedLinear]:
    """Prune the linears of a block that read at the points of some sums, a thread for each.

    A goal is what a linear loses, None for one that is left alone: a count, or with compat `peer`
    the fraction that the code takes. New weights have the linear's `new_dtype`, or the dense one.

    Raises:
        RefimplError: What the pruner refuses, with the name of the linear; new weights beyond
            their dtype.

    Source: docs/explanation/method.md, "Pruners".
    """

    def pruned(j: int, name: str, goal: Goal) -> PrunedLinear:
        weight, total = weights[f"{name}.weight"], sums.by_point.get(streams.input_of(name))
        dtype = weight.dtype if new_dtype is None else new_dtype(name)
        array = total.outer if isinstance(total, SharedFactor) else total
        # Of an expert that saw no token, the lowest magnitudes are removed.
        idle = pruner.needs is not None and streams.saw_no_token(name, array)
        how = PrunerOptions(MAGNITUDE) if idle else pruner
        place = block, j
        try:
            keep, new = decision(weight, total, sums.sequences, goal, how, compat, place, dtype)
            stored = None if new is None else new_weights(new, keep, dtype)
        except RefimplError as error:
            problem = f"blocks.{block}.{name}: {error.problem}"
            raise RefimplError(problem, error.expected, error.remedy) from error
        return PrunedLinear(
            np.packbits(keep), keep.shape, stored, how.record.name if idle else None
        )

    tasks = {
        name: partial(pruned, j, name, goal)
        for j, (name, goal) in enumerate(zip(linears, goals, strict=False))
        if goal is not None and (sums.points is None or streams.input_of(name) in sums.points)
    }
    # The largest first: threads end together, and hold fewer results beside their scores.
    names = sorted(tasks, key=lambda name: -prod(linears[name]))
    return dict(zip(names, workers.run([tasks[name] for name in names]), strict=True))


def new_weights(new: Array, keep: Array, dtype: np.dtype[Any]) -> Array:
    """Round new weights [out, in] to a dtype, ``keep_ij ? round(new_ij) : +0``; all are finite.

    Rounds half to even; float64 becomes bfloat16 by way of float32, as in torch.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # checked right after
        values = zeroed(new.astype(dtype, copy=False), keep)
    if bad := count_bad(values):
        raise RefimplError(
            f"{bad} of {values.size} new weights are NaN, Inf, or beyond {dtype.name}",
            f"weights within the range of {dtype.name}",
            "use a larger damping, or convert the model to bfloat16 or float32 first",
        )
    return values
