"""The record of a pruner: its names, its needs and its decision; a linear and its Hessian."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from refimpl.arguments import (
    Bools,
    Checked,
    Compat,
    Floats,
    NotNegative,
    checked,
    read_only,
    require,
)
from refimpl.errors import RefimplError
from refimpl.records import nearest, record_named, records

DAMPING = 0.01  # share of the mean of diag(H) that is added to it
_LEAF = 64  # up to this size LAPACK inverts a triangle
# Up to so many columns, LAPACK factors the whole Hessian, in two copies of it; of more, `_PANEL` at
# a time, in place.
_WHOLE, _PANEL = 4096, 256

Statistics = Literal["squares", "products"]
"""What is summed of a linear's inputs: their squares [in], or their outer products [in, in]."""


class SharedFactor:
    """The factor V of a damped Hessian, H = V V^T, for all prunings by it; it overwrites `outer`.

    H_dd = 1 where it was 0, then H += damping mean(diag H) I; V is its Cholesky factor from the
    last column backwards, upper triangular with a positive diagonal.

    Args:
        outer: [C, C], symmetric and finite; H is `scale` times this. `squares` is its diagonal.
        scale: 2 / n for outer products of n sequences.

    Source: SparseGPT (peer), which inverts H first.

    Example:
        >>> shared = SharedFactor(np.array([[1.0, 0.0], [0.0, 0.0]]), scale=0.25)
        >>> shared.factored(damping=0)
        (array([[0.5, 0. ],
               [0. , 1. ]]), array([False,  True]))
    """

    def __init__(self, outer: Floats, scale: float = 1.0) -> None:
        self.outer, self._scale, self._lock = outer, scale, Lock()
        self.squares = outer.diagonal().copy()
        self._dead, self._fits = cast(Bools | None, None), False
        self._inverse: tuple[Floats, Floats] | None = None

    @classmethod
    def of(cls, hessian: "Hessian") -> "SharedFactor":
        """That of a copy, if it is none yet."""
        return (
            hessian
            if isinstance(hessian, cls)
            else cls(np.array(hessian, dtype=np.float64))
        )

    def checked(self, weight: npt.ArrayLike) -> npt.NDArray[Any]:
        """A weight [out, in]; refuses one that the Hessian does not fit, and NaN or Inf."""
        w = np.asarray(weight)
        if w.ndim != 2 or w.size == 0 or self.outer.shape != w.shape[1:] * 2:
            raise RefimplError(
                f"a Hessian of shape {self.outer.shape} for a weight of shape {w.shape}",
                "[in, in] for [out, in]",
                "collect the Hessian from the inputs of this linear",
            )
        require_finite(w)
        return w

    def inverse(
        self, invert: Callable[[Floats], tuple[Floats, Floats]]
    ) -> tuple[Floats, Floats]:
        """What a function makes of `outer` before it is factored, once for all prunings by it."""
        with self._lock:
            if self._inverse is None:
                require_finite(self.outer)
                self._inverse = invert(self.outer)
            return self._inverse

    def factored(self, damping: float) -> tuple[Floats, Bools]:
        """V, with the damping of the first call, a share of mean(diag H); and where H_dd was 0.

        NaN or Inf, a Hessian that is not positive definite, and a negative damping are refused.
        """
        with self._lock:
            if self._dead is None:
                require(damping, NotNegative, "damping")
                require_finite(self.outer)
                self.outer *= self._scale
                diagonal = np.einsum("ii->i", self.outer)  # a view
                self._dead = diagonal == 0
                diagonal[self._dead] = 1
                diagonal += damping * diagonal.copy().mean()
                self._fits = _factor_in_place(self.outer)
            if not self._fits:
                raise RefimplError(
                    f"the Hessian is not positive definite with damping {damping:g}",
                    "a positive definite H + damping mean(diag H) I",
                    f"use a larger damping (default {DAMPING:g}), or more calibration tokens",
                )
            return self.outer, self._dead


