"""The experiment's work unit: a group of stacks of perturbed states on its way through the model.

The states travel through each block together with the clean states that they belong to, so a block
is loaded once for all of them, and nothing before the perturbed block is computed twice.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.allocation.plan import Noise, Perturbation, Probes
from refimpl.method.absorption import left_out, nan_mean, surviving_drift
from refimpl.method.divergence import RunningDivergence
from refimpl.method.perturbation import deviation, kept_tokens, noise, perturbed, sink_share
from refimpl.model.config import Config
from refimpl.model.forward import Weights, head
from refimpl.model.mixers.carried import with_stream
from refimpl.model.model import BlockWeights, Model
from refimpl.model.ops import Array
from refimpl.model.statistics import sum_of_squares
from refimpl.model.stream import Stream
from refimpl.running.threads import Workers
from refimpl.running.work_units import Tick
from refimpl.scoring.measurements import Address, PruneBlock, Squares, passes
from refimpl.scoring.pruned_alone import PrunedBlocks
from refimpl.storage.file_system import MIB

Clean = Future[tuple[Array, dict[str, Array]]]
"""A clean state after a block, [1, S, D], and the squares of its linears' inputs, when computed."""


class PerturbedState:
    """A perturbed state on its way, measured after the perturbed block and every later one."""

    def __init__(self, width: int) -> None:
        self.drift, self.alignment, self.width = list[float](), list[float](), width
        self.sink_share = 0.0

    def start(self, changed: Array, clean: Array, plan: Perturbation) -> Array:
        """The perturbed state after its block, except for sinks, [1, S, D]; it is measured."""
        stream = clean[0, :, : self.width]
        self.kept, self.sink_share = kept_tokens(stream, plan.sink), sink_share(stream)
        h = np.where(self.kept[None, :, None], changed, clean)
        self.unperturbed = np.array_equal(h, clean)
        self.measure(h[0], clean)
        self.first = self.last
        return h

    def measure(self, h: Array, clean: Array) -> None:
        """Note how far the state, [S, D], is from the clean one, [1, S, D]."""
        if self.unperturbed:
            h[...] = clean[0]  # which passed alone, with another rounding
        streams = h[:, : self.width], clean[0, :, : self.width]
        distance = deviation(*streams, self.kept)
        self.drift.append(float(nan_mean(distance.drift)))
        self.alignment.append(float(nan_mean(distance.alignment)))
        self.last = distance.drift

    def measures(self, divergence: float | None = None) -> dict[str, Any]:
        """What is measured of it, after the last block: its part of `Measurements`."""
        share = surviving_drift(self.last, self.first)
        return {
            "drift": self.drift,
            "alignment": self.alignment,
            "ratio": float(nan_mean(share)),
            "left_out": int(left_out(share, self.kept)),
            "sinks": int(np.count_nonzero(~self.kept)),
            "divergence": divergence,
            "sink_share": self.sink_share,
        }


class Stack:
    """Neighbouring states of a sequence, which share the products of each block that they pass.

    They are in the order of their blocks; each joins after its own, and `h` [k, S, D] holds the k
    that have. The first `width` channels are the residual stream; behind it is what a state carries
    for later blocks (`model.mixers.carried`), which is not perturbed and not measured.
    """

    def __init__(self, states: tuple[Address, ...], plan: Perturbation, width: int) -> None:
        self.addresses, self.plan, self.sequence = states, plan, states[0].sequence
        self.width = width
        self.states = list[PerturbedState]()
        self.h: Array = np.zeros(0)

    def items(self) -> Iterable[tuple[Address, PerturbedState]]:
        """Every state with its address."""
        return zip(self.addresses, self.states, strict=True)

    def move(
        self,
        index: int,
        through: Callable[[Array], Array],
        perturb: Callable[[Address], Array],
        clean: Clean,
    ) -> int:
        """Take the states [k, S, D] through block `index`, add that which it perturbs, [1, S, D].

        The clean state after the block is waited for when it is needed. Returns how many states
        have passed the block, or the pruned one.
        """
        passed = len(self.states)
        if self.states:
            self.h = through(self.h)
            for h, state in zip(self.h, self.states, strict=True):
                state.measure(h, clean.result()[0])
        for a in self.addresses[len(self.states) :]:
            if a.block != index:
                break
            self.states.append(PerturbedState(self.width))
            begun = self.states[-1].start(perturb(a), clean.result()[0], self.plan)
            self.h = np.concatenate([self.h, begun]) if len(self.states) > 1 else begun
        return len(self.states) if isinstance(self.plan, Probes) else passed


def with_noise(clean: Array, a: Address, plan: Noise, width: int) -> Array:
    """The clean state after the addressed block with the noise of that address, both [1, S, D]."""
    (state,) = clean
    h = state[:, :width]
    e = noise(plan.seed, a.sequence, a.block, a.draw, h.shape)
    kept, eta = kept_tokens(h, plan.sink), plan.etas[a.variant]
    return with_stream(state, perturbed(h, e, eta, kept, plan.noise_norm))[None]


