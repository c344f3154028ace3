"""Where a candidate's choices differ from the truth, if rounding explains that."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import inf, isfinite

import numpy as np

from refimpl.model.experts import ROUTER
from refimpl.model.ops import Array
from refimpl.oracle.case import FACTOR
from refimpl.oracle.judging.measures import UNCHANGED, Positions, lost
from refimpl.oracle.judging.pruner_scores import (
    dense_scores,
    linear_of,
    scores_of,
    sums_behind,
)
from refimpl.oracle.judging.ties import (
    count_ties,
    keep_ties,
    outlier_ties,
    rounding_ties,
    sequential_ties,
    turnable,
)
from refimpl.oracle.judging.tolerance import EPS, ERROR_FACTOR, tolerance_of
from refimpl.oracle.own_inputs import Truth
from refimpl.oracle.reference_errors import (
    coefficient_of,
    is_drift,
    moved_by_rounding,
    own_errors,
)
from refimpl.oracle.routing import router_ties

TIE_SHARE = 1e-3  # largest share of a linear's decisions that may be near ties, and two more


def ties_of(
    truth: Truth, dtype: str, step: str, array: Array, tolerances: Mapping[str, float]
) -> Positions:
    """Where a discrete step differs; none if rounding does not explain all of them."""
    case, right, recipe = truth.case, truth.steps[step], truth.case.recipe
    first, last = step.split(".")[0], step.rsplit(".", 1)[-1]
    if last == "counts":
        name = f"{recipe.bases[0]}.base" if first == "pruned" else f"{first}.corrected"
        sizes, shares = case.model.config.linear_sizes, truth.value(name)
        return count_ties(array, right, shares, sizes, recipe.sparsity, tolerances[name])
    if step == "owl.signal":
        m = float(recipe.request("owl").options["m"])
        sums = [x for name, x in tolerances.items() if fnmatchcase(name, "pruned.*.squares")]
        relative = max(sums, default=tolerance_of("score", np.zeros(1), 0.0, dtype))
        scores = dense_scores(case.model, truth.steps, len(case.inputs["token_ids"]))
        return outlier_ties(array, right, scores, m, tolerances[step], relative, TIE_SHARE)
    if step.endswith(ROUTER):
        return router_ties(truth, step, array, dtype)
    if last == "keep":
        score, group, slack = score_behind(truth, step, dtype)
        explain = sequential_ties if first == "sparsegpt_pattern" else keep_ties
        ties = explain(array, right, score, group, np.minimum(slack, 1.0))
        near = turnable(right, score, group, np.minimum(slack / 4, 1.0))  # twice refimpl's error
        own = own_errors(case, dtype, not truth.is_chained(step))[step]
        most = 2 + max(TIE_SHARE * score.size, ERROR_FACTOR * own, near)
        return ties if len(ties) <= most else ()
    if first == "sparsegpt" and last == "weight":
        stored = case.model.weights[step.removeprefix("sparsegpt.")].stored.numpy_dtype
        if EPS[stored.name] > EPS[dtype]:
            ties = rounding_ties(array, right, stored, tolerances[step])
            slack = score_behind(truth, step.replace(".weight", ".keep"), dtype)[2]
            share = min(slack.max(), 1.0) / EPS[stored.name]
            most = max(2, TIE_SHARE * right.size, right.size * share)
            return ties if len(ties) <= most else ()
    return ()


def carries_nothing(truth: Truth, step: str, dtype: str) -> bool:
    """Whether a decision of SparseGPT is on products that were not written, some next to nothing.

    An input of 0 scores 0, and all its weights go; one that carries ever so little scores as high
    as damping makes it. Behind a GELU or a ReLU it may be either.
    """
    if not step.startswith("sparsegpt") or not step.endswith(".keep"):
        return False
    name = sums_behind(step)
    own = [x for other, x in own_errors(truth.case, dtype).items() if other.endswith(".products")]
    slip = tolerance_of("score", np.zeros(1), max(filter(isfinite, own), default=0.0), dtype)
    carried = np.sqrt(np.diag(truth.value(name)))
    least = slip * np.sqrt(np.mean(np.square(carried)))
    return name not in truth.given and bool((carried <= least).any())


def without_rounding(truth: Truth, actual: Mapping[str, Array], dtype: str) -> Mapping[str, Array]:
    """The arrays, with 0 for a drift that should be 0 and nearly is, and NaN for its coefficient.

    Alignments alike. Where the clean pass had another batch, the drift of a block that lost nothing
    is that of two right states, which went through the blocks: the tolerances of both at most.
    """
    own, expected = own_errors(truth.case, dtype), truth.case.expected
    states = [k for k in expected if k.endswith(".resid_post")]
    off = [tolerance_of(k, expected[k], own[k], dtype) for k in states]
    floor = 2 * max(off, default=0.0)
    steps, ratio = truth.steps, coefficient_of("pruned.")
    arrays = {k: x for k, x in actual.items() if k in expected and x.shape == expected[k].shape}
    arrays = {k: x for k, x in arrays.items() if x.dtype.name in EPS}
    with np.errstate(all="ignore"):  # a candidate's numbers may be of any size
        for name in [k for k in arrays if k.startswith("pruned.") and k.endswith(".alignment")]:
            right, rest = steps[name], np.square(floor) + 4 * EPS[arrays[name].dtype.name]
            nothing = (lost(right) <= UNCHANGED) & (np.abs(arrays[name] - right) <= rest)
            arrays[name] = np.where(nothing, right, arrays[name].astype(np.float64))
        for name in [k for k in arrays if is_drift(k, "pruned.")]:
            right, found = steps[name], arrays[name].astype(np.float64)
            nothing = (right == 0) & (found > 0) & (found <= floor)
            arrays[name] = np.where(nothing, 0.0, found)
            if nothing[0] and ratio in arrays:
                own = np.arange(len(arrays[ratio])) == int(name.split(".")[1])
                arrays[ratio] = np.where(own, np.nan, arrays[ratio].astype(np.float64))
    return {**actual, **arrays}


def score_behind(truth: Truth, step: str, dtype: str) -> tuple[Array, int, Array]:
    """Scores [out, in] behind a decision, their group as in `keep_ties`, and relative errors.

    Of sums that the candidate wrote, the error is that of the arithmetic on them. Sums that it did
    not write have refimpl's own; and what an input carries is off by rounding of what it is made
    of, which is of the size of the others: an input that carries less than most is off by as much
    more of itself. Errors are of each input, [in], or of all, [1], and may be beyond 1. To those of
    SparseGPT is added what earlier blocks make that were rounded the other way.
    """
    case, sums = truth.case, sums_behind(step)
    pruner, block, linear = linear_of(step)
    weight, own = case.model.block(block, np.float64)[f"{linear}.weight"], own_errors(case, dtype)
    total = None if pruner == "magnitude" else truth.value(sums)
    sequences, how = len(case.inputs["token_ids"]), (case.recipe.pattern, case.recipe.damping)
    score, group = scores_of(step, weight, truth.steps[step], total, sequences, how)
    floor = tolerance_of("score", np.zeros(1), 0.0, dtype)
    if total is None or (sums in truth.given and not pruner.startswith("sparsegpt")):
        return score, group, np.array([floor])
    if not pruner.startswith("sparsegpt"):
        slack, size = tolerance_of("score", np.zeros(1), own[sums], dtype), np.sqrt(total)
        typical = np.sqrt(total.mean())
    else:
        own = own_errors(case, dtype, not truth.is_chained(step))
        slack = tolerance_of(f"{step}score", np.zeros(1), own[f"{FACTOR}{block}"], dtype)
        slack += moved_by_rounding(case, step, dtype)
        if group < 0:
            return score, group, np.array([slack])
        # A weight is off by what those before it in the row left of themselves: small ones by more.
        size, typical = np.sqrt(score), np.sqrt(score.mean(axis=1, keepdims=True))
    small = np.divide(typical, size, out=np.full(size.shape, inf), where=size > 0)
    return score, group, slack * np.maximum(small, 1.0)
