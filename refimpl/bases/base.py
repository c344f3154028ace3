"""The record of a base allocation, its needs and formulas; and how bases spread a signal.

With compat `exact`, an allocation is still to be projected onto the budget, and a signal that is
the same for every unit gives the uniform one. Compat `peer` gives the numbers of the shipped code;
a signal that is the same for every unit gives NaN there, and an error here.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from refimpl.arguments import (
    Checked,
    Compat,
    Floats,
    Ints,
    checked,
    described,
    finite_vector,
)
from refimpl.errors import RefimplError, listed
from refimpl.records import record_named, records

Value = float | str
Needs = Literal["weights", "squares", "products"]
"""What a signal is made of, beside the weights: sums over the inputs of the dense linears."""


@dataclass(frozen=True)
class Option:
    """An option of a base: the value of a keyword argument of its formulas.

    Args:
        default: The default value; None if the option is required.
        help: Its description on the reference page.
        kind: Its type, as of a field: `Fraction`, `Literal["mean", "median"]`.
        of_signal: Whether the signal depends on it, and not only the allocation.
    """

    default: Value | None
    help: str
    kind: Any = float
    of_signal: bool = False

    def checked(self, base: str, name: str, value: Any) -> Value:
        """A value as the formulas take it; refuses what is not accepted."""
        value = value.item() if isinstance(value, np.generic) else value
        with suppress(msgspec.ValidationError):
            converted: Value = msgspec.convert(value, self.kind, strict=False)
            if isinstance(converted, str) or isfinite(converted):
                return converted
        raise RefimplError(
            f"base {base}: option {name} is {'missing' if value is None else repr(value)}",
            described(self.kind),
            f"use for example {name}={self.default or 'NUMBER'}, and repeat the option for others",
        )


@dataclass(frozen=True)
class BlockInputs:
    """A block of the dense model, as the signal of a base sees it.

    Args:
        index: Its number.
        shapes: Shapes of its linears, [out, in] by name, in their order.
        weight: The weight of a linear, [out, in], from its name.
        sums: Sums of the statistic that the base needs, over all calibration tokens, by linear.
        sequences: Number of sequences in these sums.
        idle: Linears of experts that saw no token.
        dtype: Dtype of the computation; float64 certifies.
        run: Calls functions on the threads, and returns what they return.
    """

    index: int
    shapes: Mapping[str, tuple[int, int]]
    weight: Callable[[str], Floats]
    sums: Mapping[str, Floats] = field(default_factory=dict)
    sequences: int = 1
    idle: frozenset[str] = frozenset()
    dtype: npt.DTypeLike = float
    run: Callable[[Sequence[Callable[[], Any]]], list[Any]] = lambda tasks: [
        x() for x in tasks
    ]


@dataclass(frozen=True)
class BaseInputs:
    """The inputs of a base allocation.

    Args:
        signal: The first of the base's numbers: per block [L], or per linear [L, linears] and NaN
            where a block lacks one; empty for bases that need none.
        linears: Shapes of the linears of every block, by name.
        sizes: Weights of each linear, [L, linears]; 0 where a block lacks one.
        sparsity: Target S.
        options: All options of the base.
        compat: `exact`, or `peer` for the numbers of the published code.
    """

    signal: Floats
    linears: Sequence[Mapping[str, tuple[int, int]]]
    sizes: Ints
    sparsity: float
    options: Mapping[str, Value]
    compat: Compat


@dataclass(frozen=True)
class Base(Checked):
    """All facts about one base allocation.

    Args:
        name: Value of --base.
        title: Name in texts.
        source: Where it was published, and the code that `peer` reproduces.
        allocation: From its inputs to the fraction pruned of every block [L], or of every linear
            [L, linears]; it need not meet the budget.
        options: By name.
        needs: Statistic that the signal needs; None without a signal.
        signal: From `BlockInputs` and the options to numbers of one block, by name: each a number,
            or one per linear; the allocation uses the first.
        symbol: Symbol of the signal in formulas.
        unit: Unit of the signal; may name its options, as in `m {m:g}`.
        column: Heading of the signal in tables; may name its options, too.
        formulas: The functions whose docstrings have its formulas, the allocation last.
        deviations: How the published code differs.
    """

    name: str
    title: str
    source: str
    allocation: Callable[[BaseInputs], Floats]
    options: Mapping[str, Option] = field(default_factory=dict)
    needs: Needs | None = None
    signal: Callable[..., Mapping[str, Any]] | None = None
    symbol: str = ""
    unit: str = ""
    column: str = ""
    formulas: tuple[Callable[..., Any], ...] = ()
    deviations: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.needs is None) != (self.signal is None):
            problem = f"base {self.name} has only one of `needs` and `signal`"
            raise RefimplError(problem, "both or neither", "correct the `Base`")

    def checked(self, options: Mapping[str, Any]) -> dict[str, Value]:
        """All options: those that are given, checked, and the defaults of the others."""
        if unknown := options.keys() - self.options.keys():
            raise RefimplError(
                f"base {self.name}: unknown option {listed(sorted(unknown))}",
                f"the options {', '.join(self.options)}"
                if self.options
                else "no option",
                "correct or remove the option",
            )
        return {
            name: option.checked(self.name, name, options.get(name, option.default))
            for name, option in self.options.items()
        }

    def of_signal(self, options: Mapping[str, Value]) -> dict[str, Value]:
        """Those of some options that the signal depends on."""
        return {name: x for name, x in options.items() if self.options[name].of_signal}


def bases() -> dict[str, Base]:
    """The base allocations of this package, by name."""
    return records("refimpl.bases", Base)


@checked
def base_named(name: str) -> Base | None:
    """The base with this name, from this package or the entry points of another one."""
    return record_named(name, "refimpl.bases", Base)


def relative(signal: Floats, name: str, compat: Compat) -> Floats | None:
    """A signal from 0, at its smallest value, to 1; None of one that is the same for every unit."""
    low, high = float(signal.min()), float(signal.max())
    if low < high:
        return (signal - low) / (high - low)
    if compat == "peer":
        raise RefimplError(
            f"{name} is the same for every unit, which gives NaN in the peer's code",
            "at least two different values",
            "use `compat=exact`, which falls back to uniform",
        )
    return None


def spread(
    signal: Floats, name: str, sparsity: float, half: float, compat: Compat
) -> Floats:
    """``s_l = S - d_l + mean(d)``, d from 0 to 2 half in proportion to a signal."""
    if (part := relative(signal, name, compat)) is None:
        return np.full(signal.size, float(sparsity))
    d = 2 * half * part
    return sparsity - d + d.mean()


def floored(allocation: Floats, compat: Compat) -> Floats:
    """An allocation; that of a peer with 0.01 in place of sparsities of 0 or less."""
    return (
        np.where(allocation <= 0, 0.01, allocation) if compat == "peer" else allocation
    )


def by_share(
    signal: npt.ArrayLike, name: str, sparsity: float, half: float, compat: Compat
) -> Floats:
    """Blocks are pruned the more, the larger their share of a signal."""
    u = finite_vector(signal, name)
    if u.min() < 0:
        raise RefimplError(
            f"the {name} of a block is negative ({u.min():g})",
            "numbers of at least 0",
            "check the activations",
        )
    return spread(1 - u / u.sum() if u.any() else u, name, sparsity, half, compat)
