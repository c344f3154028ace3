"""What the experiment measures, whoever runs it: perturbed states, measurements, the interface."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np

from refimpl.allocation.plan import Perturbation, Probes
from refimpl.model.config import Config
from refimpl.model.forward import Weights
from refimpl.model.model import BlockWeights
from refimpl.model.ops import Array
from refimpl.model.statistics import (
    SUMS,
    Statistic,
    add_sums,
    input_of,
    mirrored,
    outer_products,
    product_rows,
    second_moments,
)
from refimpl.model.stream import Stream
from refimpl.pruners.compensation import working_bytes
from refimpl.running.threads import Workers

PruneBlock = Callable[[int, int, BlockWeights, Workers], Weights]
"""Weights of a block after pruning: from its number, the variant, its dense weights, threads."""

Shapes = Mapping[str, tuple[int, int]]  # of linears, [out, in]
Squares = tuple[dict[str, Array], ...]
"""Sums of squares of what the linears of each block read, by trace point."""


@dataclass(frozen=True, order=True)
class Address:
    """Which perturbed state: sequence, draw, index of its eta or probe, perturbed block; from 0."""

    sequence: int
    draw: int
    variant: int
    block: int

    @property
    def index(self) -> tuple[int, int, int, int]:
        """Its place in the arrays of `Measurements`."""
        return self.variant, self.sequence, self.draw, self.block

    @property
    def key(self) -> str:
        """The key of its measures in a finished unit."""
        return f"state {self.sequence} {self.draw} {self.variant} {self.block}"


def passes(a: Address, blocks: int, plan: Perturbation) -> int:
    """Block passes of a state: its own block's if that is pruned, and those of all blocks after."""
    return blocks - a.block - (not isinstance(plan, Probes))


@dataclass(frozen=True)
class Measurements:
    """What was measured, with E etas or probes, N perturbed sequences, R draws, L blocks.

    Args:
        drift: Mean R_k of the state perturbed at block l, [E, N, R, L (l), L (k)]; NaN for k < l.
        alignment: Mean alignment A_k, same shape.
        ratios: Mean of R_L / R_l over tokens, [E, N, R, L]; NaN if no token has one.
        left_out: Tokens without a ratio, over all sequences, [E, L].
        sinks: Tokens excluded as sinks, over all sequences, [L].
        divergence: Mean KL of the next-token distributions, [E, N, R, L], or None.
        squares: Sums of squares of the linears' inputs, per block, over all sequences.
        sink_share: Share of the clean state's squared norm in sinks, [N, L].
    """

    drift: Array
    alignment: Array
    ratios: Array
    left_out: Array
    sinks: Array
    divergence: Array | None
    squares: Squares
    sink_share: Array

    @classmethod
    def empty(
        cls,
        plan: Perturbation,
        sequences: int,
        blocks: int,
        divergence: bool = False,
        linears: int = 1,
    ) -> "Measurements":
        """Arrays to fill: nothing is measured so far."""
        perturbed = plan.perturbed_samples(sequences)
        shape = (plan.variants(linears), perturbed, plan.draws, blocks)
        return cls(
            drift=np.full((*shape, blocks), np.nan),
            alignment=np.full((*shape, blocks), np.nan),
            ratios=np.full(shape, np.nan),
            left_out=np.zeros((shape[0], blocks), np.int64),
            sinks=np.zeros(blocks, np.int64),
            divergence=np.full(shape, np.nan) if divergence else None,
            squares=tuple({} for _ in range(blocks)),
            sink_share=np.zeros((perturbed, blocks)),
        )

    def first(self, sequences: int) -> "Measurements":
        """Those of the first sequences alone; sums over sequences are of those begun so far."""
        names = ("drift", "alignment", "ratios", "divergence")
        cut: Any = {x: y[:, :sequences] for x in names if (y := getattr(self, x)) is not None}
        return replace(self, sink_share=self.sink_share[:sequences], **cut)


