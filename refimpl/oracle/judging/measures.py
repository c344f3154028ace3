"""The error of one step against the truth, and whether it is too large."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

import ml_dtypes
import numpy as np

from refimpl.comparison.agreement import agreement
from refimpl.comparison.causes import usual_causes
from refimpl.model.ops import Array

UNRESOLVED = "refimpl itself is not near it in this dtype"
# Errors that are a share of the truth, and the tolerance from which on a step is not resolved:
# a row of zeros is off by 1, and a number that is half as large, or another coefficient, by 0.5.
RESOLVABLE: Mapping[str, float] = {"rows": 1.0, "numbers": 0.5, "shares": 0.5}
# What a step can be, by the end of its name; rounding may leave an end by some units.
DOMAINS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(
        (".drift", "coefficient", ".stderr", ".squares", ".score", ".signal"), (0, inf)
    ),
    **dict.fromkeys((".base", ".corrected"), (0, 1)),
    ".alignment": (-1, 1),
    ".perplexity": (1, inf),
}
ALIGNMENT = ".alignment"
UNCHANGED = 2.0**-49  # what rounding in float64 leaves of ``1 - A`` where nothing was lost
FORWARD = ("embed", "blocks", "final_norm", "logits")  # first words of the trace points
BY_ROW = (".weight", ".products", ".squares", ".score")  # last words of steps measured row by row

StepMeasure = Literal["rows", "numbers", "shares", "counts", "bits"]
Status = Literal["pass", "divergent", "missing", "conditional", "unresolved"]
Positions = tuple[tuple[int, ...], ...]
"""Indices into a step's array."""


@dataclass(frozen=True)
class StepResult:
    """The judgement on one step.

    Args:
        status: "conditional" is not judged, as rounding turned an earlier choice; "unresolved" is
            not, as refimpl's own error in the dtype is so large that agreement says nothing.
        error: As its measure has it (`error_of`).
        own: refimpl's own error in the candidate's dtype.
        where: Index of the worst place.
        fault: A fault that no error expresses, such as a wrong shape, or "".
        near_ties: Positions where a discrete step differs that rounding could turn.
    """

    step: str
    status: Status
    error: float = 0.0
    tolerance: float = 0.0
    own: float = 0.0
    where: tuple[int, ...] = ()
    fault: str = ""
    near_ties: Positions = ()

    def causes(self, dtype: str) -> tuple[str, ...]:
        """The usual causes of an error that starts at this step, the likeliest first."""
        return usual_causes(self.step, dtype, self.error, self.fault)


def measure_of(step: str, kind: np.dtype[np.generic]) -> StepMeasure:
    """How a step is measured, by its name and the dtype of its truth.

    "rows" and "numbers" take the relative error of the worst row or number; "shares" the worst
    error as a share of the largest number, as one may be 0; "counts" and "bits" count the
    differences. Squares are one row: a channel that hardly carries anything has few digits. Of an
    alignment A the error is that of ``1 - A``: small perturbations leave all of them near 1.
    """
    if kind.kind != "f":
        return "bits" if step.endswith(".keep") else "counts"
    if step.endswith((".base", ".corrected", ".stderr", ".divergence")):
        return "shares"
    return "rows" if step.split(".")[0] in FORWARD or step.endswith(BY_ROW) else "numbers"


