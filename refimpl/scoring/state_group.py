"""The experiment's work unit: a group of stacks of perturbed states on its way through the model.

The states travel through each block together with the clean states that they belong to, so a block
is loaded once for all of them, and nothing before the perturbed block is computed twice.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from refimpl.allocation.request import Noise, Perturbation, Probes
from refimpl.method.absorption import nan_mean, passed_on, surviving_drift
from refimpl.method.perturbation import (
    Extended,
    RunningDivergence,
    deviation,
    extended,
    included_tokens,
    noise,
    perturbed,
    ratio,
)
from refimpl.model.config import Config
from refimpl.model.forward import final_state, logits
from refimpl.model.mixers.parts import Weights
from refimpl.model.model import BlockWeights, Model
from refimpl.model.ops import Array
from refimpl.model.state import State
from refimpl.model.stream import Stream, input_of, sum_of_squares
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruning.block import InputSums, input_sums, pruned_linears
from refimpl.running.file_system import MIB
from refimpl.running.settings import Tick
from refimpl.running.threads import Workers
from refimpl.scoring.measurements import (
    Address,
    Moments,
    Result,
    Squares,
    StateMeasures,
)

K = TypeVar("K")
Clean = Future[tuple[State, dict[str, Array]]]
"""A clean state after a block, of one sequence, and its linears' squares, when computed."""


def sink_share(h: Array) -> float:
    """Share of the squared norm of a state [S, D] that its sinks hold, and of the noise on it."""
    norms = np.linalg.norm(h.astype(np.float64), axis=-1)
    is_sink = ~included_tokens(h, "exclude")
    return float(np.square(norms[is_sink]).sum() / (np.square(norms).sum() or 1.0))


class PerturbedState:
    """A perturbed state on its way, measured after the perturbed block and every later one."""

    def __init__(self) -> None:
        self.drift, self.alignment, self.steps = (
            list[float](),
            list[float](),
            list[float](),
        )
        self.sink_share, self.last, self.length = 0.0, np.zeros(0), np.zeros(0)

    def start(self, changed: State, clean: State, plan: Perturbation) -> State:
        """The perturbed state after its block, except for sinks; it is measured."""
        h = clean.stream[0]
        self.included, self.sink_share = included_tokens(h, plan.sink), sink_share(h)
        state = changed.where(self.included, clean)
        self.unperturbed = state.equals(clean)
        self.measure(state, clean)
        self.first, self.first_length = self.last, self.length
        return state

    def measure(self, state: State, clean: State) -> None:
        """Note how far the state is from the clean one, both of one sequence."""
        if self.unperturbed:
            for x, right in zip(state.arrays, clean.arrays, strict=True):
                x[...] = right  # which passed alone, with another rounding
        distance = deviation(state.stream[0], clean.stream[0], self.included)
        if self.drift:
            self.steps.append(
                float(nan_mean(surviving_drift(distance.drift, self.last)))
            )
        self.drift.append(float(nan_mean(distance.drift)))
        self.alignment.append(float(nan_mean(distance.alignment)))
        self.last, _, self.length = distance

    def measures(self, divergence: float | None = None) -> StateMeasures:
        """What is measured of it, after the last block."""
        share, sinks = (
            surviving_drift(self.last, self.first),
            int(np.count_nonzero(~self.included)),
        )
        passed = np.where(
            np.isnan(share), np.nan, passed_on(self.first_length, self.length)
        )
        ratios = [float(nan_mean(x)) for x in (share, ratio(share, passed), passed)]
        left_out = int(np.count_nonzero(np.isnan(share) & self.included))
        facts = ratios, left_out, sinks, self.sink_share, divergence
        return StateMeasures(self.drift, self.alignment, self.steps, *facts)


class Stack:
    """Neighbouring states of a sequence, which share the products of each block that they pass.

    They are in the order of their blocks; each joins after its own, and `h` holds the k that have,
    as k sequences.
    """

    h: State

    def __init__(self, states: tuple[Address, ...], plan: Perturbation) -> None:
        self.addresses, self.plan, self.sequence = states, plan, states[0].sequence
        self.states = list[PerturbedState]()

    def move(
        self,
        index: int,
        through: Callable[[State], State],
        perturb: Callable[[Address], State],
        clean: Clean,
    ) -> int:
        """Take the states through block `index`, and add that which it perturbs.

        The clean state after the block is waited for when it is needed. Returns how many states
        have passed the block, or the pruned one.
        """
        passed = len(self.states)
        if self.states:
            self.h = through(self.h)
            for k, state in enumerate(self.states):
                state.measure(self.h.sequence(k), clean.result()[0])
        for a in self.addresses[len(self.states) :]:
            if a.block != index:
                break
            self.states.append(PerturbedState())
            begun = self.states[-1].start(perturb(a), clean.result()[0], self.plan)
            self.h = self.h.and_those_of(begun) if len(self.states) > 1 else begun
        return len(self.states) if isinstance(self.plan, Probes) else passed