def addresses(
    sequences: int, blocks: int, plan: Perturbation, linears: Sequence[int] | None = None
) -> list[Address]:
    """All perturbed states of an experiment, in order: by block if it has to be pruned for each.

    `linears` are the numbers of linears of the blocks, which matter if each linear is a unit.
    """
    variants = [plan.variants(linears[b] if linears else 1, b, blocks) for b in range(blocks)]
    states = [
        Address(s, d, e, b)
        for s in range(plan.perturbed_samples(sequences))
        for d in range(plan.draws)
        for e in range(max(variants, default=0))
        for b in range(blocks)
        if e < variants[b]
    ]
    return sorted(states, key=lambda a: a.block) if isinstance(plan, Probes) else states


Moments = tuple[Mapping[str, Array], ...]
"""Wanda's statistic per block and linear, [in]."""


def sums_of_all(
    stream: Stream,
    weights: Weights,
    statistic: Statistic,
    workers: Workers,
    tick: Callable[[], None] | None = None,
    points: Collection[str] | None = None,
) -> tuple[dict[int, Array], dict[str, Array]]:
    """The states of a stream after its next block, and sums over the inputs of its linears.

    The sums are added in the order of the states. Outer products are large: they are added in
    place, and those of some trace points may be summed alone.
    """
    after, total, numbers = dict[int, Array](), dict[str, Array](), list(stream.states)
    of_products, most = statistic is SUMS["products"], workers.threads
    for start in range(0, len(numbers), most):
        together, read = numbers[start : start + most], list[Mapping[str, Array]]()
        how = weights, np.asarray if of_products else statistic
        passes = [partial(stream.through_with_sums, stream.states[n], *how) for n in together]
        for n, (h, sums) in zip(together, workers.run(passes, tick), strict=True):
            after[n] = h
            if of_products:
                read.append(sums)
            else:
                add_sums(total, sums)
        for point in dict.fromkeys(p for x in read for p in x if points is None or p in points):
            inputs = [x[point] for x in read if point in x]
            width = inputs[0].shape[-1]
            if point not in total:
                total[point] = np.zeros((width, width))
            for rows in product_rows(width):
                for products in workers.run([partial(outer_products, x, rows) for x in inputs]):
                    total[point][rows, rows.start :] += products
    return after, {p: mirrored(x) if of_products else x for p, x in total.items()}


@dataclass(frozen=True)
class ProductBytes:
    """Bytes of a block's outer products by trace point, of work on a linear, of all new weights."""

    sums: Mapping[str, int]
    work: int
    new: int

    @classmethod
    def of(cls, linears: Shapes, item: int, new_item: int, copies: float = 1) -> Self:
        """Those of linears, with weights, and `copies` of new ones, of so many bytes each."""
        sums = {input_of(name): 8 * width**2 for name, (_, width) in linears.items()}
        work = max((working_bytes(*x, item, new_item) for x in linears.values()), default=0)
        weights = sum(rows * columns for rows, columns in linears.values())
        return cls(sums, work, int(copies * weights * (new_item + 1 / 8)))

    @property
    def least(self) -> int:
        """What one linear at a time takes, with the sums of its inputs alone."""
        return self.new + self.work + max(self.sums.values(), default=0)

    def most(self, threads: int) -> int:
        """What all take, with so many at a time."""
        return self.new + self.work * threads + sum(self.sums.values())

    def portions(self, memory: int, threads: int, block: int) -> list[tuple[list[str], int, int]]:
        """Trace points whose sums fit into the memory together, linears at a time, and bytes.

        The bytes are all that is in memory, the `block` too, while sequences pass it.
        """
        points, left, space = list[list[str]](), 0, memory - self.new
        for point, size in self.sums.items():
            if size > left:
                points.append([])
                left = space - self.work
            points[-1].append(point)
            left -= size
        sums = [sum(self.sums[x] for x in together) for together in points]
        counts = [max(1, min(threads, (space - x) // max(1, self.work))) for x in sums]
        used = [self.new + x + max(n * self.work, block) for x, n in zip(sums, counts, strict=True)]
        return list(zip(points, counts, used, strict=True))


def wanda_moments(
    squares: Sequence[Mapping[str, Array]], sequences: int, config: Config
) -> Moments:
    """Wanda's statistic of every block and linear, [in], from sums over so many sequences."""
    return tuple(
        second_moments(sums, sequences, linears)
        for sums, linears in zip(squares, config.linears, strict=True)
    )
