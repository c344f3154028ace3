"""Where a candidate chose otherwise than the truth, and whether rounding explains that."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from math import inf, isfinite

import numpy as np

from refimpl.model.ops import Array
from refimpl.model.statistics import INPUT_OF
from refimpl.oracle.case import Case
from refimpl.oracle.choices import (
    Ties,
    count_ties,
    dense_scores,
    keep_ties,
    outlier_ties,
    rounding_ties,
    sparsegpt_error,
    sparsegpt_scores,
)
from refimpl.oracle.compare import Judged
from refimpl.oracle.own import Own
from refimpl.oracle.steps import steps
from refimpl.oracle.tolerance import FACTOR, FLOOR_16, SPARSEGPT, UNITS, tolerance_of
from refimpl.pruning.pattern import parse_pattern
from refimpl.pruning.sparsegpt import WIDTH

TIES = 1e-3  # largest share of a linear's decisions that may be near ties, and always two


def steps_after(case: Case, step: str) -> set[str]:
    """Beginnings of the names of steps that another choice at this one changes.

    Args:
        case: The case.
        step: Name of the step.

    Returns:
        Such as `wanda.`.
    """
    first, last = step.split(".")[0], step.rsplit(".", 1)[-1]
    if last == "weight":  # rounded to the stored dtype the other way: see `behind_rounding`
        return set()
    if last not in ("signal", "counts"):
        return {f"{first}."}
    counted = {"wanda.", "sparsegpt."} if first == case.recipe.bases[0] else set()
    return counted | ({f"{first}."} if last == "signal" else set())


def ties_of(
    case: Case, own: Own, dtype: str, step: str, actual: Mapping[str, Array], limit: float
) -> Ties:
    """Where a discrete step differs, if all of that is within rounding.

    Args:
        case: The case.
        own: What refimpl computes in the dtype.
        dtype: The candidate's.
        step: Name of the step.
        actual: The candidate's arrays.
        limit: Largest error of the step.

    Returns:
        Places; none if rounding does not explain all of them.
    """
    found, truth, recipe = actual[step], case.expected[step], case.recipe
    first, last = step.split(".")[0], step.rsplit(".", 1)[-1]
    linears = case.model.config.linear_shapes

    def relative(pattern: str) -> float:
        """The largest tolerance of some steps."""
        errors = [own.errors[name] for name in own.errors if fnmatchcase(name, pattern)]
        return tolerance_of("score", np.zeros(1), max(errors, default=0.0), dtype)

    if last == "counts":
        sizes = np.array([out * width for out, width in linears.values()])
        sparsity = case.expected[f"{first}.corrected"]
        slack = relative(f"{first}.corrected")
        return count_ties(found, truth, sparsity, sizes, recipe.sparsity, slack)
    if step == "owl.signal":
        scores = dense_scores(case.model, case.inputs["token_ids"])
        m = float(recipe.request("owl").options["m"])
        return outlier_ties(found, truth, scores, m, limit, relative("wanda.*.score"), TIES)
    if last == "keep":
        score, group, slack = score_behind(case, own, step, dtype)
        slack += moved_by_rounding(case, step, dtype)
        ties = keep_ties(found, truth, score, group, slack)
        near = turnable(truth, score, group, slack / 4)  # twice what the dtype costs refimpl
        most = max(2, TIES * score.size, FACTOR * own.errors[step], near)
        return ties if len(ties) <= most else ()
    if first == "sparsegpt" and last == "weight":
        stored = case.model.weights[step.removeprefix("sparsegpt.")].stored.array.dtype
        if UNITS[stored.name] > UNITS[dtype]:
            ties = rounding_ties(found, truth, stored, limit)
            slack = score_behind(case, own, step.replace(".weight", ".keep"), dtype)[2]
            most = max(2, TIES * truth.size, truth.size * slack / UNITS[stored.name])
            return ties if len(ties) <= most else ()
    return ()


def moved_by_rounding(case: Case, step: str, dtype: str) -> float:
    """How far a step may move with weights that were rounded the other way.

    SparseGPT's new weights are rounded to the dtype of the file. Where that is coarser than the
    candidate's, one that lies between two numbers may become either, in a block that is shown or
    not, and what follows moves by units of the file's dtype.

    Args:
        case: The case.
        step: Name of the step.
        dtype: The candidate's.

    Returns:
        What is added to the tolerance: of steps of SparseGPT behind block 0, else 0.
    """
    names = {weight.stored.array.dtype.name for weight in case.model.weights.values()}
    unit = max((UNITS[name] for name in names & UNITS.keys()), default=0.0)
    later = step.startswith("sparsegpt.") and not step.startswith("sparsegpt.blocks.0.")
    return SPARSEGPT * FLOOR_16 * unit if later and unit > UNITS[dtype] else 0.0


def near_zero(one: Judged, actual: Mapping[str, Array], truth: Array) -> bool:
    """Whether a step has no relative error because a number should be zero, and nearly is.

    Args:
        one: What became of it.
        actual: The candidate's arrays.
        truth: What it should be.

    Returns:
        Whether a sum of squares or products is off by no more than its tolerance, and a tenth, of
        its largest.
    """
    sums = one.step.endswith((".squares", ".products"))
    if not sums or one.status != "divergent" or one.fault or isfinite(one.error):
        return False
    missed = np.abs(actual[one.step].astype(np.float64) - truth).max()
    return bool(missed <= min(one.tolerance, 0.1) * np.abs(truth).max())


def score_behind(case: Case, own: Own, step: str, dtype: str) -> tuple[Array, int, float]:
    """Scores behind a decision, how they are grouped, and how far they may be off.

    Args:
        case: The case.
        own: What refimpl computes in the dtype.
        step: Name of the decision.
        dtype: The candidate's.

    Returns:
        Scores [out, in]; the width of a group, 0 for rows, negative for columns of all rows; the
        relative error, at most 1.
    """
    pruner, _, block, linear, _ = step.split(".")
    if pruner != "sparsegpt":
        group = parse_pattern(case.recipe.pattern).group if pruner == "pattern" else 0
        squares = f"{pruner}.blocks.{block}.{INPUT_OF[linear]}.squares"  # behind the score
        slack = tolerance_of("score", np.zeros(1), own.errors[squares], dtype)
        return own.found[step.removesuffix("keep") + "score"], group, min(slack, 1.0)
    name = f"sparsegpt.blocks.{block}.{INPUT_OF[linear]}.products"
    sequences, damping = len(case.inputs["token_ids"]), case.recipe.damping
    weight = case.model.block(int(block), np.float64)[f"{linear}.weight"]
    keep = np.unpackbits(case.expected[step], axis=1, count=weight.shape[1]).astype(np.bool_)
    products = case.expected.get(name, own.found[name])
    score = sparsegpt_scores(weight, products, sequences, keep, damping)
    shown = {other: x for other, x in case.expected.items() if other.endswith(".products")}
    if not shown:
        every = replace(case.recipe, shown=(int(block),))
        shown = {name: steps(case.model, case.inputs["token_ids"], every)[name]}
    errors = [
        sparsegpt_error(own.found[other], total, sequences, damping)
        for other, total in shown.items()
    ]
    return score, -WIDTH, min(tolerance_of(step + "score", np.zeros(1), max(errors), dtype), 1.0)


def turnable(truth: Array, score: Array, group: int, relative: float) -> int:
    """How many decisions lie within a relative error of going the other way, and are no equals.

    Args:
        truth: The right ones, packed bits of keep.
        score: Scores behind them, [out, in].
        group: Width of a group, 0 for rows, negative for columns of all rows.
        relative: How far scores may be off.

    Returns:
        Their number.
    """
    width = score.shape[1]
    keep = np.unpackbits(truth.astype(np.uint8), axis=1, count=width).astype(np.bool_)
    if group >= 0:
        parts = [(keep.reshape(-1, group or width), score.reshape(-1, group or width))]
    else:
        parts = [
            (keep[:, i : i - group].reshape(1, -1), score[:, i : i - group].reshape(1, -1))
            for i in range(0, width, -group)
        ]
    count = 0
    for stays, by in parts:
        lowest = np.min(np.where(stays, by, inf), axis=1, keepdims=True)
        highest = np.max(np.where(stays, 0.0, by), axis=1, keepdims=True)
        near = np.where(stays, by <= highest * (1 + relative), by * (1 + relative) >= lowest)
        near &= np.where(stays, by != highest, by != lowest)  # equal ones are told apart by place
        count += int(near.sum())
    return count
