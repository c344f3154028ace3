"""Log probabilities of given tokens, from logits that arrive in pieces of the vocabulary."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from refimpl.model.ops import Array

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RunningSoftmax:
    """``ln p(target) = z_target - ln sum exp z``, with the sum kept relative to the largest logit.

    Args:
        targets: Ids whose probability is wanted, [n].
        largest: Largest logit so far, [n].
        best: Its id, the lowest of several, [n].
        total: ``sum exp(z - largest)``, [n], float64.
        target: The target's logit, once it has passed, [n].

    Source:
        Ours (docs/explanation/method.md, section 8).

    Example:
        >>> z = np.array([[0.0, np.log(3.0)]])
        >>> found = RunningSoftmax.start(np.array([1])).add(z[:, :1], 0).add(z[:, 1:], 1)
        >>> np.exp(found.log_probabilities).round(6).tolist(), found.greedy.tolist()
        ([0.75], [True])
    """

    targets: Ids
    largest: Array
    best: Ids
    total: Array
    target: Array

    @classmethod
    def start(cls, targets: Ids) -> "RunningSoftmax":
        """Nothing seen yet."""
        none, zero = np.full(len(targets), -np.inf), np.zeros(len(targets))
        return cls(targets, none, np.full(len(targets), -1), zero, none)

    def add(self, logits: Array, first: int) -> "RunningSoftmax":
        """Take in the logits of some more ids, in ascending order.

        Args:
            logits: Logits, [n, ids].
            first: The first of these ids.

        Returns:
            The sums over all ids so far.
        """
        place, row = self.targets - first, np.arange(len(self.targets))
        here = (place >= 0) & (place < logits.shape[1])
        best = logits.argmax(axis=-1)  # the lowest of several
        highest = logits[row, best].astype(np.float64)
        largest = np.maximum(self.largest, highest)
        e = np.exp(logits - largest[:, None])
        return replace(
            self,
            largest=largest,
            best=np.where(highest > self.largest, best + first, self.best),
            total=self.total * np.exp(self.largest - largest) + e.sum(axis=-1),
            target=np.where(here, logits[row, np.where(here, place, 0)], self.target),
        )

    @property
    def log_probabilities(self) -> Array:
        """``ln p(target)``, [n], float64, at most zero."""
        return np.minimum(self.target - self.largest - np.log(self.total), 0)

    @property
    def greedy(self) -> npt.NDArray[np.bool_]:
        """Whether the target is the arg max, [n]; of equal logits the lowest id is."""
        return self.best == self.targets
