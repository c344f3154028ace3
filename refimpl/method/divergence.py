"""How far a perturbation changes the next-token distribution, summed over the vocabulary."""

from dataclasses import dataclass

import numpy as np

from refimpl.model.ops import Array


@dataclass(frozen=True)
class RunningDivergence:
    """``KL(p || p')`` of two softmaxes whose logits arrive in pieces of the vocabulary.

    With logits z and z' and ``lse`` the logarithm of the sum of exponentials,
    ``KL = E_p[z - z'] - lse(z) + lse(z')``; sums are kept relative to the largest logit so far.

    Args:
        largest: Largest clean logit so far, [S].
        total: ``sum exp(z - largest)``, [S].
        largest_perturbed: Largest perturbed logit so far, [S].
        total_perturbed: ``sum exp(z' - largest_perturbed)``, [S].
        gap: ``sum exp(z - largest) (z - z')``, [S].

    Example:
        >>> z, perturbed = np.array([[0.0, 1.0]]), np.array([[0.0, 2.0]])
        >>> whole = RunningDivergence.start(1).add(z, perturbed).value
        >>> halves = RunningDivergence.start(1).add(z[:, :1], perturbed[:, :1])
        >>> bool(np.isclose(halves.add(z[:, 1:], perturbed[:, 1:]).value, whole))
        True
    """

    largest: Array
    total: Array
    largest_perturbed: Array
    total_perturbed: Array
    gap: Array

    @classmethod
    def start(cls, tokens: int) -> "RunningDivergence":
        """The divergence of so many tokens, before any logits."""
        none, zero = np.full(tokens, -np.inf), np.zeros(tokens)
        return cls(none, zero, none, zero, zero)

    def add(self, logits: Array, perturbed: Array) -> "RunningDivergence":
        """Add the clean and the perturbed logits of further ids, both [S, ids]."""
        gap = np.subtract(logits, perturbed, dtype=np.float64)  # in float32 it rounds, or overflows
        largest, total, e, shrink = extended(self.largest, self.total, logits)
        largest_perturbed, total_perturbed, _, _ = extended(
            self.largest_perturbed, self.total_perturbed, perturbed
        )
        gap = self.gap * shrink + (e * gap).sum(axis=-1)
        return RunningDivergence(largest, total, largest_perturbed, total_perturbed, gap)

    @property
    def value(self) -> Array:
        """``KL(p || p')`` per token, [S], nats; never below zero."""
        lse = self.largest + np.log(self.total)
        lse_perturbed = self.largest_perturbed + np.log(self.total_perturbed)
        return np.maximum(self.gap / self.total - lse + lse_perturbed, 0)


def extended(largest: Array, total: Array, logits: Array) -> tuple[Array, Array, Array, Array]:
    """Largest logit and total with further logits, their exponentials, and the total's factor."""
    new = np.maximum(largest, logits.max(axis=-1))
    e = np.exp(logits - new[:, None])
    shrink = np.exp(largest - new)
    return new, total * shrink + e.sum(axis=-1), e, shrink
