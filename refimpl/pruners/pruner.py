"""The record of a pruner: its names, its needs and its decision."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refimpl.arguments import checked
from refimpl.errors import RefimplError
from refimpl.pruners.checks import Bools, Compat, Floats, read_only
from refimpl.pruners.compensation import FLOAT64, PrunedWeight, SharedFactor
from refimpl.records import named, nearest, records

Statistics = Literal["squares", "products"]
"""What is summed of a linear's inputs: their squares [in], or their outer products [in, in]."""


@dataclass(frozen=True)
class LinearInputs:
    """A linear, and the statistics by which a pruner decides which of its weights stay.

    Args:
        weight: [out, in], any float dtype.
        total: Sum over the calibration tokens of the statistic that the pruner needs; of outer
            products perhaps as a `SharedFactor`, whose factor takes the place of the sum.
        sequences: Number of sequences in this sum.
        goal: A count or a `Pattern`; with `compat="peer"` a fraction or a `Pattern`.
        damping: Of a Hessian, as a fraction of its mean diagonal.
        seed: Of a random choice.
        place: Numbers of the block and of the linear in it.
        new_dtype: Of new weights.
    """

    weight: npt.ArrayLike
    total: Floats | SharedFactor | None
    sequences: int
    goal: Any
    damping: float
    seed: int
    place: tuple[int, int]
    new_dtype: np.dtype[Any] = FLOAT64

    @property
    def mean(self) -> Floats:
        """The statistic per sequence."""
        return self.sums / self.sequences

    @property
    def sums(self) -> Floats:
        """The statistic that a pruner with `needs` is sure to get."""
        assert self.total is not None
        total = self.total.outer if isinstance(self.total, SharedFactor) else self.total
        return read_only(total)


@dataclass(frozen=True)
class Pruner:
    """All facts about one pruner.

    Args:
        name: Value of --pruner.
        title: Name in texts.
        source: Where it was published, and the code that `keep_peer` reproduces.
        score: From a linear to the score of every weight, [out, in]; the lowest are removed.
        keep: From scores and a count to the weights that stay, [out, in]; by default all but the
            lowest of the linear.
        keep_peer: The same from scores and a fraction, as the published code decides; None if
            there is none.
        compensate: In place of all these, for pruners that change the weights that stay.
        needs: Statistic of the linear's inputs; None for pruners that look at weights alone.
        options: Which fields of `PrunerOptions` it uses.
        deviations: How the published code differs.
    """

    name: str
    title: str
    source: str
    score: Callable[[LinearInputs], Floats] | None = None
    keep: Callable[[Floats, int], Bools] | None = None
    keep_peer: Callable[[Floats, float], Bools] | None = None
    compensate: Callable[[LinearInputs, Compat], PrunedWeight] | None = None
    needs: Statistics | None = None
    options: tuple[str, ...] = ()
    deviations: str = ""

    @property
    def has_peer(self) -> bool:
        """Whether there is published code to reproduce."""
        return self.keep_peer is not None or self.compensate is not None


def pruners() -> dict[str, Pruner]:
    """The pruners of this package, by name."""
    return records("refimpl.pruners", Pruner)


@checked
def pruner_named(name: str, what: str = "pruner") -> Pruner:
    """The pruner with this name, from this package or the entry points of another one."""
    found = named(name, "refimpl.pruners", Pruner)
    if found is None:
        step = nearest(name, pruners(), "choose one of these")
        raise RefimplError(f"{what} {name!r}", " or ".join(pruners()), step)
    return found