def with_noise(clean: State, a: Address, plan: Noise) -> State:
    """The clean state after the addressed block with the noise of that address."""
    h = clean.stream[0]
    e = noise(plan.seed, a.sequence, a.block, a.draw, h.shape)
    included, eta = included_tokens(h, plan.sink), plan.etas[a.variant]
    return clean.with_stream(perturbed(h, e, eta, included, plan.noise_norm)[None])


@dataclass(frozen=True)
class PrunedBlocks:
    """How a block is pruned alone, with exact counts [V, L, linears] for V variants of each.

    A pruner that needs squares may have Wanda's statistic here; other sums are made anew.
    """

    counts: Array
    pruner: PrunerOptions
    moments: Moments = ()

    def pruned(
        self,
        i: int,
        variants: Iterable[int],
        clean: Stream,
        weights: BlockWeights,
        workers: Workers,
    ) -> dict[int, Weights]:
        """Block i's weights after each pruning, from its dense ones and what they read."""
        pruned, sequences, linears = dict[int, Weights](), 1, clean.config.linears[i]
        if self.moments:
            sums: InputSums = {input_of(name): x for name, x in self.moments[i].items()}
        else:
            sums = input_sums(clean, weights, self.pruner.record.needs, workers)[1]
            sequences = len(clean.states)
        for variant in variants:
            counted = zip(linears, self.counts[variant, i].tolist(), strict=False)
            goals = {name: count for name, count in counted if count}
            how = goals, sums, sequences, self.pruner, workers
            new = pruned_linears(i, linears, weights, *how).items()
            pruned[variant] = weights | {
                f"{x}.weight": y.weight(weights, x) for x, y in new
            }
        return pruned


def probe_counts(linear_pruned: Array, sizes: Array, delta: float | None) -> Array:
    """Count the weights to prune of every linear, in each variant of its block.

    N_j (s_j + d), rounded half to even, for d = -delta and delta, but at most half the way from
    s_j to 0 or to 1: where nothing or everything is pruned, an error does not grow. Counts of the
    base and sizes are [L, linears]; the result is [V, L, linears], in the order of
    `Probes.variants`.

    Example:
        >>> probe_counts(np.array([[50, 5]]), np.array([[100, 50]]), 0.1).tolist()
        [[[50, 5]], [[40, 2]], [[60, 10]]]
    """
    if delta is None:
        return linear_pruned[None]
    s = linear_pruned / np.maximum(sizes, 1)
    below, above = np.maximum(s - delta, s / 2), np.minimum(s + delta, (s + 1) / 2)
    outer = np.rint(np.stack([below, above]) * sizes).astype(np.int64)
    return np.concatenate([linear_pruned[None], outer])


HEAD_BYTES = (
    MIB  # logits of one state held at a time: more do not stay in a core's cache
)


