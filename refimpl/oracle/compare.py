"""One step of a candidate against the truth: how far it is off, and whether that is too far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal

import numpy as np
import numpy.typing as npt

from refimpl.jobs.agreement import agreement
from refimpl.jobs.causes import usual_causes
from refimpl.model.ops import Array

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
        near_ties: Bits that differ where the score lies within rounding of its threshold.
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


@dataclass(frozen=True)
class Choice:
    """What a decision was made by.

    Args:
        score: Scores, [out, in].
        group: How many consecutive inputs are compared with each other; a row if 0.
        relative: How far scores may be off.
        most: Largest number of near ties.
    """

    score: Array
    group: int
    relative: float
    most: int

    def ties(self, actual: Array, truth: Array) -> tuple[tuple[int, ...], ...]:
        """Where two decisions, [out, in / 8] in bits, differ within rounding."""
        out, width = self.score.shape
        rows = (out, width) if self.group == 0 else (out * width // self.group, self.group)
        keep, right = (
            np.unpackbits(x.astype(np.uint8), axis=1, count=width).astype(np.bool_).reshape(rows)
            for x in (actual, truth)
        )
        tied = near_ties(keep, right, self.score.reshape(rows), self.relative)
        return tuple(map(tuple, np.argwhere(tied.reshape(out, width)).tolist()))


def measure_of(step: str, kind: np.dtype[np.generic]) -> Measure:
    """How a step is measured.

    Args:
        step: Its name.
        kind: Dtype of its truth.

    Returns:
        "rows": relative error of the worst row (tokens of the forward; rows of rewritten weights);
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
    return "rows" if forward or step.endswith((".weight", ".products")) else "numbers"


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
            actual, truth = (np.unpackbits(x.astype(np.uint8), axis=-1) for x in (actual, truth))
        wrong = np.argwhere(actual != truth)
        return float(len(wrong)), tuple(wrong[0].tolist()) if len(wrong) else (), ""
    if actual.dtype.kind != "f" and actual.dtype.name != "bfloat16":
        return inf, (), f"dtype {actual.dtype}, expected a float"
    exact = actual.astype(np.float64)
    if measure == "numbers":
        exact, truth = exact[..., None], truth[..., None]
    found = agreement(step, exact, truth)
    return found.error, found.token, found.fault


def near_ties(
    keep: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_], score: Array, relative: float
) -> npt.NDArray[np.bool_]:
    """Which decisions may go either way: their score lies within rounding of the row's threshold.

    A weight that should go may stay if its score is within ``relative`` of the lowest that stays in
    its row, and one that should stay may go if it is as near to the highest that goes; as many of
    a row have to stay as should.

    Args:
        keep: The candidate's decision, [rows, n].
        truth: The right one, [rows, n].
        score: Scores that are compared with each other, row by row, [rows, n], at least 0.
        relative: How far scores may be off.

    Returns:
        True where the decisions differ within rounding, [rows, n].

    Source:
        ours.

    Example:
        >>> truth = np.array([[True, False, True]])
        >>> other = np.array([[False, True, True]])
        >>> near_ties(other, truth, np.array([[1.0, 0.9999999, 5.0]]), 1e-6).tolist()
        [[True, True, False]]
    """
    lowest = np.min(np.where(truth, score, inf), axis=1, keepdims=True)
    highest = np.max(np.where(truth, 0.0, score), axis=1, keepdims=True)
    could_stay = ~truth & (score >= (1 - relative) * lowest)
    could_go = truth & (highest >= (1 - relative) * score)
    as_many = keep.sum(axis=1, keepdims=True) == truth.sum(axis=1, keepdims=True)
    return (keep != truth) & (could_stay | could_go) & as_many


def judged(
    step: str,
    actual: Mapping[str, Array],
    truth: Array,
    own: float,
    tolerance: float,
    choice: "Choice | None" = None,
) -> Judged:
    """Judge one step.

    Args:
        step: Its name.
        actual: The candidate's arrays by name.
        truth: What it should be.
        own: Error of refimpl itself in the candidate's dtype.
        tolerance: Largest error; of counts and bits 0.
        choice: What a decision was made by, where that is known.

    Returns:
        What became of it.
    """
    if step not in actual:
        return Judged(step, "missing", inf, tolerance, own, fault="missing")
    measure = measure_of(step, truth.dtype)
    error, where, fault = error_of(step, actual[step], truth, measure)
    if measure == "bits" and not fault and error and choice is not None:
        ties = choice.ties(actual[step], truth)
        if len(ties) == error and len(ties) <= choice.most:
            return Judged(step, "pass", error, tolerance, own, where, near_ties=ties)
    passes = not fault and error <= tolerance
    return Judged(step, "pass" if passes else "divergent", error, tolerance, own, where, fault)
