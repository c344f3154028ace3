"""A perturbed state on its way, what perturbs it, and what is measured of it."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np

from refimpl.method.absorption import left_out, nan_mean, surviving_drift
from refimpl.method.perturbation import (
    Noise,
    Norm,
    Perturbation,
    Probes,
    deviation,
    kept_tokens,
    noise,
    perturbed,
)
from refimpl.model.mixers.carried import with_stream
from refimpl.model.ops import Array
from refimpl.scoring.measurements import Address

Clean = Future[tuple[Array, dict[str, Array]]]
"""A clean state after a block, [1, S, D], and the squares of its linears' inputs, when computed."""


class PerturbedState:
    """A perturbed state on its way, measured after the perturbed block and every later one."""

    def __init__(self, norm: Norm, width: int) -> None:
        self.norm, self.drift, self.alignment = norm, list[float](), list[float]()
        self.width = width
        self.quiet: PerturbedState | None = None
        self.sink_share = 0.0

    def start(self, changed: Array, clean: Array, plan: Perturbation) -> Array:
        """The perturbed state after its block, except for sinks, [1, S, D]; it is measured."""
        self.kept = kept_tokens(clean[0, :, : self.width], plan.sink)
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
        distance = deviation(*streams, self.kept, self.norm)
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
            "left_out": int(left_out(share, self.kept, self.norm)),
            "sinks": int(np.count_nonzero(~self.kept)),
            "divergence": divergence,
            "quiet_ratio": nan if self.quiet is None else self.quiet.measures()["ratio"],
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
        self.quiet: Array = np.zeros(0)  # of the states that have sinks, without noise on these

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
            quiet = [x.quiet for x in self.states if x.quiet is not None]
            self.quiet = through(self.quiet) if quiet else self.quiet
            for h, state in (*zip(self.h, self.states, strict=True),
                             *zip(self.quiet if quiet else (), quiet, strict=True)):  # fmt: skip
                state.measure(h, clean.result()[0])
        for a in self.addresses[len(self.states) :]:
            if a.block != index:
                break
            self.states.append(PerturbedState(self.plan.norm, self.width))
            begun = self.states[-1].start(perturb(a), clean.result()[0], self.plan)
            self.h = np.concatenate([self.h, begun]) if len(self.states) > 1 else begun
            if self.plan.on_sinks and a.variant == 0:
                self._without_sinks(self.states[-1], a, clean.result()[0])
        return len(self.states) if isinstance(self.plan, Probes) else passed

    def _without_sinks(self, state: PerturbedState, a: Address, clean: Array) -> None:
        """Let the same state without noise on sinks travel beside it, if there are sinks."""
        stream = clean[0, :, : self.width]
        norms = np.linalg.norm(stream.astype(np.float64), axis=-1)
        is_sink = ~kept_tokens(stream, "exclude")
        if not is_sink.any() or not isinstance(self.plan, Noise):
            return
        quiet = replace(self.plan, sink="exclude")
        state.sink_share = float(np.square(norms[is_sink]).sum() / np.square(norms).sum())
        state.quiet = PerturbedState(quiet.norm, self.width)
        h = state.quiet.start(with_noise(clean, a, quiet, self.width), clean, quiet)
        self.quiet = np.concatenate([self.quiet, h]) if self.quiet.size else h


def with_noise(clean: Array, a: Address, plan: Noise, width: int) -> Array:
    """The clean state after the addressed block with the noise of that address, both [1, S, D]."""
    (state,) = clean
    h = state[:, :width]
    e = noise(plan.seed, a.sequence, a.block, a.draw, h.shape)
    kept, eta = kept_tokens(h, plan.sink), plan.eta[a.variant]
    choices = plan.noise_scale, plan.noise_shape, plan.noise_norm
    return with_stream(state, perturbed(h, e, eta, kept, *choices))[None]