def _factor_in_place(h: Floats) -> bool:
    """Replace H by V, H = V V^T; whether it is positive definite.

    Until all of V is known, H stays below the diagonal. Columns K of H, up to their own rows, less
    V V^T of the columns L after them, are V V_KK^T: V_IK = (H_IK - V_IL V_KL^T) V_KK^-T.
    """
    size, step = len(h), _PANEL if len(h) > _WHOLE else len(h)
    panels = [slice(max(0, end - step), end) for end in range(size, 0, -step)]
    for at in panels:
        own, above, later = h[at, at], h[: at.start, at], h[at, at.stop :]
        left = own
        if at.stop < size:
            left = own - later @ later.T
            above -= h[: at.start, at.stop :] @ later.T
        try:
            upper = np.linalg.cholesky(left[::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            return False
        if not np.isfinite(upper).all():
            return False
        if step == size:
            own[...] = upper
            return True
        own[...] = np.tril(own, -1) + upper
        above[...] = above @ inverse_of_upper(np.ascontiguousarray(upper)).T
    for at in panels:
        h[at, : at.start] = 0
        h[at, at] = np.triu(h[at, at])
    return True


Hessian = npt.ArrayLike | SharedFactor


def inverse_of_upper(upper: Floats) -> Floats:
    """Invert a triangle by halves: [[A, B], [0, D]]^-1 = [[A^-1, -A^-1 B D^-1], [0, D^-1]]."""
    size = len(upper)
    if size <= _LEAF:
        return np.asarray(
            np.linalg.inv(upper), np.float64
        )  # LU of a triangle is itself
    half = size // 2
    inverse: Floats = np.zeros_like(upper, order="C")
    first, last = (
        inverse_of_upper(upper[:half, :half]),
        inverse_of_upper(upper[half:, half:]),
    )
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[:half, half:] = -first @ upper[:half, half:] @ last
    return inverse


def require_finite(numbers: npt.NDArray[Any]) -> None:
    """Refuse NaN and Inf."""
    if not np.isfinite(numbers).all():
        problem = "NaN or Inf in the weight or its Hessian"
        raise RefimplError(
            problem, "finite numbers", "check weights and activations for NaN"
        )


@dataclass(frozen=True)
class LinearInputs:
    """A linear, and the statistics by which a pruner decides which of its weights stay.

    Args:
        weight: [out, in], any float dtype.
        total: Sum over the calibration tokens of the statistic that the pruner needs: None, squares
            [in], or the `SharedFactor` of outer products, with SparseGPT's scale.
        sequences: Number of sequences in this sum.
        goal: A count or a `Pattern`; with `compat="peer"` a fraction or a `Pattern`.
        damping: Of a Hessian, as a fraction of its mean diagonal.
        seed: Of a random choice.
        block_and_linear: Numbers of the block and of the linear in it.
    """

    weight: npt.ArrayLike
    total: Any
    sequences: int
    goal: Any
    damping: float
    seed: int
    block_and_linear: tuple[int, int]

    @property
    def mean(self) -> Floats:
        """The statistic per sequence."""
        return self.sums / self.sequences

    @property
    def sums(self) -> Floats:
        """The statistic that a pruner with `needs` is sure to get."""
        if self.total is None:
            raise RefimplError(
                "sums without `needs`", "squares or products", "correct it"
            )
        return read_only(
            self.total.outer if isinstance(self.total, SharedFactor) else self.total
        )


@dataclass(frozen=True)
class Pruner(Checked):
    """All facts about one pruner.

    Args:
        name: Value of --pruner.
        title: Name in texts.
        source: Where it was published, and its code.
        score: From a linear to the score of every weight, [out, in]; the lowest are removed.
        keep: From scores and a count to the weights that stay, [out, in]; from a fraction, a float,
            as the published code decides. By default all but the lowest of the linear.
        compensate: In place of all these, for pruners that change the weights that stay: from a
            linear to which of them stay, and new weights, +0.0 elsewhere.
        needs: Statistic of the linear's inputs; None for pruners that look at weights alone.
        options: Which fields of `PrunerOptions` it uses.
        matrices: Matrices [in, in] that it holds of each input, if it needs products.
        peer: Whether `compat="peer"` reproduces published code.
        deviations: How the published code differs.
    """

    name: str
    title: str
    source: str
    score: Callable[[LinearInputs], Floats] | None = None
    keep: Callable[[Floats, Any], Bools] | None = None
    compensate: Callable[[LinearInputs, Compat], tuple[Bools, Floats]] | None = None
    needs: Statistics | None = None
    options: tuple[Literal["damping", "seed"], ...] = ()
    peer: bool = False
    matrices: int = 1
    deviations: str = ""


def pruners() -> dict[str, Pruner]:
    """The pruners of this package, by name."""
    return records("refimpl.pruners", Pruner)


@checked
def pruner_named(name: str) -> Pruner:
    """The pruner with this name, from this package or the entry points of another one."""
    record = record_named(name, "refimpl.pruners", Pruner)
    if record is None:
        step = nearest(name, pruners(), "choose one of these")
        raise RefimplError(f"pruner {name!r}", " or ".join(pruners()), step)
    return record
