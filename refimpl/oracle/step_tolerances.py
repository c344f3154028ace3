"""The tolerance of every step of a case, with what earlier steps within theirs make of it.

A base is a steep function of signals that lie close together, and a corrected allocation one of
coefficients. A candidate whose signals are within their tolerance must not fail for that.
"""

from collections.abc import Callable, Mapping

import numpy as np

from refimpl.method.correction import centred_log, clipped_log
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, once_per_case
from refimpl.oracle.judging.tolerance import EPS, FLOOR_16, SPARSEGPT_FACTOR, tolerance_of
from refimpl.oracle.recipe import signal_of
from refimpl.oracle.reference_errors import reference_run
from refimpl.oracle.stepwise import case_inputs
from refimpl.oracle.table.inputs import StepInputs

Moved = Callable[[StepInputs, str, Mapping[str, float]], float]


@once_per_case
def step_tolerances(case: Case, dtype: str, stepwise: bool = False) -> Mapping[str, float]:
    """The largest error of every step by name; 0 for counts and bits.

    ``max(8 own + 64 eps, moved + 64 eps)``: `moved` is how far a base moves when the signals
    behind it do, and a corrected allocation when its base and the coefficients do, by as much as
    they may be off. Step by step nothing moves: each is fed the case's numbers.
    """
    errors = reference_run(case, dtype, stepwise).errors
    tolerances = {
        name: tolerance_of(name, truth, errors[name], dtype, stepwise)
        for name, truth in case.expected.items()
    }
    if not stepwise:
        inputs = case_inputs(case)
        moving: list[tuple[str, Moved, str]]
        moving = [(f"{base}.base", _base_moved, base) for base in case.recipe.bases]
        moving += [(f"{base}.corrected", _correction_moved, base) for base in case.recipe.bases]
        moving += [(f"{x}.corrected", _error_moved, x) for x in ("arrival", "divergence")]
        for step, moved, name in (x for x in moving if x[0] in tolerances):
            floor = tolerance_of(step, case.expected[step], 0.0, dtype)
            widened = moved(inputs, name, tolerances) + floor
            tolerances[step] = max(tolerances[step], widened)
    if "coarse.stderr" in tolerances:  # a difference of coefficients: off by as much as these
        ratio, stderr = (case.expected[f"coarse.{x}"] for x in ("absorption_coefficient", "stderr"))
        off = tolerances["coarse.absorption_coefficient"] * ratio.max()
        tolerances["coarse.stderr"] += off / (stderr.max() or 1.0)
    return {
        name: x + moved_by_rounding(case, name, dtype) if x else x for name, x in tolerances.items()
    }


def _base_moved(inputs: StepInputs, base: str, tolerances: Mapping[str, float]) -> float:
    """How far a base moves with its signals."""
    name = signal_of(base)
    if name not in inputs.signals:
        return 0.0
    return moved_by(
        lambda signal: inputs.per_block(inputs.projected(inputs.base(base, {name: signal}))),
        inputs.signals[name],
        tolerances[name],
    )


def _correction_moved(inputs: StepInputs, base: str, tolerances: Mapping[str, float]) -> float:
    """How far a corrected allocation moves with its base and with the coefficients."""
    dense, name = inputs.base(base, {}), "absorption_coefficient"
    ratios = inputs.number(name)
    u = clipped_log(ratios)
    by_base = moved_by(lambda x: inputs.corrected(x, u), dense, tolerances[f"{base}.base"])
    return by_base + moved_by(
        lambda x: inputs.corrected(dense, clipped_log(x)), ratios, tolerances[name]
    )


def _error_moved(inputs: StepInputs, correct: str, tolerances: Mapping[str, float]) -> float:
    """How far the first base, corrected by arrival or divergence, moves with it and the errors."""
    base = inputs.recipe.bases[0]
    dense, errors = inputs.base(base, {}), inputs.errors(correct)
    name = "pruned.divergence" if correct == "divergence" else "pruned.0.drift"
    u = centred_log(errors)
    by_base = moved_by(lambda x: inputs.corrected(x, u), dense, tolerances[f"{base}.base"])
    return by_base + moved_by(
        lambda x: inputs.corrected(dense, centred_log(x)), errors, tolerances[name]
    )


def moved_by(function: Callable[[Array], Array], x: Array, relative: float) -> float:
    """How far a function of x, [L] or [L, ...], moves when each of x is `relative` off, t.

    ``max_k sum_i |f(x with x_i (1 + t)) - f(x)|_k / max |f(x)|``, the larger of that and
    1 / (1 + t); a t of more than 1 counts as 1.
    """
    at, moved = function(x), np.zeros(())
    for i in range(len(x)):
        changes = []
        for factor in (1 + min(relative, 1.0), 1 / (1 + min(relative, 1.0))):
            other = np.array(x, np.float64)
            other[i] *= factor
            changes.append(np.abs(function(other) - at))
        moved = moved + np.maximum(*changes)
    return float(moved.max() / (np.abs(at).max() or 1.0))


def moved_by_rounding(case: Case, step: str, dtype: str) -> float:
    """What is added to the tolerance of SparseGPT's steps behind block 0, else 0.

    Its new weights are rounded to the dtype of the file. Where that is coarser than the
    candidate's, one that lies between two numbers may become either, in a block that is shown or
    not, and what follows moves by units of the file's dtype.
    """
    if not step.startswith("sparsegpt") or ".blocks.0." in step:
        return 0.0
    names = {weight.stored.numpy_dtype.name for weight in case.model.weights.values()}
    unit = max((EPS[name] for name in names & EPS.keys()), default=0.0)
    return SPARSEGPT_FACTOR * FLOOR_16 * unit if unit > EPS[dtype] else 0.0
