"""Which weights of one linear stay: every pruner, for a count, a pattern, or a peer's fraction."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.arguments import (
    AtLeastZero,
    Bools,
    Checked,
    Compat,
    Floats,
    NotNegative,
    common_option,
    option,
    read_only,
)
from refimpl.errors import RefimplError
from refimpl.pruners.counts import Pattern, pattern_keep
from refimpl.pruners.magnitude import magnitude_keep
from refimpl.pruners.pruner import (
    DAMPING,
    LinearInputs,
    Pruner,
    SharedFactor,
    Statistics,
    pruner_named,
)
from refimpl.pruners.refit import refitted
from refimpl.pruners.wanda import WANDA

Goal = int | float | Pattern
"""How many weights go; or (a float) the fraction that a peer's code is given; or a pattern."""


@dataclass(frozen=True)
class PrunerOptions(Checked):
    """How weights are chosen.

    Raises:
        RefimplError: An unknown pruner, a damping or a seed below 0.
    """

    pruner: str | Pruner = common_option(
        WANDA.name, "How weights are chosen; random is a control.", "NAME"
    )
    damping: NotNegative = option(
        DAMPING,
        "Damping of the pruner's Hessian, as a fraction of its mean diagonal.",
        "X",
    )
    seed: AtLeastZero = option(0, "Seed of all random numbers, 0 or more.", "N")
    refit: bool = option(
        False,
        "After pruning, give the other weights the values of the least output error.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.record

    @property
    def record(self) -> Pruner:
        """The pruner."""
        return (
            pruner_named(self.pruner) if isinstance(self.pruner, str) else self.pruner
        )

    @property
    def needs(self) -> Statistics | None:
        """What is summed of a linear's inputs: refits need outer products."""
        return "products" if self.refit else self.record.needs

    @property
    def matrices(self) -> int:
        """Matrices [in, in] that are held of each input, if outer products are needed."""
        return self.record.matrices + self.refit

    @property
    def options(self) -> dict[str, float]:
        """The options that are used."""
        names = ("damping", "refit") if self.refit else ()
        return {
            name: getattr(self, name)
            for name in dict.fromkeys((*self.record.options, *names))
        }


def decision(
    weight: npt.ArrayLike,
    total: Any,
    sequences: int,
    goal: Goal,
    pruner: PrunerOptions,
    compat: Compat = "exact",
    linear: tuple[int, int] = (0, 0),
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
    if compat == "peer" and (pruner.refit or not record.peer):
        name = f"refitted {record.name}" if pruner.refit else record.name
        expected = "a pruner with published code, without refits"
        raise RefimplError(f"{name} with compat peer", expected, "use compat exact")
    if isinstance(total, np.ndarray):
        products = np.array(total, np.float64) if total.ndim == 2 else None
        total = (
            read_only(total)
            if products is None
            else SharedFactor(products, 2 / sequences)
        )
    sums = total
    if pruner.refit and isinstance(total, SharedFactor) and record.needs != "products":
        sums = total.squares if record.needs else None
    options = pruner.damping, pruner.seed, linear
    inputs = LinearInputs(read_only(weight), sums, sequences, goal, *options)
    new, shape = None, np.shape(weight)
    if record.compensate is not None:
        keep, weight_after = record.compensate(inputs, compat)
        new = _checked(record, "new weights", weight_after, shape, "fV")
    elif record.score is None:
        raise _wrong(record, "score", "None")
    else:
        score = _checked(record, "score", record.score(inputs), shape, "fiu")
        if np.isnan(score).any():
            raise _wrong(record, "score", "NaN")
        of_linear = record.keep or magnitude_keep
        rule: Any = pattern_keep if isinstance(goal, Pattern) else of_linear
        keep = rule(score, goal)
    keep = _checked(record, "keep", keep, shape, "b")
    removed = keep.size - int(np.count_nonzero(keep))
    if isinstance(goal, int) and removed != goal:
        raise _wrong(record, "keep", f"{removed} weights removed", f"exactly {goal}")
    if pruner.refit:
        new = refitted(weight, keep, total, pruner.damping)
    return keep, new


def _checked(
    record: Pruner, what: str, value: Any, shape: tuple[int, ...], kinds: str
) -> Any:
    """What a function of a record returned, if it has the shape of the weight and such a dtype."""
    plain = type(value) is np.ndarray  # not masked
    if not plain or value.shape != shape or value.dtype.kind not in kinds:
        found = (
            f"{value.dtype.name} {list(value.shape)}" if plain else type(value).__name__
        )
        names = {"fV": "floating-point", "b": "bool"}
        raise _wrong(
            record, what, found, f"{names.get(kinds, 'numbers')} {list(shape)}"
        )
    return value


def _wrong(
    record: Pruner, what: str, found: str, expected: str = "numbers"
) -> RefimplError:
    """The error for what a function of a record returned."""
    return RefimplError(
        f"pruner {record.name!r}: {what} is {found}",
        f"an array [out, in]: {expected}",
        "correct the function of this `Pruner`",
    )
