"""Which weights of one linear stay: every pruner, for a count, a pattern, or a peer's fraction."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Checked, Count, NotNegative, common_option, option
from refimpl.errors import RefimplError
from refimpl.pruners.checks import Bools, Compat, Floats
from refimpl.pruners.compensation import DAMPING, FLOAT64, SharedFactor
from refimpl.pruners.magnitude import magnitude_keep
from refimpl.pruners.pattern import Pattern, pattern_keep
from refimpl.pruners.pruner import LinearInputs, Pruner, pruner_named
from refimpl.pruners.wanda import WANDA

Goal = int | float | Pattern
"""How many weights go; or (a float) the fraction that a peer's code is given; or a pattern."""


@dataclass(frozen=True)
class PrunerOptions(Checked):
    """How weights are chosen.

    Raises:
        RefimplError: An unknown pruner, a damping or a seed below 0.
    """

    pruner: str | Pruner = common_option(WANDA.name, "The pruner; random is a control.", "NAME")
    damping: NotNegative = option(
        DAMPING, "Damping of the pruner's Hessian, as a fraction of its mean diagonal.", "X"
    )
    seed: Count = option(0, "Seed of all random numbers, 0 or more.", "N")

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.record

    @property
    def record(self) -> Pruner:
        """The pruner."""
        return pruner_named(self.pruner) if isinstance(self.pruner, str) else self.pruner

    @property
    def options(self) -> dict[str, float]:
        """The options that this pruner uses."""
        return {name: getattr(self, name) for name in self.record.options}


def decision(
    weight: npt.ArrayLike,
    total: Floats | SharedFactor | None,
    sequences: int,
    goal: Goal,
    pruner: PrunerOptions,
    compat: Compat = "exact",
    linear: tuple[int, int] = (0, 0),
    new_dtype: np.dtype[Any] = FLOAT64,
) -> tuple[Bools, Floats | None]:
    """Decide which weights [out, in] stay, and compute new ones, or None if the pruner makes none.

    The arguments are those of `LinearInputs`; an int or a pattern is for compat exact.

    Example:
        >>> keep, _ = decision([[3.0, -1.0], [2.0, 0.5]], None, 1, 2, PrunerOptions("magnitude"))
        >>> keep.astype(int)
        array([[1, 0],
               [1, 0]])
    """
    record = pruner.record
    if compat == "peer" and not record.has_peer:
        raise RefimplError(
            f"{record.name} with compat peer", "a pruner with published code", "use compat exact"
        )
    options = pruner.damping, pruner.seed, linear, new_dtype
    inputs = LinearInputs(weight, total, sequences, goal, *options)
    if record.compensate is not None:
        pruned = record.compensate(inputs, compat)
        return pruned.keep, pruned.weight
    assert record.score is not None  # or the record is not whole
    score = record.score(inputs)
    if isinstance(goal, Pattern):
        return pattern_keep(score, goal), None
    if isinstance(goal, int):
        return (record.keep or magnitude_keep)(score, goal), None
    assert record.keep_peer is not None  # `has_peer`
    return record.keep_peer(score, goal), None
