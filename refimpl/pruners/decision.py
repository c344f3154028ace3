"""Which weights of one linear stay: every pruner, for a count, a pattern, or a peer's fraction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Checked, Seed
from refimpl.errors import RefimplError
from refimpl.pruners.checks import Bools, Floats
from refimpl.pruners.compensation import Factor, PrunedWeight, upper_factor
from refimpl.pruners.pattern import Pattern, pattern_keep
from refimpl.pruners.peer import magnitude_keep_peer, sparsegpt_peer, wanda_keep_peer
from refimpl.pruners.scores import magnitude_keep, magnitude_score, wanda_keep, wanda_score
from refimpl.pruners.sparsegpt import DAMPING, hessian, sparsegpt

Method = Literal["wanda", "sparsegpt", "magnitude", "random"]
Goal = int | float | Pattern
"""How many weights go; or (a float) the fraction that a peer's code is given; or a pattern."""

KEEP: Mapping[tuple[str, str], Callable[..., Bools]] = {
    ("wanda", "exact"): wanda_keep,
    ("wanda", "peer"): wanda_keep_peer,
    ("magnitude", "exact"): magnitude_keep,
    ("magnitude", "peer"): magnitude_keep_peer,
    ("random", "exact"): magnitude_keep,
}
SPARSEGPT: Mapping[str, Callable[..., PrunedWeight]] = {"exact": sparsegpt, "peer": sparsegpt_peer}


@dataclass(frozen=True)
class Pruner(Checked):
    """How weights are chosen.

    Args:
        method: "wanda", "sparsegpt", "magnitude", or "random" as a control.
        damping: Damping of SparseGPT's Hessian, as a fraction of its mean diagonal.
        seed: Seed of the random choice.

    Raises:
        RefimplError: An unknown method, a damping or a seed below 0.
    """

    method: Method = "wanda"
    damping: Annotated[float, 0, inf] = DAMPING
    seed: Seed = 0


def decision(
    weight: npt.ArrayLike,
    total: Floats | None,
    sequences: int,
    goal: Goal,
    pruner: Pruner,
    compat: Literal["exact", "peer"] = "exact",
    linear: tuple[int, int] = (0, 0),
    factor: Factor = upper_factor,
) -> tuple[Bools, Floats | None]:
    """Decide which weights of a linear stay, and compute SparseGPT's new weights.

    Args:
        weight: [out, in], any float dtype.
        total: Sum over the calibration tokens of the squares of the inputs, [in] (wanda), or of
            their outer products, [in, in] (sparsegpt); None for pruners that look at weights alone.
        sequences: Number of sequences that `total` was summed over.
        goal: A count or a pattern; with `compat="peer"` a fraction or a pattern.
        pruner: How weights are chosen.
        compat: "exact", or "peer" for the decisions of the peers' code.
        linear: Block and linear, for the random choice.
        factor: For SparseGPT, as of `compensated`.

    Returns:
        keep [out, in], and SparseGPT's new weights [out, in] (None: those that stay are the same).

    Raises:
        RefimplError: A goal or a statistic that does not fit, a Hessian that does not factor.

    Source: Wanda, SparseGPT (peers); docs/explanation/method.md, "Pruners".

    Example:
        >>> keep, _ = decision([[3.0, -1.0], [2.0, 0.5]], None, 1, 2, Pruner("magnitude"))
        >>> keep.astype(int)
        array([[1, 0],
               [1, 0]])
    """
    if compat == "exact":
        if isinstance(goal, float):
            raise RefimplError(
                f"the fraction {goal} with compat exact", "a count or a pattern", "pass a count"
            )
    elif pruner.method == "random" or isinstance(goal, int):
        raise RefimplError(
            f"{pruner.method}, {goal}, with compat peer",
            "wanda, sparsegpt or magnitude, and a fraction or a pattern",
            "use compat exact",
        )
    if pruner.method == "random":
        score = _random_score(np.shape(weight), pruner.seed, linear)
    elif pruner.method == "magnitude":
        score = magnitude_score(weight)
    elif total is None:
        raise RefimplError(
            "no statistics of the inputs", "sums over calibration tokens", "pass tokens"
        )
    elif pruner.method == "sparsegpt":
        h, prune = hessian(total, sequences), SPARSEGPT[compat]
        pruned = prune(weight, h, goal, pruner.damping, factor=factor)
        return pruned.keep, pruned.weight
    else:
        score = wanda_score(weight, total / sequences)
    if isinstance(goal, Pattern):
        return pattern_keep(score, goal), None
    return KEEP[pruner.method, compat](score, goal), None


def _random_score(shape: tuple[int, ...], seed: int, linear: tuple[int, int]) -> Floats:
    """Uniform scores: the control, whose numbers do not depend on the other linears."""
    key = np.random.SeedSequence(seed, spawn_key=linear)
    return np.random.Generator(np.random.Philox(key)).random(shape)