def error_of(
    step: str, actual: Array, truth: Array, measure: StepMeasure
) -> tuple[float, tuple[int, ...], str]:
    """The error of an array, the index of its worst place, and a fault (always divergent) or ""."""
    if actual.shape != truth.shape:
        return inf, (), f"shape {list(actual.shape)}, expected {list(truth.shape)}"
    if measure in ("counts", "bits"):
        if actual.dtype.kind not in "iub":
            return inf, (), f"dtype {actual.dtype}, expected {truth.dtype}"
        if measure == "bits":
            if actual.size and not 0 <= actual.min() <= actual.max() <= 255:
                return inf, (), "numbers that are no bytes"
            actual, truth = (np.unpackbits(x.astype(np.uint8), axis=-1) for x in (actual, truth))
        wrong = np.argwhere(actual != truth)
        return float(len(wrong)), tuple(wrong[0].tolist()) if len(wrong) else (), ""
    if actual.dtype.kind != "f" and actual.dtype.name != "bfloat16":
        return inf, (), f"dtype {actual.dtype}, expected a float"
    with np.errstate(all="ignore"):  # a candidate's numbers may be of any size
        exact = actual.astype(np.float64)
        low, high = next((x for end, x in DOMAINS.items() if step.endswith(end)), (-inf, inf))
        slack = 4 * float(ml_dtypes.finfo(actual.dtype).eps)  # type: ignore[no-untyped-call]
        outside = (exact < low - slack * abs(low)) | (exact > high * (1 + slack))
        if outside.any():
            kind = f"outside {low:g} to {high:g}" if low or (exact >= 0).all() else "negative"
            fault = f"{outside.sum():,} {kind} among {actual.size:,} numbers, which cannot be"
            return inf, (), fault
        unknown = np.isnan(truth)  # a coefficient of a block that lost nothing
        if unknown.any():
            if not np.isnan(exact[unknown]).all():
                return inf, (), "NaN expected, and the candidate has a number"
            exact, truth = (np.where(unknown, 0.0, x) for x in (exact, truth))
        if measure == "numbers":
            exact, truth = exact[..., None], truth[..., None]
        compared = agreement(step, exact, truth)
        if (measure == "shares" or step.endswith(ALIGNMENT)) and compared.error < inf:
            missed = np.abs(exact - truth)
            size = lost(truth) if step.endswith(ALIGNMENT) else truth.max() or 1.0
            error = np.where(missed > 0, missed / size, 0.0)
            worst = np.unravel_index(int(error.argmax()), truth.shape)[: actual.ndim]
            return float(error.max()), tuple(map(int, worst)), compared.fault
    return compared.error, compared.token, compared.fault


def lost(alignment: Array) -> Array:
    """``1 - A`` of alignments A, 0 where rounding leaves it below."""
    return np.maximum(1 - alignment, 0.0)


def resolvable(step: str, measure: StepMeasure) -> float:
    """The tolerance from which on a step is not resolved; an alignment of 1 is off by 1, too."""
    return 1.0 if step.endswith(ALIGNMENT) else RESOLVABLE.get(measure, inf)


def step_result(
    step: str,
    actual: Mapping[str, Array],
    truth: Array,
    own: float,
    tolerance: float,
    ties: Callable[[], Positions] = lambda: (),
) -> StepResult:
    """Judge one step; `ties` is asked for near ties only if the step is off otherwise."""
    if step not in actual:
        return StepResult(step, "missing", inf, tolerance, own, fault="missing")
    if not isfinite(own):
        return StepResult(step, "unresolved", fault=UNRESOLVED)
    measure = measure_of(step, truth.dtype)
    error, where, fault = error_of(step, actual[step], truth, measure)
    # An error of 1 is that of zeros: the dtype does not resolve such a perturbation or sum.
    unresolved = own >= 1 and measure in RESOLVABLE
    if error <= tolerance and tolerance >= 1:
        fault = ""
    if not fault and error <= tolerance:
        if tolerance < resolvable(step, measure):
            return StepResult(step, "pass", error, tolerance, own, where)
        share = f"{error / tolerance:.2g} of a tolerance of {tolerance:.2g}"
        words = f"not resolvable in this dtype: {share}"
        return StepResult(step, "unresolved", error, tolerance, own, where, words)
    zero_by_zero = step.endswith("absorption_coefficient") and "NaN" in fault
    if unresolved and (not fault or zero_by_zero):
        words = f"{fault}; {UNRESOLVED}" if fault else UNRESOLVED
        return StepResult(step, "unresolved", error, tolerance, own, where, words)
    near = () if fault else ties()
    status: Status = "pass" if near else "divergent"
    return StepResult(step, status, error, tolerance, own, where, fault, near)