HEAD_BYTES = MIB  # logits of one state held at a time: more do not stay in a core's cache


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
    prune_block: PruneBlock | None = None
    divergence: bool = False

    def cost(self, config: Config) -> float:
        """Block passes, and heads in the same unit."""
        per_head = head_cost(config) if self.divergence else 0.0
        clean = len(self.ids) * (config.num_blocks + per_head)
        states = [a for stack in self.stacks for a in stack]
        return clean + sum(passes(a, config.num_blocks, self.plan) + per_head for a in states)

    def run(self, model: Model, workers: Workers, tick: Tick) -> dict[str, Any]:
        """Measure the states from the embedding to the end.

        What is measured of each state, by its key, and the squares of clean ones, by sequence.
        """
        clean, stacks, squares = self.follow(model, model.config.num_blocks, workers, tick)
        divergences: Mapping[Address, float] = {}
        if self.divergence:
            divergences = self._divergences(model, stacks, clean.states, workers, tick)
        items = [(a, state) for x in stacks for a, state in x.items()]
        measures = {a.key: state.measures(divergences.get(a)) for a, state in items}
        return measures | {f"squares {sequence}": sums for sequence, sums in squares.items()}

    def follow(
        self, model: Model, blocks: int, workers: Workers, tick: Tick = lambda cost: None
    ) -> tuple[Stream, list[Stack], dict[int, Squares]]:
        """Clean and perturbed states after so many blocks, and the squares of clean ones."""
        clean, width = Stream(model, self.ids, self.dtype), model.config.hidden_size
        stacks = [Stack(addresses, self.plan, width) for addresses in self.stacks]
        squares: dict[int, Squares] = dict.fromkeys(self.counted, ())
        for i in range(blocks):
            weights = model.block(i, self.dtype, workers.map)
            pruned = self._pruned(i, clean, weights, workers)
            # Tasks start in order: the clean ones come first and wait for nobody.
            ahead = {
                sequence: workers.submit(
                    partial(clean.through_with_sums, h, weights, sum_of_squares)
                )
                for sequence, h in clean.states.items()
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
            clean.advance({sequence: passed.result()[0] for sequence, passed in ahead.items()})
            for sequence in self.counted:
                squares[sequence] += (ahead[sequence].result()[1],)
            tick(len(ahead))
            del weights, pruned, ahead, through, perturb, moves  # before the next block is read
        return clean, stacks, squares

    def _pruned(
        self, index: int, clean: Stream, weights: BlockWeights, workers: Workers
    ) -> dict[int, Weights]:
        """The block's weights after each pruning by which it is perturbed, by variant."""
        variants = sorted({a.variant for stack in self.stacks for a in stack if a.block == index})
        prune = self.prune_block
        if prune is None or not variants:
            return {}
        if isinstance(prune, PrunedBlocks) and prune.pruner.record.needs == "products":
            prune = prune.summed(clean, weights, workers)
        return {variant: prune(index, variant, weights, workers) for variant in variants}

    def _perturbed(
        self,
        clean: Stream,
        ahead: Mapping[int, Clean],
        pruned: Mapping[int, Weights],
        a: Address,
    ) -> Array:
        """A state after the block that perturbs it: with noise, or through the pruned block."""
        if isinstance(self.plan, Noise):
            (h, _), width = ahead[a.sequence].result(), clean.config.hidden_size
            return with_noise(h, a, self.plan, width)
        return clean.through(clean.states[a.sequence], pruned[a.variant])

    def _divergences(
        self,
        model: Model,
        stacks: Sequence[Stack],
        clean: Mapping[int, Array],
        workers: Workers,
        tick: Tick,
    ) -> dict[Address, float]:
        """Mean KL over the kept tokens for every state, the head loaded piece by piece."""
        config, dtype = model.config, self.dtype
        tokens = next(iter(clean.values())).shape[1]
        step = max(1, HEAD_BYTES // (tokens * np.dtype(dtype).itemsize))
        ends = {a: stack.h[k] for stack in stacks for k, a in enumerate(stack.addresses)}
        running = {a: RunningDivergence.start(tokens) for a in ends}

        def add(a: Address, weights: Weights, logits: Array) -> RunningDivergence:
            return running[a].add(logits, head(ends[a][None], weights, config)[0])

        for start in range(0, config.vocab_size, step):
            weights = model.head(dtype, slice(start, start + step))
            for sequence, h in clean.items():
                (logits,) = workers.run([partial(head, h, weights, config)])
                of_sequence = [a for a in ends if a.sequence == sequence]
                sums = workers.run([partial(add, a, weights, logits[0]) for a in of_sequence])
                running |= zip(of_sequence, sums, strict=True)
            pieces = -(-config.vocab_size // step)
            tick(head_cost(config) * (len(ends) + len(clean)) / pieces)
        return {
            a: float(nan_mean(running[a].value[state.kept]))
            for stack in stacks
            for a, state in stack.items()
        }


def head_cost(config: Config) -> float:
    """Cost of the head in block passes, for the progress bar."""
    return config.vocab_size * config.hidden_size / float(config.block_sizes.mean())
