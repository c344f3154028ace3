"""Where a candidate chose otherwise than the truth, and whether rounding explains that."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from math import inf, isfinite

import numpy as np

from refimpl.model.ops import Array
from refimpl.model.statistics import INPUT_OF
from refimpl.oracle.case import Case
from refimpl.oracle.judging.choices import (
    Ties,
    count_ties,
    dense_scores,
    outlier_ties,
    positions,
    rounding_ties,
    sparsegpt_error,
    sparsegpt_scores,
)
from refimpl.oracle.judging.decisions import keep_ties, turnable
from refimpl.oracle.judging.limits import moved_by_rounding
from refimpl.oracle.judging.measures import Judged
from refimpl.oracle.judging.own_errors import Own
from refimpl.oracle.judging.tolerance import FACTOR, UNITS, tolerance_of
from refimpl.oracle.steps import steps
from refimpl.pruners.decision import Pruner, decision
from refimpl.pruners.pattern import parse_pattern
from refimpl.pruners.sparsegpt import WIDTH

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
    case: Case,
    own: Own,
    dtype: str,
    step: str,
    actual: Mapping[str, Array],
    limits: Mapping[str, float],
) -> Ties:
    """Where a discrete step differs, if all of that is within rounding.

    Args:
        case: The case.
        own: What refimpl computes in the dtype.
        dtype: The candidate's.
        step: Name of the step.
        actual: The candidate's arrays.
        limits: Largest errors by name.

    Returns:
        Places; none if rounding does not explain all of them.
    """
    found, truth, recipe = actual[step], case.expected[step], case.recipe
    first, last = step.split(".")[0], step.rsplit(".", 1)[-1]
    linears = case.model.config.linear_shapes

    if last == "counts":
        sizes = np.array([out * width for out, width in linears.values()])
        sparsity = case.expected[f"{first}.corrected"]
        off = limits[f"{first}.corrected"]
        return count_ties(found, truth, sparsity, sizes, recipe.sparsity, off)
    if step == "owl.signal":
        scores = dense_scores(case.model, case.inputs["token_ids"])
        floor = tolerance_of("score", np.zeros(1), 0.0, dtype)
        m = float(recipe.request("owl").options["m"])
        most = max((limits[x] for x in limits if fnmatchcase(x, "wanda.*.score")), default=floor)
        return outlier_ties(found, truth, scores, m, limits[step], most, TIES)
    if last == "keep":
        score, group, slack = score_behind(case, own, step, dtype)
        slack = slack + moved_by_rounding(case, step, dtype)
        ties = keep_ties(found, truth, score, group, np.minimum(slack, 1.0))
        if not ties and first == "sparsegpt":
            return dead_ties(case, own, dtype, step, found, np.minimum(slack, 1.0))
        few = np.minimum(slack / 4, 1.0)  # twice what the dtype costs refimpl
        near = turnable(truth, score, group, few)
        most = max(2, TIES * score.size, FACTOR * own.errors[step], near)
        return ties if len(ties) <= most else ()
    if first == "sparsegpt" and last == "weight":
        stored = case.model.weights[step.removeprefix("sparsegpt.")].stored.array.dtype
        if UNITS[stored.name] > UNITS[dtype]:
            ties = rounding_ties(found, truth, stored, limits[step])
            slack = score_behind(case, own, step.replace(".weight", ".keep"), dtype)[2]
            share = min(slack.max(), 1.0) / UNITS[stored.name]
            most = max(2, TIES * truth.size, truth.size * share)
            return ties if len(ties) <= most else ()
    return ()


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


def dead_ties(case: Case, own: Own, dtype: str, step: str, found: Array, slack: Array) -> Ties:
    """Where SparseGPT decides otherwise because an input that hardly carries anything carries 0.

    Such an input scores 0, and all its weights go; one that carries ever so little scores as high
    as damping makes it. Behind a GELU float32 rounds to 0 what float64 does not; and in 16 bits a
    ReLU may let through what should be 0.

    Args:
        case: The case.
        own: What refimpl computes in the dtype.
        dtype: The candidate's.
        step: Name of the decision.
        found: The candidate's, packed bits of keep.
        slack: How far scores may be off.

    Returns:
        Places; none if that is not what made the difference.
    """
    _, _, block, linear, _ = step.split(".")
    sequences, damping = len(case.inputs["token_ids"]), case.recipe.damping
    dense, products, slip = _behind(case, own, step, dtype)
    keep, truth = (
        np.unpackbits(x.astype(np.uint8), axis=1, count=dense.shape[1]).astype(np.bool_)
        for x in (found, case.expected[step])
    )
    carried = np.sqrt(np.diag(products))
    least = slip * np.sqrt(np.mean(np.square(carried)))
    dead = (carried > 0) & (carried <= least) & ~keep.any(axis=0)
    alive = (carried == 0) & keep.any(axis=0) & (UNITS[dtype] > UNITS["float32"])
    if not (dead | alive).any():
        return ()
    index = list(case.model.config.linear_shapes).index(linear)
    goal = int(case.expected[f"{case.recipe.bases[0]}.counts"][int(block), index])
    other = np.where(dead | dead[:, None], 0.0, products)
    other[alive, alive] = np.square(least * 1e-3)  # next to nothing: only that it is not dead
    right, _ = decision(dense, other, sequences, goal, Pruner("sparsegpt", damping))
    score = sparsegpt_scores(dense, other, sequences, right, damping)
    differ, bits = int((keep != right).sum()), np.packbits(right, axis=1)
    near = turnable(bits, score, -WIDTH, slack / 4)
    if differ > max(2, TIES * score.size, near):
        return ()
    if differ and not keep_ties(found, bits, score, -WIDTH, slack):
        return ()
    return positions(np.argwhere(keep != truth))


def score_behind(case: Case, own: Own, step: str, dtype: str) -> tuple[Array, int, Array]:
    """Scores behind a decision, how they are grouped, and how far they may be off.

    What an input carries is off by rounding of what it is made of, which is of the size of the
    others: an input that carries less than most is off by as much more of itself.

    Args:
        case: The case.
        own: What refimpl computes in the dtype.
        step: Name of the decision.
        dtype: The candidate's.

    Returns:
        Scores [out, in]; the width of a group, 0 for rows, negative for columns of all rows; the
        relative error of each input, [in], or of all, [1]; it may be beyond 1.
    """
    pruner, _, block, linear, _ = step.split(".")
    if pruner != "sparsegpt":
        group = parse_pattern(case.recipe.pattern).group if pruner == "pattern" else 0
        squares = f"{pruner}.blocks.{block}.{INPUT_OF[linear]}.squares"  # behind the score
        slack = tolerance_of("score", np.zeros(1), own.errors[squares], dtype)
        carried = np.sqrt(case.expected[squares])
        typical = np.sqrt(np.mean(np.square(carried)))
        small = np.divide(typical, carried, out=np.full(carried.shape, inf), where=carried > 0)
        return own.found[step.removesuffix("keep") + "score"], group, slack * np.maximum(small, 1.0)
    sequences, damping = len(case.inputs["token_ids"]), case.recipe.damping
    weight, products, _ = _behind(case, own, step, dtype)
    keep = np.unpackbits(case.expected[step], axis=1, count=weight.shape[1]).astype(np.bool_)
    score = sparsegpt_scores(weight, products, sequences, keep, damping)
    shown = {other: x for other, x in case.expected.items() if other.endswith(".products")}
    if not shown:
        every = replace(case.recipe, shown=(int(block),))
        name = f"sparsegpt.blocks.{block}.{INPUT_OF[linear]}.products"
        shown = {name: steps(case.model, case.inputs["token_ids"], every)[name]}
    errors = [
        sparsegpt_error(own.found[other], total, sequences, damping)
        for other, total in shown.items()
    ]
    slack = tolerance_of(step + "score", np.zeros(1), max(errors), dtype)
    return score, -WIDTH, np.array([slack])


def _behind(case: Case, own: Own, step: str, dtype: str) -> tuple[Array, Array, float]:
    """Dense weights and products behind a decision of SparseGPT, and how far products may be off.

    Of a block that is not shown refimpl's own.
    """
    _, _, block, linear, _ = step.split(".")
    name = f"sparsegpt.blocks.{block}.{INPUT_OF[linear]}.products"
    every = [x for other, x in own.errors.items() if other.endswith(".products") and isfinite(x)]
    slip = tolerance_of("score", np.zeros(1), own.errors.get(name, max(every, default=0.0)), dtype)
    weight = case.model.block(int(block), np.float64)[f"{linear}.weight"]
    return weight, case.expected.get(name, own.found[name]), slip
