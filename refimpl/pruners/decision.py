"""Which weights of one linear stay: every method, for a count, a pattern, or a peer's fraction."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.pruners import peer
from refimpl.pruners.control import control_generator, random_keep
from refimpl.pruners.pattern import Pattern, pattern_keep
from refimpl.pruners.scores import magnitude_keep, magnitude_score, wanda_keep, wanda_score
from refimpl.pruners.sparsegpt import DAMPING, hessian, sparsegpt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Method = Literal["wanda", "sparsegpt", "magnitude", "random"]
Goal = int | float | Pattern
"""How many weights go; or (a float) the fraction that a peer's code is given; or a pattern."""


@dataclass(frozen=True)
class Pruner:
    """How weights are chosen.

    Args:
        method: "wanda", "sparsegpt", "magnitude", or "random" as a control.
        damping: Of SparseGPT's Hessian, as a fraction of its mean diagonal.
        seed: Of the random choice.

    Raises:
        RefimplError: An unknown method, a damping or a seed below 0.
    """

    method: Method = "wanda"
    damping: float = DAMPING
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise RefimplError(
                f"method {self.method!r}", " or ".join(get_args(Method)), "choose one of these"
            )
        if not 0 <= self.damping < np.inf:
            raise RefimplError(f"damping {self.damping}", "0 or more", "use for example 0.01")
        if self.seed < 0:
            raise RefimplError(f"seed {self.seed}", "0 or more", "choose another seed")


def decision(
    weight: npt.ArrayLike,
    total: Floats | None,
    sequences: int,
    goal: Goal,
    pruner: Pruner,
    compat: Literal["exact", "peer"] = "exact",
    linear: tuple[int, int] = (0, 0),
) -> tuple[Bools, Floats | None]:
    """Decide which weights of a linear stay, and what becomes of them.

    Args:
        weight: [out, in], any float dtype.
        total: Sum over the calibration tokens of the squares of the inputs, [in] (wanda), or of
            their outer products, [in, in] (sparsegpt); None for methods that look at weights alone.
        sequences: Number of sequences it was summed over.
        goal: A count or a pattern; with `compat="peer"` a fraction or a pattern.
        pruner: The method.
        compat: "exact", or "peer" for what the peers' code does.
        linear: Block and linear, for the random choice.

    Returns:
        keep [out, in], and SparseGPT's new weights [out, in] (None: those that stay are the same).

    Raises:
        RefimplError: A goal or a statistic that does not fit, a Hessian that does not factor.

    Source:
        docs/explanation/method.md, "Pruners" (peers: Wanda, SparseGPT).

    Example:
        >>> keep, _ = decision([[3.0, -1.0], [2.0, 0.5]], None, 1, 2, Pruner("magnitude"))
        >>> keep.astype(int)
        array([[1, 0],
               [1, 0]])
    """
    if compat == "peer":
        return _as_peers(weight, total, sequences, goal, pruner)
    if isinstance(goal, float):
        raise RefimplError(f"{goal} with compat exact", "a count or a pattern", "give a count")
    if pruner.method == "random":
        generator = control_generator(pruner.seed, *linear)
        return random_keep(np.shape(weight), goal, generator), None
    if pruner.method == "sparsegpt":
        found = sparsegpt(weight, hessian(_known(total), sequences), goal, pruner.damping)
        return found.keep, found.weight
    wanda = pruner.method == "wanda"
    score = wanda_score(weight, _known(total) / sequences) if wanda else magnitude_score(weight)
    if isinstance(goal, Pattern):
        return pattern_keep(score, goal), None
    return wanda_keep(score, goal) if wanda else magnitude_keep(score, goal), None


def _as_peers(
    weight: npt.ArrayLike, total: Floats | None, sequences: int, goal: Goal, pruner: Pruner
) -> tuple[Bools, Floats | None]:
    """The same as the peers' code does it."""
    if pruner.method == "random" or isinstance(goal, int):
        raise RefimplError(
            f"{pruner.method}, {goal}, with compat peer",
            "wanda, sparsegpt or magnitude, and a fraction or a pattern",
            "use compat exact",
        )
    if pruner.method == "sparsegpt":
        h = hessian(_known(total), sequences)
        found = peer.sparsegpt_peer(weight, h, goal, pruner.damping)
        return found.keep, found.weight
    wanda = pruner.method == "wanda"
    score = wanda_score(weight, _known(total) / sequences) if wanda else magnitude_score(weight)
    if isinstance(goal, Pattern):
        return pattern_keep(score, goal), None
    return (peer.wanda_keep_peer if wanda else peer.magnitude_keep_peer)(score, goal), None


def _known(total: Floats | None) -> Floats:
    """The statistic of a method that needs one."""
    if total is None:
        raise RefimplError("no statistics of the inputs", "calibration", "give tokens")
    return total
