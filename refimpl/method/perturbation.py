"""The perturbation experiment on one state: perturb it, and measure how far it drifts."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from refimpl.model.ops import Array

NoiseNorm = Literal["exact", "expected"]
Sink = Literal["include", "exclude"]
Extended = tuple[Array, Array, Array, Array]

SINK_FACTOR = 20.0  # a token is a sink when its norm exceeds this many medians


def included_tokens(h: Array, sink: Sink) -> npt.NDArray[np.bool_]:
    """Which tokens take part: all, or those with ``||h_t|| <= 20 median_t ||h_t||``.

    Args:
        h: Residual stream at the perturbed block, [S, D].
        sink: "include" or "exclude".

    Returns:
        True where a token takes part, [S].

    Example:
        >>> included_tokens(np.array([[100.0], [1.0], [1.0]]), "exclude").tolist()
        [False, True, True]
    """
    if sink == "include":
        return np.ones_like(h[:, 0], np.bool_)
    norms = np.linalg.norm(h.astype(np.float64), axis=-1)
    return norms <= SINK_FACTOR * np.median(norms)


def noise(
    seed: int, sequence: int, block: int, draw: int, shape: tuple[int, int]
) -> Array:
    """Standard normal noise that depends on its address only, not on batching or order.

    It comes from Philox, keyed by (seed; sequence, block, draw).

    Args:
        seed: The run's seed.
        sequence: Number of the sequence, from 0.
        block: Number of the perturbed block, from 0.
        draw: Number of the draw, from 0.
        shape: (S, D).

    Returns:
        Noise, [S, D], float64.

    Example:
        >>> noise(0, 1, 2, 0, (2, 3)).shape
        (2, 3)
    """
    key = np.random.SeedSequence(seed, spawn_key=(sequence, block, draw))
    return np.random.Generator(np.random.Philox(key)).standard_normal(shape)


def perturbed(
    h: Array,
    noise: Array,
    eta: float | Array,
    included: npt.NDArray[np.bool_],
    norm: NoiseNorm = "exact",
) -> Array:
    """Perturb a state: ``h' = h + e``, ``||e_t|| = eta ||h_t||`` for every token t.

    If only the expectation has this length, ``E ||e_t||^2 = (eta ||h_t||)^2``, which is
    ``e_t ~ N(0, eta^2 ||h_t||^2 / D)``.

    Args:
        h: Residual stream after the block, [S, D].
        noise: Standard normal, [..., S, D], float64.
        eta: Relative magnitude, [..., 1, 1].
        included: Tokens that take part, [S]; the others are not perturbed.
        norm: "exact", or "expected".

    Returns:
        The perturbed state, [..., S, D], in the dtype of `h`; noise is scaled in float64.

    Source: arXiv:2606.15161, for Gaussian noise of relative size eta; the scale per token is ours.

    Example:
        >>> h = np.array([[3.0, 4.0]])
        >>> e = perturbed(h, np.array([[1.0, 0.0]]), 0.1, np.array([True])) - h
        >>> float(np.linalg.norm(e).round(12))
        0.5
    """
    exact = h.astype(np.float64)
    measured = noise if norm == "exact" else np.ones_like(exact)
    size, length = (
        np.linalg.norm(x, axis=-1, keepdims=True) for x in (exact, measured)
    )
    e = np.where(
        np.expand_dims(included, -1), eta * ratio(size, length, 0.0) * noise, 0.0
    )
    return h + e.astype(h.dtype)


def ratio(top: Array, bottom: Array, otherwise: float = np.nan) -> Array:
    """Divide, with NaN where the divisor is zero.

    Args:
        top: Dividend.
        bottom: Divisor, of the same shape, not negative.
        otherwise: The value in place of NaN.

    Returns:
        The quotient, float64, same shape.

    Example:
        >>> ratio(np.array([1.0, 1.0]), np.array([2.0, 0.0])).tolist()
        [0.5, nan]
    """
    defined = bottom > 0
    return np.where(defined, top / np.where(defined, bottom, 1), otherwise)


class Deviation(NamedTuple):
    """Relative drift and alignment, and the clean state's length, per token, [..., S]."""

    drift: Array
    alignment: Array
    length: Array


