"""Perplexity over windows, with its standard error."""

from dataclasses import dataclass
from math import exp, inf, log, nan, sqrt

import numpy as np

from refimpl.model.ops import Array

LOG_MOST = log(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Perplexity:
    """``exp(m)``, ``m = sum_w nats_w / sum_w n_w``, the mean nats of a predicted token."""

    nats: Array  # ``- sum ln p`` over the predicted tokens of each window, [W], float64
    tokens: Array  # predicted tokens n_w of each window: all but its first, [W]
    bytes: Array | None = None  # of the text that they cover, [W], if there is a text

    @property
    def mean_nats(self) -> float:
        """Mean nats per predicted token, m."""
        return float(self.nats.sum() / self.tokens.sum())

    def minus(self, other: "Perplexity") -> "Perplexity":
        """The nats that it takes more than another on the same windows: a paired change."""
        return Perplexity(self.nats - other.nats, self.tokens)

    @property
    def value(self) -> float:
        """``exp(m)``; Inf beyond float64, where the mean nats still have a meaning."""
        return exp(self.mean_nats) if self.mean_nats < LOG_MOST else inf

    @property
    def nats_stderr(self) -> float:
        """``sqrt(W / (W - 1) sum_w (nats_w - m n_w)^2) / sum_w n_w``, of a ratio; NaN for W < 2."""
        windows = len(self.nats)
        if windows < 2:
            return nan
        squares = float(np.square(self.nats - self.mean_nats * self.tokens).sum())
        return sqrt(windows / (windows - 1) * squares) / float(self.tokens.sum())

    @property
    def stderr(self) -> float:
        """Standard error of the perplexity to first order, ``exp(m)`` times that of m."""
        return self.value * self.nats_stderr

    @property
    def bits_per_byte(self) -> float:
        """``sum nats / (ln 2 sum bytes)``; NaN where there is no text."""
        covered = 0.0 if self.bytes is None else float(self.bytes.sum())
        return float(self.nats.sum()) / (log(2) * covered) if covered else nan
