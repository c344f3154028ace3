"""What the experiment measures, whoever runs it: perturbed states, measurements, the interface."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refimpl.allocation.request import Perturbation, Probes
from refimpl.model.config import Config
from refimpl.model.ops import Array
from refimpl.model.stream import second_moments

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


@dataclass(frozen=True)
class StateMeasures:
    """What is measured of one perturbed state: its part of `Measurements`."""

    drift: Sequence[float]  # after its own block, and every later one
    alignment: Sequence[float]
    steps: Sequence[float]  # from each of them to the next
    ratios: Sequence[float]  # of the drift, of the error itself, and if it is passed on
    left_out: int
    sinks: int
    sink_share: float
    divergence: float | None


@dataclass(frozen=True)
class Result:
    """What a work unit measures: of each of its states, and squares by number of the sequence."""

    states: Mapping[Address, StateMeasures]
    squares: Mapping[int, Squares]

    @property
    def by_name(self) -> dict[str, Any]:
        """The same as a finished unit has it, by names."""
        states = {
            f"state {a.sequence} {a.draw} {a.variant} {a.block}": vars(x)
            for a, x in self.states.items()
        }
        return states | {f"squares {n}": x for n, x in self.squares.items()}

    @classmethod
    def of_names(cls, named: Mapping[str, Any]) -> "Result":
        """The result in finished units, which also have others."""
        states, squares = dict[Address, StateMeasures](), dict[int, Squares]()
        for name, value in named.items():
            kind, *numbers = name.split()
            if kind == "state":
                states[Address(*map(int, numbers))] = StateMeasures(**value)
            elif kind == "squares":
                squares[int(numbers[0])] = tuple(value)
        return cls(states, squares)


@dataclass(frozen=True)
class Measurements:
    """What was measured, with E etas or probes, N perturbed sequences, R draws, L blocks."""

    drift: Array  # mean R_k of the state perturbed at block l, [E, N, R, L (l), L (k)], NaN: k < l
    alignment: Array  # mean A_k, same shape
    steps: Array  # mean of R_(k+1) / R_k, same shape; NaN for k = L too
    ratios: Array  # means over tokens of R_L / R_l, g and p, [E, N, R, L, 3]; NaN if none has one
    left_out: Array  # tokens without a ratio, over all sequences, [E, L]
    sinks: Array  # tokens excluded as sinks, over all sequences, [L]
    divergence: Array | None  # mean KL of the next-token distributions, [E, N, R, L]
    squares: Squares  # of the linears' inputs, per block, over all sequences
    sink_share: Array  # of the clean state's squared norm, [N, L]

    @classmethod
    def empty(
        cls, plan: Perturbation, sequences: int, blocks: int, divergence: bool = False
    ) -> "Measurements":
        """Arrays to fill: nothing is measured so far."""
        perturbed = plan.perturbed_samples(sequences)
        variants = max(plan.variants(i, blocks) for i in range(blocks))
        shape = (variants, perturbed, plan.draws, blocks)
        return cls(
            drift=np.full((*shape, blocks), np.nan),
            alignment=np.full((*shape, blocks), np.nan),
            steps=np.full((*shape, blocks), np.nan),
            ratios=np.full((*shape, 3), np.nan),
            left_out=np.zeros((shape[0], blocks), np.int64),
            sinks=np.zeros(blocks, np.int64),
            divergence=np.full(shape, np.nan) if divergence else None,
            squares=tuple({} for _ in range(blocks)),
            sink_share=np.zeros((perturbed, blocks)),
        )

    def first(self, sequences: int) -> "Measurements":
        """Those of the first sequences alone; sums over sequences are of those begun so far."""
        names = ("drift", "alignment", "steps", "ratios", "divergence")
        cut: Any = {
            x: y[:, :sequences] for x in names if (y := getattr(self, x)) is not None
        }
        return replace(self, sink_share=self.sink_share[:sequences], **cut)


def addresses(sequences: int, blocks: int, plan: Perturbation) -> list[Address]:
    """All perturbed states of an experiment, in order: by block if it has to be pruned for each."""
    variants = [plan.variants(b, blocks) for b in range(blocks)]
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


def wanda_moments(
    squares: Sequence[Mapping[str, Array]], sequences: int, config: Config
) -> Moments:
    """Wanda's statistic of every block and linear, [in], from sums over so many sequences."""
    return tuple(
        second_moments(sums, sequences, linears)
        for sums, linears in zip(squares, config.linears, strict=True)
    )