def deviation(state: Array, clean: Array, included: npt.NDArray[np.bool_]) -> Deviation:
    """Measure relative drift and alignment after some block.

    R_k = ||h'_k - h_k|| / ||h_k||;  A_k = <h'_k, h_k> / (||h'_k|| ||h_k||)

    Args:
        state: Perturbed residual stream h'_k, [..., S, D].
        clean: Clean residual stream h_k, [..., S, D].
        included: Tokens that take part, [..., S].

    Returns:
        Drift, NaN where h is zero; alignment, NaN where a state is; ||h_k||. For tokens that do not
        take part, they are NaN, NaN and 0. All float64.

    Source: arXiv:2606.15161, for relative L2 drift and direction; the form per token is ours.

    Example:
        >>> d = deviation(np.array([[3.0, 5.0]]), np.array([[3.0, 4.0]]), np.array([True]))
        >>> d.drift.tolist()
        [0.2]
    """
    a, b = state.astype(np.float64), clean.astype(np.float64)

    def dot(x: Array, y: Array) -> Array:
        return np.where(included, np.vecdot(x, y), 0.0)

    difference = a - b
    size, size_a, size_b = (np.sqrt(dot(x, x)) for x in (difference, a, b))
    return Deviation(ratio(size, size_b), ratio(dot(a, b), size_a * size_b), size_b)


@dataclass(frozen=True)
class RunningDivergence:
    """``KL(p || p')`` of two softmaxes whose logits arrive in pieces of the vocabulary.

    With logits z and z' and ``lse`` the logarithm of the sum of exponentials,
    ``KL = E_p[z - z'] - lse(z) + lse(z')``; sums are kept relative to the largest logit so far.

    Example:
        >>> z, perturbed = np.array([[0.0, 1.0]]), np.array([[0.0, 2.0]])
        >>> whole = RunningDivergence.start(1).add(z, perturbed).value
        >>> halves = RunningDivergence.start(1).add(z[:, :1], perturbed[:, :1])
        >>> bool(np.isclose(halves.add(z[:, 1:], perturbed[:, 1:]).value, whole))
        True
    """

    largest: Array  # clean logit so far, [S]
    total: Array  # sum exp(z - largest), [S]
    largest_perturbed: Array
    total_perturbed: Array
    gap: Array  # sum exp(z - largest) (z - z'), [S]

    @classmethod
    def start(cls, tokens: int) -> "RunningDivergence":
        """The divergence of so many tokens, before any logits."""
        none, zero = np.full(tokens, -np.inf), np.zeros(tokens)
        return cls(none, zero, none, zero, zero)

    def add(
        self, logits: Array, perturbed: Array, clean: Extended | None = None
    ) -> "RunningDivergence":
        """Add clean and perturbed logits of further ids, [S, ids]; `extended` may give `clean`."""
        gap = np.subtract(
            logits, perturbed, dtype=np.float64
        )  # in float32 it rounds, or overflows
        largest, total, e, shrink = clean or extended(self.largest, self.total, logits)
        largest_perturbed, total_perturbed, _, _ = extended(
            self.largest_perturbed, self.total_perturbed, perturbed
        )
        gap *= e
        gap = self.gap * shrink + gap.sum(axis=-1)
        return RunningDivergence(
            largest, total, largest_perturbed, total_perturbed, gap
        )

    @property
    def value(self) -> Array:
        """``KL(p || p')`` per token, [S], nats; never below zero."""
        lse = self.largest + np.log(self.total)
        lse_perturbed = self.largest_perturbed + np.log(self.total_perturbed)
        return np.maximum(self.gap / self.total - lse + lse_perturbed, 0)


def extended(largest: Array, total: Array, logits: Array) -> Extended:
    """Largest logit and total with further logits, their exponentials, and the total's factor."""
    new = np.maximum(largest, logits.max(axis=-1))
    e = logits - new[:, None]
    np.exp(e, out=e)
    shrink = np.exp(largest - new)
    return new, total * shrink + e.sum(axis=-1), e, shrink
