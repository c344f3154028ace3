"""What the experiment looks at and finds, whoever runs it: states, measurements, the interface."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from refimpl.method.perturbation import Perturbation
from refimpl.method.subset import chosen_blocks
from refimpl.model.forward import Weights
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.running.provenance import NUMPY, Runtime
from refimpl.running.threads import Progress, Workers

Pruned = Callable[[int, Weights, Workers], Weights]
"""Weights of a block after pruning, given its number, its dense weights, and threads to use."""

Squares = tuple[dict[str, Array], ...]
"""Sums of squares of what the linears of each block read, by trace point."""


@dataclass(frozen=True, order=True)
class Address:
    """Which perturbed state: sequence, draw, index of eta, perturbed block; all from 0."""

    sequence: int
    draw: int
    eta: int
    block: int


@dataclass(frozen=True)
class Measurements:
    """What the experiment found, with E etas, N sequences, R draws, L blocks.

    Args:
        drift: Mean relative drift R_k of the state perturbed at block l, [E, N, R, L (l), L (k)];
            NaN for k < l.
        alignment: Mean alignment A_k, same shape.
        ratios: Mean of R_L / R_l over tokens, [E, N, R, L]; NaN where no token is left.
        left_out: Tokens without a ratio (zero state or zero drift), over all sequences, [E, L].
        sinks: Tokens excluded as sinks, over all sequences, [L].
        divergence: Mean KL of the next-token distributions, [E, N, R, L], or None.
        squares: Sums of squares of the linears' inputs, per block, over all sequences.
        engine: What ran the experiment.
    """

    drift: Array
    alignment: Array
    ratios: Array
    left_out: Array
    sinks: Array
    divergence: Array | None
    squares: tuple[dict[str, Array], ...]
    engine: Runtime = NUMPY

    @classmethod
    def empty(
        cls, states: Sequence[Address], divergence: bool = False, engine: Runtime = NUMPY
    ) -> "Measurements":
        """Measurements of states, none of which is known so far."""
        count = [len({getattr(a, key) for a in states}) for key in ("eta", "sequence", "draw")]
        blocks = len({a.block for a in states})
        shape = (*count, blocks)
        return cls(
            np.full((*shape, blocks), np.nan),
            np.full((*shape, blocks), np.nan),
            np.full(shape, np.nan),
            np.zeros((shape[0], blocks), np.int64),
            np.zeros(blocks, np.int64),
            np.full(shape, np.nan) if divergence else None,
            tuple({} for _ in range(blocks)),
            engine,
        )


class Experiment(Protocol):
    """Something that runs the experiment, called as `scoring.experiment.experiment` is."""

    def __call__(
        self,
        model: Model,
        ids: Array,
        plan: Perturbation,
        workers: Workers,
        memory: int,
        dtype: npt.DTypeLike,
        pruned: Pruned | None,
        *,
        divergence: bool,
        progress: Progress,
    ) -> Measurements:
        """Perturb every block's output and follow the drift to the end."""
        ...


def addresses(sequences: int, blocks: int, plan: Perturbation) -> list[Address]:
    """All perturbed states of an experiment, in order."""
    etas = len(plan.eta) if plan.kind == "gaussian" else 1
    chosen = chosen_blocks(sequences, plan.draws, blocks, plan.subset, plan.seed)
    return [
        Address(s, d, e, b)
        for s in range(sequences)
        for d in range(plan.draws)
        for e in range(etas)
        for b in range(blocks)
        if chosen[s, d, b]
    ]


def groups(states: list[Address], room: int) -> Iterator[list[Address]]:
    """Cut the states into groups that fit: each state counts one, each sequence's clean one two."""
    group: list[Address] = []
    for state in states:
        sequences = {other.sequence for other in group} | {state.sequence}
        if group and len(group) + 1 + 2 * len(sequences) > room:
            yield group
            group = []
        group.append(state)
    if group:
        yield group


def balanced(
    states: list[Address], blocks: int, room: int, workers: int
) -> Iterator[list[Address]]:
    """Cut the states into groups for several workers, each of one sequence and draw.

    Where there are fewer sequences and draws than twice the workers, each is cut by blocks into
    groups of about the same number of block passes: a state perturbed early travels further.

    Args:
        states: The states, in any order.
        blocks: L.
        room: States that a worker holds, two for the clean one.
        workers: How many groups are wanted at once.

    Yields:
        The groups.
    """
    together: dict[tuple[int, int], list[Address]] = {}
    for state in states:
        together.setdefault((state.sequence, state.draw), []).append(state)
    pieces = -(-2 * workers // max(1, len(together)))
    for some in together.values():
        ordered = sorted(some, key=lambda a: (a.block, a.eta))
        share = sum(blocks - a.block for a in ordered) / pieces
        group, passes = list[Address](), 0
        for state in ordered:
            group.append(state)
            passes += blocks - state.block
            if passes >= share or len(group) + 2 >= room:
                yield group
                group, passes = [], 0
        if group:
            yield group