@dataclass(frozen=True)
class StateGroup:
    """Perturbed states and the clean ones they belong to, from the embedding to the end.

    A stack's states share their products. The ids [S] of a sequence, and those whose squares are
    counted, are by its number.
    """

    stacks: tuple[tuple[Address, ...], ...]
    ids: Mapping[int, Array]
    counted: tuple[int, ...]
    plan: Perturbation = Noise()
    dtype: npt.DTypeLike = np.float32
    pruning: PrunedBlocks | None = None
    divergence: bool = False

    def cost(self, config: Config) -> float:
        """Block passes, and heads in the same unit."""
        per_head = head_cost(config) if self.divergence else 0.0
        clean = len(self.ids) * (config.num_blocks + per_head)
        after = config.num_blocks - (
            not isinstance(self.plan, Probes)
        )  # its own block, if pruned
        states = [a for stack in self.stacks for a in stack]
        return clean + sum(after - a.block + per_head for a in states)

    def run(self, model: Model, workers: Workers, tick: Tick) -> Result:
        """Measure the states from the embedding to the end, and squares of the clean ones."""
        clean, stacks, squares = self.follow(
            model, model.config.num_blocks, workers, tick
        )
        items = [
            pair for x in stacks for pair in zip(x.addresses, x.states, strict=True)
        ]
        of_output, config = dict[Address, float](), model.config
        if self.divergence:
            last = partial(
                final_state, weights=model.head(self.dtype, slice(0)), config=config
            )

            def end(stack: Stack) -> Array:
                stack.h = stack.h.with_stream(last(stack.h.stream))
                return stack.h.stream

            ends = zip(
                stacks, workers.run([partial(end, x) for x in stacks]), strict=True
            )
            left = {
                a: (a.sequence, h[k])
                for x, h in ends
                for k, a in enumerate(x.addresses)
            }
            finals = workers.run(
                [partial(last, x.stream) for x in clean.states.values()]
            )
            right = dict(zip(clean.states, finals, strict=True))
            kl = divergences(model, right, left, self.dtype, workers, tick)
            of_output = {
                a: float(nan_mean(kl[a][state.included])) for a, state in items
            }
        return Result(
            {a: state.measures(of_output.get(a)) for a, state in items}, squares
        )

    def follow(
        self,
        model: Model,
        blocks: int,
        workers: Workers,
        tick: Tick = lambda cost: None,
    ) -> tuple[Stream, list[Stack], dict[int, Squares]]:
        """Clean and perturbed states after so many blocks, and the squares of clean ones."""
        clean = Stream(model, self.ids, self.dtype)
        stacks = [Stack(addresses, self.plan) for addresses in self.stacks]
        squares: dict[int, Squares] = dict.fromkeys(self.counted, ())
        for i in range(blocks):
            weights = model.block(i, self.dtype, workers.map)
            variants = {
                a.variant for stack in self.stacks for a in stack if a.block == i
            }
            pruned = dict[int, Weights]()
            if self.pruning is not None and variants:
                pruned = self.pruning.pruned(
                    i, sorted(variants), clean, weights, workers
                )
            # Tasks start in order: the clean ones come first and wait for nobody.
            ahead = {
                sequence: workers.submit(
                    partial(self._passed, clean, weights, sequence)
                )
                for sequence in clean.states
            }
            through = partial(clean.through, weights=weights)
            perturb = partial(self._perturbed, clean, ahead, pruned)
            begun = [stack for stack in stacks if stack.addresses[0].block <= i]
            moves = [
                workers.submit(partial(x.move, i, through, perturb, ahead[x.sequence]))
                for x in begun
            ]
            for states in moves:
                if count := states.result():
                    tick(count)
            clean.advance(
                {sequence: passed.result()[0] for sequence, passed in ahead.items()}
            )
            for sequence in self.counted:
                squares[sequence] += (ahead[sequence].result()[1],)
            tick(len(ahead))
            del (
                weights,
                pruned,
                ahead,
                through,
                perturb,
                moves,
            )  # before the next block is read
        return clean, stacks, squares

    def _passed(
        self, clean: Stream, weights: Weights, sequence: int
    ) -> tuple[State, dict[str, Array]]:
        """A clean state after the block, and the squares if they are counted."""
        h = clean.states[sequence]
        if sequence in self.counted:
            return clean.through_with_sums(h, weights, sum_of_squares)
        return clean.through(h, weights), {}

    def _perturbed(
        self,
        clean: Stream,
        ahead: Mapping[int, Clean],
        pruned: Mapping[int, Weights],
        a: Address,
    ) -> State:
        """A state after the block that perturbs it: with noise, or through the pruned block."""
        if isinstance(self.plan, Noise):
            return with_noise(ahead[a.sequence].result()[0], a, self.plan)
        return clean.through(clean.states[a.sequence], pruned[a.variant])


def divergences(
    model: Model,
    finals: Mapping[int, Array],
    ends: Mapping[K, tuple[int, Array]],
    dtype: npt.DTypeLike,
    workers: Workers,
    tick: Tick = lambda cost: None,
) -> dict[K, Array]:
    """KL per token [S] of states [S, D] from the final one [1, S, D] of their sequence, by key.

    The head is loaded piece by piece.
    """
    config, tokens = model.config, next(iter(finals.values())).shape[1]
    step = max(1, HEAD_BYTES // (tokens * np.dtype(dtype).itemsize))
    running = {key: RunningDivergence.start(tokens) for key in ends}

    def right(
        h: Array, weights: Weights, same: RunningDivergence
    ) -> tuple[Array, Extended]:
        z = logits(h, weights, config)[0]
        return z, extended(same.largest, same.total, z)

    def add(key: K, weights: Weights, z: Array, clean: Extended) -> RunningDivergence:
        return running[key].add(
            z, logits(ends[key][1][None], weights, config)[0], clean
        )

    for start in range(0, config.vocab_size, step):
        weights = model.head(dtype, slice(start, start + step))
        for sequence in dict.fromkeys(n for n, _ in ends.values()):
            of_sequence = [key for key, (n, _) in ends.items() if n == sequence]
            how = finals[sequence], weights, running[of_sequence[0]]
            ((z, clean),) = workers.run([partial(right, *how)])
            sums = workers.run(
                [partial(add, key, weights, z, clean) for key in of_sequence]
            )
            running |= zip(of_sequence, sums, strict=True)
        pieces = -(-config.vocab_size // step)
        tick(head_cost(config) * (len(ends) + len(finals)) / pieces)
    return {key: x.value for key, x in running.items()}


def head_cost(config: Config) -> float:
    """Cost of the head in block passes, for the progress bar."""
    return config.vocab_size * config.hidden_size / float(config.block_sizes.mean())
