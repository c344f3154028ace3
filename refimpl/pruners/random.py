"""Random pruning, the control: scores that know nothing of the weights."""

import numpy as np

from refimpl.arguments import Floats
from refimpl.pruners.pruner import LinearInputs, Pruner


def _score(linear: LinearInputs) -> Floats:
    """Uniform in [0, 1), from Philox, keyed by (seed; block, linear): on no other linear's."""
    key = np.random.SeedSequence(linear.seed, spawn_key=linear.block_and_linear)
    return np.random.Generator(np.random.Philox(key)).random(np.shape(linear.weight))


RANDOM = Pruner(
    "random", "random", "ours, as a control", score=_score, options=("seed",)
)
