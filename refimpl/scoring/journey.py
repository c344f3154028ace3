"""The way of some perturbed states through the model: the experiment's unit of work.

They travel through each block together with the clean states that they belong to, so a block is
loaded once for all of them, and nothing before the perturbed block is computed twice.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.method.absorption import known_mean
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
from refimpl.scoring.measurements import Address, Pruned, Squares
from refimpl.scoring.perturbed_state import State, Trace, with_noise

HEAD_BYTES = 8 * MIB  # logits of one state held at a time


@dataclass
class Seen:
    """What a journey gave.

    Args:
        traces: Of its states.
        squares: Of its clean states, by number of the sequence, as far as they were asked for.
    """

    traces: dict[Address, Trace] = field(default_factory=dict)
    squares: dict[int, Squares] = field(default_factory=dict)


@dataclass(frozen=True)
class Journey:
    """Some perturbed states and the clean ones they belong to, from the embedding to the end.

    Args:
        states: Which ones.
        ids: Token ids of their sequences, [S], by number of the sequence.
        counted: Sequences whose squares are wanted.
        plan: The perturbation.
        dtype: Of the computation.
        pruned: For the pruning perturbation: the pruned weights of a block.
        divergence: Whether to compare the output distributions too.
    """

    states: tuple[Address, ...]
    ids: Mapping[int, Array]
    counted: tuple[int, ...]
    plan: Perturbation
    dtype: npt.DTypeLike = np.float32
    pruned: Pruned | None = None
    divergence: bool = False

    def cost(self, config: Config) -> float:
        """Block passes, and heads in the same unit."""
        per_head = head_cost(config) if self.divergence else 0.0
        clean = len(self.ids) * (config.num_blocks + per_head)
        return clean + sum(config.num_blocks - a.block + per_head for a in self.states)

    def run(self, model: Model, workers: Workers, tick: Callable[[float], None]) -> Seen:
        """Travel."""
        ended, clean, seen = self._travel(model, workers, tick)
        values: dict[Address, float] = {}
        if self.divergence:
            values = dict(self._divergences(model, ended, clean, workers, tick))
        for a, state in ended.items():
            seen.traces[a] = state.trace(self.plan.norm, values.get(a))
        return seen

    def _travel(
        self, model: Model, workers: Workers, tick: Callable[[float], None]
    ) -> tuple[dict[Address, State], dict[int, Array], Seen]:
        """Take all states through all blocks."""
        clean, norm = Stream(model, self.ids, self.dtype), self.plan.norm
        states: dict[Address, State] = {}
        seen = Seen(squares=dict.fromkeys(self.counted, ()))
        for i in range(model.config.num_blocks):
            weights = model.block(i, self.dtype, workers.map)
            born = [a for a in self.states if a.block == i]
            thinned = self.pruned(i, weights, workers) if born and self.pruned else None
            # Tasks start in order: the clean ones come first and wait for nobody.
            ahead = {
                s: workers.submit(partial(clean.through_with_sums, h, weights, sum_of_squares))
                for s, h in clean.states.items()
            }
            tasks = [
                partial(
                    state.move, partial(clean.through, weights=weights), ahead[a.sequence], norm
                )
                for a, state in states.items()
            ]
            for a in born:
                if thinned is None:
                    make: Any = partial(with_noise, ahead[a.sequence], a, self.plan)
                else:
                    make = partial(clean.through, clean.states[a.sequence], thinned)
                states[a] = State()
                tasks.append(partial(states[a].start, make, ahead[a.sequence], self.plan))
            workers.run(tasks, partial(tick, 1))
            clean.advance({s: future.result()[0] for s, future in ahead.items()})
            for s in self.counted:
                seen.squares[s] += (ahead[s].result()[1],)
            tick(len(ahead))
        return states, clean.states, seen

    def _divergences(
        self,
        model: Model,
        states: Mapping[Address, State],
        clean: Mapping[int, Array],
        workers: Workers,
        tick: Callable[[float], None],
    ) -> Iterator[tuple[Address, float]]:
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
                mine = [a for a in states if a.sequence == sequence]
                sums = workers.run([partial(add, a, weights, logits[0]) for a in mine])
                running |= zip(mine, sums, strict=True)
            pieces = -(-config.vocab_size // step)
            tick(head_cost(config) * (len(states) + len(clean)) / pieces)
        for a, state in states.items():
            yield a, float(known_mean(running[a].value[state.kept]))


def head_cost(config: Config) -> float:
    """Cost of the head in block passes, for the progress bar."""
    return config.vocab_size * config.hidden_size / config.block_size
