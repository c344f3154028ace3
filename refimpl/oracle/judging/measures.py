"""One step of a candidate against the truth: how far it is off, and whether that is too far."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Literal

import numpy as np

from refimpl.comparison.agreement import agreement
from refimpl.comparison.causes import usual_causes
from refimpl.model.ops import Array
from refimpl.oracle.judging.choices import Ties

UNRESOLVED = "refimpl itself is not near it in this dtype"
VECTORS = (".weight", ".products", ".squares", ".score")  # seen row by row
Measure = Literal["rows", "numbers", "counts", "bits"]
Status = Literal["pass", "divergent", "missing", "conditional"]


@dataclass(frozen=True)
class Judged:
    """What became of one step.

    Args:
        step: Its name.
        status: "pass", "divergent", "missing", or "conditional": not judged, because an earlier
            choice within rounding went the other way.
        error: How far it is off; of counts and bits, how many differ.
        tolerance: How far it may be off.
        own: How far refimpl itself is off in the candidate's dtype.
        where: Index of the worst place.
        fault: What no error says, such as a wrong shape; empty if nothing.
        near_ties: Where a discrete step differs that rounding could turn.
    """

    step: str
    status: Status
    error: float = 0.0
    tolerance: float = 0.0
    own: float = 0.0
    where: tuple[int, ...] = ()
    fault: str = ""
    near_ties: tuple[tuple[int, ...], ...] = field(default=())

    def causes(self, dtype: str) -> tuple[str, ...]:
        """What usually makes this step the first to go wrong, the likeliest first."""
        return usual_causes(self.step, dtype, self.error, self.fault)


def measure_of(step: str, kind: np.dtype[np.generic]) -> Measure:
    """How a step is measured.

    Args:
        step: Its name.
        kind: Dtype of its truth.

    Returns:
        "rows": relative error of the worst row (tokens of the forward; rows of weights, products
        and scores; squares are one row: a channel that hardly carries anything has few digits);
        "numbers": of the worst number; "counts": equal; "bits": equal, but for near ties.

    Example:
        >>> measure_of("blocks.0.q", np.dtype(np.float64))
        'rows'
        >>> measure_of("wanda.blocks.0.q_proj.keep", np.dtype(np.uint8))
        'bits'
    """
    if kind.kind != "f":
        return "bits" if step.endswith(".keep") else "counts"
    forward = step.split(".")[0] in ("embed", "blocks", "final_norm", "logits")
    return "rows" if forward or step.endswith(VECTORS) else "numbers"


def error_of(
    step: str, actual: Array, truth: Array, measure: Measure
) -> tuple[float, tuple[int, ...], str]:
    """How far an array is from the truth.

    Args:
        step: Its name.
        actual: What was computed.
        truth: What it should be.
        measure: From `measure_of`.

    Returns:
        The error, the place of the worst, and a fault or "". A fault alone makes it divergent.

    Source:
        docs/explanation/numerics.md (ours).

    Example:
        >>> error_of("dlp.signal", np.array([1.0, 2.5]), np.array([1.0, 2.0]), "numbers")
        (0.25, (1,), '')
    """
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
        if measure == "numbers":
            exact, truth = exact[..., None], truth[..., None]
        found = agreement(step, exact, truth)
    return found.error, found.token, found.fault


def judged(
    step: str,
    actual: Mapping[str, Array],
    truth: Array,
    own: float,
    tolerance: float,
    ties: Callable[[], Ties] = lambda: (),
) -> Judged:
    """Judge one step.

    Args:
        step: Its name.
        actual: The candidate's arrays by name.
        truth: What it should be.
        own: Error of refimpl itself in the candidate's dtype.
        tolerance: Largest error; of counts and bits 0.
        ties: Where it differs, if all of that is near ties; asked only if it is off otherwise.

    Returns:
        What became of it.
    """
    if step not in actual:
        return Judged(step, "missing", inf, tolerance, own, fault="missing")
    if not isfinite(own):
        return Judged(step, "conditional", fault=UNRESOLVED)
    measure = measure_of(step, truth.dtype)
    error, where, fault = error_of(step, actual[step], truth, measure)
    unresolved = own >= 1 and measure in ("rows", "numbers")  # refimpl, too, as far off as zeros
    if error <= tolerance and tolerance >= 1:  # as far off as nothing but zeros: a push, or a sum,
        fault = ""  # that the dtype does not resolve
    if not fault and error <= tolerance:
        return Judged(step, "pass", error, tolerance, own, where)
    nothing_left = step == "absorption_coefficient" and "NaN" in fault  # 0 / 0
    if unresolved and (not fault or nothing_left):
        words = f"{fault}; {UNRESOLVED}" if fault else UNRESOLVED
        return Judged(step, "conditional", error, tolerance, own, where, words)
    near = () if fault else ties()
    status: Status = "pass" if near else "divergent"
    return Judged(step, status, error, tolerance, own, where, fault, near)
