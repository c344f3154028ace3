"""A perturbed state under way, and what is seen of it."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from refimpl.method import perturbation as push
from refimpl.method.absorption import known_mean, left_out, surviving_drift
from refimpl.method.perturbation import Perturbation
from refimpl.model.ops import Array
from refimpl.scoring.measurements import Address

Clean = Future[tuple[Array, dict[str, Array]]]
"""A clean state after a block, [1, S, D], on its way, and the squares of its linears' inputs."""


@dataclass(frozen=True)
class Trace:
    """What was seen of one perturbed state.

    Args:
        drift: Mean relative drift where it was made and after every block from there on.
        alignment: Mean alignment, same places.
        ratio: Mean over tokens of the drift at the end over the drift where it was made.
        left_out: Tokens without such a ratio.
        sinks: Tokens excluded as sinks.
        divergence: Mean KL of the next-token distributions, if it was asked for.
    """

    drift: list[float]
    alignment: list[float]
    ratio: float
    left_out: int
    sinks: int
    divergence: float | None = None


class State:
    """A perturbed state under way, from the block that made it."""

    def __init__(self) -> None:
        self.drift: list[float] = []
        self.alignment: list[float] = []

    def start(self, make: Callable[[], Array], clean: Clean, plan: Perturbation) -> None:
        """Make the state and measure it where it was made."""
        pushed, h = make(), clean.result()[0]
        self.kept = push.kept_tokens(h[0], plan.sink)
        self.h = np.where(self.kept[None, :, None], pushed, h)
        self.first = self.measure(h, plan.norm)

    def move(self, through: Callable[[Array], Array], clean: Clean, norm: push.Norm) -> None:
        """Pass through one block and measure against the clean state after it."""
        self.h = through(self.h)
        self.measure(clean.result()[0], norm)

    def measure(self, clean: Array, norm: push.Norm) -> Array:
        """Remember how far the state is from the clean one; the drift per token."""
        found = push.deviation(self.h[0], clean[0], self.kept, norm)
        self.drift.append(float(known_mean(found.drift)))
        self.alignment.append(float(known_mean(found.alignment)))
        self.last = found.drift
        return found.drift

    def trace(self, norm: push.Norm, divergence: float | None) -> Trace:
        """What was seen of it, at the end."""
        share = surviving_drift(self.last, self.first)
        return Trace(
            self.drift,
            self.alignment,
            float(known_mean(share)),
            int(left_out(share, self.kept, norm)),
            int(np.count_nonzero(~self.kept)),
            divergence,
        )


def with_noise(clean: Clean, a: Address, plan: Perturbation) -> Array:
    """The clean state with the noise that belongs to an address.

    Args:
        clean: The clean state after the block that the address names.
        a: The address.
        plan: The perturbation.

    Returns:
        The perturbed state, [1, S, D].
    """
    (h,) = clean.result()[0]
    e = push.noise(plan.seed, a.sequence, a.block, a.draw, h.shape)
    kept, eta = push.kept_tokens(h, plan.sink), plan.eta[a.eta]
    return push.perturbed(h, e, eta, kept, plan.noise_scale, plan.noise_shape)[None]
