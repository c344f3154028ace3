"""Pruning one block: sums over what its linears read, the decision on each, and new weights.

Whatever prunes a block uses these functions: the probes of `scoring`, and `prune`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from refimpl.arguments import Compat
from refimpl.errors import RefimplError
from refimpl.model import stream as streams
from refimpl.model.mixers.parts import Weights
from refimpl.model.model import Later, Model, zeroed
from refimpl.model.ops import Array
from refimpl.model.state import State
from refimpl.model.weight import count_bad
from refimpl.pruners.decision import Goal, PrunerOptions, decision
from refimpl.pruners.magnitude import MAGNITUDE
from refimpl.pruners.pruner import SharedFactor, Statistics
from refimpl.running.settings import Settings, parse_memory, require_memory
from refimpl.running.threads import Workers

Shapes = Mapping[str, tuple[int, int]]
"""Shapes [out, in] of the linears of a block, by name."""
InputSums = Mapping[str, Array | SharedFactor]
"""Sums over what linears read, by trace point."""


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
        return (
            np.unpackbits(self.bits, count=prod(self.shape))
            .view(bool)
            .reshape(self.shape)
        )

    def weight(self, weights: Weights, name: str) -> Array | Later:
        """This linear's weight after pruning, made of the dense one of the block at each use."""
        if self.new is not None:
            return self.new
        return lambda: zeroed(weights[f"{name}.weight"], self.keep)


def matrix_bytes(linears: Shapes, pruner: PrunerOptions) -> list[int]:
    """Bytes of the matrices that pruning a block holds, of each trace point that linears read."""
    each = 8 * pruner.matrices if pruner.needs == "products" else 0
    widths = {streams.input_of(name): width for name, (_, width) in linears.items()}
    return [each * width**2 for width in widths.values()]


def calibration_memory(
    model: Model, pruner: PrunerOptions, tokens: int, settings: Settings
) -> int:
    """The memory for states and outer products of so many tokens; too little is refused."""
    matrices = [matrix_bytes(linears, pruner) for linears in model.config.linears]
    memory = parse_memory(settings.memory, max(map(sum, matrices)))
    need = streams.state_bytes(model.config, 2 * tokens, settings.dtype) + max(
        map(max, matrices)
    )
    thing, size = (
        "the calibration's residual states",
        f"{tokens} tokens, before and after a block",
    )
    if pruner.needs == "products":
        thing, size = (
            f"{thing} and outer products",
            f"{size}, and the products of one input",
        )
    require_memory(memory, need, thing, size, "fewer `samples`")
    return memory


def portions(
    linears: Shapes, pruner: PrunerOptions, memory: float
) -> list[tuple[str, ...]]:
    """Trace points whose sums are in memory together.

    A block's outer products are summed a trace point at a time if all exceed half of the memory.
    """
    points = streams.inputs_of(linears)
    fits = 2 * sum(matrix_bytes(linears, pruner)) <= memory
    return [points] if fits else [(point,) for point in points]


def input_sums(
    stream: streams.Stream | None,
    weights: Weights,
    needs: Statistics | None,
    workers: Workers,
    points: Collection[str] | None = None,
    tick: Callable[[], None] | None = None,
) -> tuple[dict[int, State], InputSums]:
    """The states of a stream after its next block, and sums over what the dense linears read.

    The sums are added in the order of the states. Outer products are large: they are added in
    place, and those of some trace points may be summed alone.
    """
    if stream is None or needs is None:
        return {}, {}
    after, total, numbers = dict[int, State](), dict[str, Array](), list(stream.states)
    of_products, most = needs == "products", workers.threads
    how = weights, np.asarray if of_products else streams.SUMS[needs]
    for start in range(0, len(numbers), most):
        together, read = numbers[start : start + most], list[Mapping[str, Array]]()
        passes = [
            partial(stream.through_with_sums, stream.states[n], *how) for n in together
        ]
        for n, (h, sums) in zip(together, workers.run(passes, tick), strict=True):
            after[n] = h
            if of_products:
                read.append(sums)
            else:
                streams.add_sums(total, sums)
        for point in dict.fromkeys(
            p for x in read for p in x if points is None or p in points
        ):
            inputs = [x[point] for x in read if point in x]
            width = inputs[0].shape[-1]
            if point not in total:
                total[point] = np.zeros((width, width))
            for rows in streams.product_rows(width):
                for products in workers.run(
                    [partial(streams.outer_products, x, rows) for x in inputs]
                ):
                    total[point][rows, rows.start :] += products
    if not of_products:
        return after, total
    scale = 2 / len(numbers)
    return after, {
        p: SharedFactor(streams.mirrored(x), scale) for p, x in total.items()
    }


def pruned_linears(
    block: int,
    linears: Shapes,
    weights: Weights,
    goals: Mapping[str, Goal],
    sums: InputSums,
    sequences: int,
    pruner: PrunerOptions,
    workers: Workers,
    compat: Compat = "exact",
    new_dtypes: Mapping[str, np.dtype[Any]] = {},
) -> dict[str, PrunedLinear]:
    """Prune the linears of a block that have a goal by sums over sequences, a thread for each.

    A goal is what a linear loses: a count, or with compat `peer` the fraction that the code takes.
    New weights have the dtype that `new_dtypes` names for a linear, or the dense one.

    Raises:
        RefimplError: What the pruner refuses, with the name of the linear; new weights beyond
            their dtype.

    Source: docs/explanation/method.md, "Pruners".
    """

    def pruned(name: str) -> PrunedLinear:
        weight, total = weights[f"{name}.weight"], sums.get(streams.input_of(name))
        place = block, [*linears].index(name)
        # Of an expert that saw no token, the lowest magnitudes are removed.
        squares = total.squares if isinstance(total, SharedFactor) else total
        idle = pruner.needs is not None and streams.saw_no_token(name, squares)
        how = PrunerOptions(MAGNITUDE) if idle else pruner
        try:
            keep, new = decision(
                weight, total, sequences, goals[name], how, compat, place
            )
            dtype = new_dtypes.get(name, weight.dtype)
            stored = None if new is None else new_weights(new, keep, dtype)
        except RefimplError as error:
            problem = f"blocks.{block}.{name}: {error.problem}"
            raise RefimplError(problem, error.expected, error.remedy) from error
        return PrunedLinear(
            np.packbits(keep), keep.shape, stored, MAGNITUDE.name if idle else None
        )

    # The largest first: threads end together, and hold fewer results beside their scores.
    names = sorted(goals, key=lambda name: -prod(linears[name]))
    return dict(zip(names, workers.map(pruned, names), strict=True))


def new_weights(new: Array, keep: Array, dtype: np.dtype[Any]) -> Array:
    """Round new weights [out, in] to a dtype, ``keep_ij ? round(new_ij) : +0``; all are finite.

    Rounds half to even; float64 becomes bfloat16 by way of float32, as in torch.
    """
    with np.errstate(
        over="ignore", under="ignore", invalid="ignore"
    ):  # checked right after
        values = zeroed(new.astype(dtype, copy=False), keep)
    if bad := count_bad(values):
        raise RefimplError(
            f"{bad} of {values.size} new weights are NaN, Inf, or beyond {dtype.name}",
            f"weights within the range of {dtype.name}",
            "use a larger damping, or convert the model to bfloat16 or float32 first",
        )
    return values
