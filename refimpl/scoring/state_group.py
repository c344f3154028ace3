"""The experiment's work unit: a group of perturbed states on its way through the model.

The states travel through each block together with the clean states that they belong to, so a block
is loaded once for all of them, and nothing before the perturbed block is computed twice.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from refimpl.method.absorption import nan_mean
from refimpl.method.divergence import RunningDivergence
from refimpl.method.perturbation import Perturbation
from refimpl.model.config import Config
from refimpl.model.forward import Weights, head
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import sum_of_squares
from refimpl.model.stream import Stream
from refimpl.running.memory import MIB
from refimpl.running.threads import Workers
from refimpl.running.work_units import Tick
from refimpl.scoring.measurements import Address, PruneBlock, Squares
from refimpl.scoring.perturbed_state import Clean, PerturbedState, StateMeasures, with_noise
from refimpl.scoring.pruned_alone import PrunedBlocks

HEAD_BYTES = 8 * MIB  # logits of one state held at a time


@dataclass
class GroupResult:
    """What is measured of perturbed states, and the squares of clean ones, by their sequence."""

    measures: dict[Address, StateMeasures] = field(default_factory=dict)
    squares: dict[int, Squares] = field(default_factory=dict)

    @property
    def lines(self) -> dict[str, Any]:
        """Keys and values of the file of partial results."""
        states = {f"state {' '.join(map(str, astuple(a)))}": m for a, m in self.measures.items()}
        squares = {f"squares {sequence}": sums for sequence, sums in self.squares.items()}
        return {key: astuple(measures) for key, measures in states.items()} | squares

    @classmethod
    def from_lines(cls, lines: Mapping[str, Any]) -> Self:
        """What that file holds, which may hold lines of other work units too."""
        result = cls()
        for key, value in lines.items():
            kind, *numbers = key.split()
            if kind == "state":
                result.measures[Address(*map(int, numbers))] = StateMeasures(*value)
            elif kind == "squares":
                result.squares[int(numbers[0])] = tuple(value)
        return result


@dataclass(frozen=True)
class StateGroup:
    """Perturbed states and the clean ones they belong to, from the embedding to the end.

    Args:
        states: Which perturbed states.
        ids: Token ids of their sequences, [S], by number of the sequence.
        counted: Sequences whose squares are asked for.
        plan: The perturbation.
        dtype: Of the computation.
        prune_block: For the pruning perturbation: the pruned weights of a block.
        divergence: Whether to compare the output distributions too.
    """

    states: tuple[Address, ...]
    ids: Mapping[int, Array]
    counted: tuple[int, ...]
    plan: Perturbation
    dtype: npt.DTypeLike = np.float32
    prune_block: PruneBlock | None = None
    divergence: bool = False

    def cost(self, config: Config) -> float:
        """Block passes, and heads in the same unit."""
        per_head = head_cost(config) if self.divergence else 0.0
        clean = len(self.ids) * (config.num_blocks + per_head)
        return clean + sum(config.num_blocks - a.block + per_head for a in self.states)

    def run(self, model: Model, workers: Workers, tick: Tick) -> GroupResult:
        """Take the states from the embedding to the end, and measure them on the way."""
        clean = Stream(model, self.ids, self.dtype)
        states: dict[Address, PerturbedState] = {}
        squares: dict[int, Squares] = dict.fromkeys(self.counted, ())
        for i in range(model.config.num_blocks):
            weights = model.block(i, self.dtype, workers.map)
            starting, pruned = [a for a in self.states if a.block == i], dict[int, Weights]()
            if starting and (prune := self.prune_block) is not None:
                if isinstance(prune, PrunedBlocks) and prune.needs_sums:
                    prune = prune.summed(clean, weights, workers)
                for variant in sorted({a.eta for a in starting}):
                    pruned[variant] = prune(i, variant, weights, workers)
            # Tasks start in order: the clean ones come first and wait for nobody.
            ahead = {
                sequence: workers.submit(
                    partial(clean.through_with_sums, h, weights, sum_of_squares)
                )
                for sequence, h in clean.states.items()
            }
            through = partial(clean.through, weights=weights)
            tasks = [partial(x.move, through, ahead[a.sequence]) for a, x in states.items()]
            for a in starting:
                after = pruned.get(a.eta)
                perturb = partial(self._perturbed, a, clean, ahead[a.sequence], after)
                states[a] = PerturbedState(self.plan.norm)
                tasks.append(partial(states[a].start, perturb, ahead[a.sequence], self.plan))
            workers.run(tasks, partial(tick, 1))
            clean.advance({sequence: passed.result()[0] for sequence, passed in ahead.items()})
            for sequence in self.counted:
                squares[sequence] += (ahead[sequence].result()[1],)
            tick(len(ahead))
        divergences: Mapping[Address, float] = {}
        if self.divergence:
            divergences = self._divergences(model, states, clean.states, workers, tick)
        measures = {a: state.measures(divergences.get(a)) for a, state in states.items()}
        return GroupResult(measures, squares)

    def _perturbed(self, a: Address, clean: Stream, ahead: Clean, pruned: Weights | None) -> Array:
        """A state after the block that perturbs it: with noise, or through the pruned block."""
        if pruned is None:
            return with_noise(ahead.result()[0], a, self.plan)
        return clean.through(clean.states[a.sequence], pruned)

    def _divergences(
        self,
        model: Model,
        states: Mapping[Address, PerturbedState],
        clean: Mapping[int, Array],
        workers: Workers,
        tick: Tick,
    ) -> dict[Address, float]:
        """Mean KL over the kept tokens for every state, the head loaded piece by piece."""
        config, dtype = model.config, self.dtype
        tokens = next(iter(clean.values())).shape[1]
        step = max(1, HEAD_BYTES // (tokens * np.dtype(dtype).itemsize))
        running = {a: RunningDivergence.start(tokens) for a in states}

        def add(a: Address, weights: Weights, logits: Array) -> RunningDivergence:
            return running[a].add(logits, head(states[a].h, weights, config)[0])

        for start in range(0, config.vocab_size, step):
            weights = model.head(dtype, slice(start, start + step))
            for sequence, h in clean.items():
                (logits,) = workers.run([partial(head, h, weights, config)])
                of_sequence = [a for a in states if a.sequence == sequence]
                sums = workers.run([partial(add, a, weights, logits[0]) for a in of_sequence])
                running |= zip(of_sequence, sums, strict=True)
            pieces = -(-config.vocab_size // step)
            tick(head_cost(config) * (len(states) + len(clean)) / pieces)
        return {a: float(nan_mean(running[a].value[x.kept])) for a, x in states.items()}


def head_cost(config: Config) -> float:
    """Cost of the head in block passes, for the progress bar."""
    return config.vocab_size * config.hidden_size / float(config.block_sizes.mean())
