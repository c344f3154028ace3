"""What a push does to the next-token distribution, summed over the vocabulary piece by piece."""

from dataclasses import dataclass, replace

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
        largest_pushed: Largest perturbed logit so far, [S].
        total_pushed: ``sum exp(z' - largest_pushed)``, [S].
        gap: ``sum exp(z - largest) (z - z')``, [S].

    Source:
        Ours (docs/explanation/method.md, section 4).

    Example:
        >>> z, pushed = np.array([[0.0, 1.0]]), np.array([[0.0, 2.0]])
        >>> whole = RunningDivergence.start(1).add(z, pushed).value
        >>> halves = RunningDivergence.start(1).add(z[:, :1], pushed[:, :1])
        >>> bool(np.isclose(halves.add(z[:, 1:], pushed[:, 1:]).value, whole))
        True
    """

    largest: Array
    total: Array
    largest_pushed: Array
    total_pushed: Array
    gap: Array

    @classmethod
    def start(cls, tokens: int) -> "RunningDivergence":
        """Nothing seen yet."""
        none, zero = np.full(tokens, -np.inf), np.zeros(tokens)
        return cls(none, zero, none, zero, zero)

    def add(self, logits: Array, pushed: Array) -> "RunningDivergence":
        """Take in the logits of some more ids.

        Args:
            logits: Clean logits, [S, ids].
            pushed: Perturbed logits, [S, ids].

        Returns:
            The divergence over all ids so far.
        """
        gap = np.subtract(logits, pushed, dtype=np.float64)  # in float32 it rounds, or overflows
        largest = np.maximum(self.largest, logits.max(axis=-1))
        largest_pushed = np.maximum(self.largest_pushed, pushed.max(axis=-1))
        e = np.exp(logits - largest[:, None])
        shrink = np.exp(self.largest - largest)
        e_pushed = np.exp(pushed - largest_pushed[:, None])
        shrink_pushed = np.exp(self.largest_pushed - largest_pushed)
        return replace(
            self,
            largest=largest,
            total=self.total * shrink + e.sum(axis=-1),
            largest_pushed=largest_pushed,
            total_pushed=self.total_pushed * shrink_pushed + e_pushed.sum(axis=-1),
            gap=self.gap * shrink + (e * gap).sum(axis=-1),
        )

    @property
    def value(self) -> Array:
        """``KL(p || p')`` per token, [S], nats; never below zero."""
        lse = self.largest + np.log(self.total)
        lse_pushed = self.largest_pushed + np.log(self.total_pushed)
        return np.maximum(self.gap / self.total - lse + lse_pushed, 0)
