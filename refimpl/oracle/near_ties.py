"""Where a candidate's choices differ from the truth, if rounding explains that."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import product
from math import inf, isfinite

import numpy as np

from refimpl.method.correction import centred_log
from refimpl.model.experts import ROUTER
from refimpl.model.ops import Array
from refimpl.model.statistics import input_of
from refimpl.oracle.case import Case, case_inputs, once_per_case
from refimpl.oracle.judging.measures import (
    ALIGNMENT,
    FORWARD,
    UNCHANGED,
    Positions,
    StepResult,
    lost,
    step_result,
)
from refimpl.oracle.judging.pruner_scores import (
    dense_scores,
    sparsegpt_error,
    sparsegpt_scores,
    unpacked,
)
from refimpl.oracle.judging.ties import (
    count_ties,
    keep_ties,
    outlier_ties,
    positions,
    rounding_ties,
    sequential_ties,
    turnable,
)
from refimpl.oracle.judging.tolerance import EPS, ERROR_FACTOR, tolerance_of
from refimpl.oracle.reference_errors import (
    ReferenceRun,
    coefficient_of,
    is_drift,
    moved_by_rounding,
)
from refimpl.oracle.routing import router_ties
from refimpl.oracle.steps import every_array
from refimpl.pruners.decision import PrunerOptions, decision
from refimpl.pruners.pattern import parse_pattern
from refimpl.pruners.sparsegpt import WIDTH
from refimpl.pruners.wanda import wanda_score

BY_PRUNING = {"pruned.", "arrival.", "divergence."}
ERRORS = {"arrival": ".drift", "divergence": ".divergence"}  # what each corrects by
TIE_SHARE = 1e-3  # largest share of a linear's decisions that may be near ties, and two more


def steps_after(case: Case, step: str) -> set[str]:
    """Prefixes, such as `wanda.`, of the steps that another choice at this one changes."""
    first, last = step.split(".")[0], step.rsplit(".", 1)[-1]
    if last == "weight":  # rounded to the stored dtype the other way: see `moved_by_rounding`
        return set()
    if step.endswith(ROUTER):  # the trace points are computed for the candidate's own choice
        rest = {x for x in case.expected if x.split(".")[0] not in FORWARD}
        return rest - {"alphapruning.signal", "alphapruning_mid.signal"}
    if first == "pruned":
        return BY_PRUNING
    if last not in ("signal", "counts"):
        return {f"{first}."}
    counted = {"magnitude.", "wanda.", "sparsegpt."} if first == case.recipe.bases[0] else set()
    if last == "signal":  # the base itself turns, which the perturbation by pruning is made at
        counted |= {f"{first}."} | (BY_PRUNING if counted else set())
    return counted


def linear_of(step: str) -> tuple[str, int, str]:
    """The pruner, block and linear of a step such as `wanda.blocks.1.experts.3.down_proj.keep`."""
    pruner, _, block, rest = step.split(".", 3)
    return pruner, int(block), rest.rpartition(".")[0]


def ties_of(
    case: Case,
    reference: ReferenceRun,
    dtype: str,
    step: str,
    actual: Mapping[str, Array],
    tolerances: Mapping[str, float],
) -> Positions:
    """Where a discrete step differs; none if rounding does not explain all of them."""
    array, truth, recipe = actual[step], case.expected[step], case.recipe
    first, last = step.split(".")[0], step.rsplit(".", 1)[-1]

    if last == "counts":
        name = f"{recipe.bases[0]}.base" if first == "pruned" else f"{first}.corrected"
        sizes, expected = case.model.config.linear_sizes, case.expected[name]
        return count_ties(array, truth, expected, sizes, recipe.sparsity, tolerances[name])
    if step == "owl.signal":
        scores = dense_scores(case.model, case.inputs["token_ids"])
        floor = tolerance_of("score", np.zeros(1), 0.0, dtype)
        m = float(recipe.request("owl").options["m"])
        of_scores = [x for name, x in tolerances.items() if fnmatchcase(name, "wanda.*.score")]
        relative = max(of_scores, default=floor)
        return outlier_ties(array, truth, scores, m, tolerances[step], relative, TIE_SHARE)
    if step.endswith(ROUTER):
        return router_ties(case, step, array, reference.errors[step], tolerances, dtype)
    if last == "keep":
        moved = moved_by_rounding(case, step, dtype)
        score, group, slack = score_behind(case, reference, step, dtype, moved)
        explain = sequential_ties if first == "sparsegpt_pattern" else keep_ties
        ties = explain(array, truth, score, group, np.minimum(slack, 1.0))
        few = np.minimum(slack / 4, 1.0)  # twice refimpl's own error
        near = turnable(truth, score, group, few)
        most = 2 + max(TIE_SHARE * score.size, ERROR_FACTOR * reference.errors[step], near)
        if ties and len(ties) <= most:
            return ties
        if first == "sparsegpt":
            return dead_ties(case, reference, dtype, step, array, np.minimum(slack, 1.0))
        return ()
    if first == "sparsegpt" and last == "weight":
        stored = case.model.weights[step.removeprefix("sparsegpt.")].stored.numpy_dtype
        if EPS[stored.name] > EPS[dtype]:
            ties = rounding_ties(array, truth, stored, tolerances[step])
            slack = score_behind(case, reference, step.replace(".weight", ".keep"), dtype)[2]
            share = min(slack.max(), 1.0) / EPS[stored.name]
            most = max(2, TIE_SHARE * truth.size, truth.size * share)
            return ties if len(ties) <= most else ()
    return ()


def near_zero(case: Case, result: StepResult, actual: Mapping[str, Array]) -> bool:
    """Whether a step has no relative error because a number should be zero, and nearly is.

    A sum is off by no more than its tolerance, and a tenth, of its largest number; a divergence by
    no more than that of the largest logit, whose rounding it cannot be below.
    """
    sums = result.step.endswith((".squares", ".products", ".divergence"))
    if not sums or result.status != "divergent" or result.fault or isfinite(result.error):
        return False
    truth, relative = case.expected[result.step], min(result.tolerance, 0.1)
    missed = np.abs(actual[result.step].astype(np.float64) - truth)
    if result.step.endswith(".divergence"):
        floor = relative * np.abs(case.expected["logits"]).max()
        return bool((missed <= np.where(truth == 0, floor, relative * truth.max())).all())
    return bool(missed.max() <= relative * np.abs(truth).max())


def without_rounding(
    case: Case, actual: Mapping[str, Array], tolerances: Mapping[str, float], stepwise: bool
) -> Mapping[str, Array]:
    """The arrays, with 0 for a drift that should be 0 and nearly is, and NaN for its coefficient.

    An alignment that should be 1 and nearly is, is as it should be.

    Where the clean pass had another batch, the drift of a block that loses nothing is that of two
    right states: the tolerances of both at most, step by step those of all blocks.
    """
    states = [x for name, x in tolerances.items() if name.endswith(".resid_post")]
    floor = 2 * (sum(states) if stepwise else max(states, default=0.0))
    expected, ratio = case.expected.items(), coefficient_of("pruned.")
    arrays = {k: actual[k] for k, x in expected if k in actual and actual[k].shape == x.shape}
    arrays = {k: x for k, x in arrays.items() if x.dtype.name in EPS}
    with np.errstate(all="ignore"):  # a candidate's numbers may be of any size
        for name in [k for k in arrays if k.startswith("pruned.") and k.endswith(ALIGNMENT)]:
            truth, rest = case.expected[name], np.square(floor) + 4 * EPS[arrays[name].dtype.name]
            nothing = (lost(truth) <= UNCHANGED) & (np.abs(arrays[name] - truth) <= rest)
            arrays[name] = np.where(nothing, truth, arrays[name].astype(np.float64))
        for name in [k for k in arrays if is_drift(k, "pruned.")]:
            truth, found = case.expected[name], arrays[name].astype(np.float64)
            nothing = (truth == 0) & (found > 0) & (found <= floor)
            arrays[name] = np.where(nothing, 0.0, found)
            if nothing[0] and ratio in arrays:
                own = np.arange(len(arrays[ratio])) == int(name.split(".")[1])
                arrays[ratio] = np.where(own, np.nan, arrays[ratio].astype(np.float64))
    return {**actual, **arrays}


def by_own_errors(case: Case, result: StepResult, actual: Mapping[str, Array]) -> StepResult:
    """The result on an allocation compared with the one that the candidate's own errors lead to.

    Divergences are right to a share of the largest, and one that should be 0 is neutral, where next
    to nothing is not: so small ones, which passed, may lead to another correction.
    """
    correct, _, last = result.step.partition(".")
    if result.status != "divergent" or result.fault or last != "corrected" or correct not in ERRORS:
        return result
    names = [x for x in case.expected if x.startswith("pruned.") and x.endswith(ERRORS[correct])]
    found = {x: actual[x] for x in names if x in actual and actual[x].dtype.name in EPS}
    if any(x not in found or found[x].shape != case.expected[x].shape for x in names):
        return result
    own = {x: np.maximum(actual[x].astype(np.float64), 0.0) for x in names}
    if not all(np.isfinite(x).all() for x in own.values()):
        return result
    inputs = case_inputs(replace(case, expected={**case.expected, **own}))
    name, u = case.recipe.bases[0], centred_log(inputs.errors(correct))
    truth = inputs.allocated(name, inputs.base(name, {}), u).corrected_sparsity
    again = step_result(result.step, actual, truth, result.own, result.tolerance)
    return again if again.status == "pass" else result


def by_typical_row(result: StepResult, actual: Mapping[str, Array], truth: Array) -> StepResult:
    """The result on products [in, in] whose small rows are compared with a typical one.

    An input is off by rounding of what it is made of, which is of the size of the others: behind a
    GELU, where ``1 + erf`` cancels, one that carries next to nothing has few correct digits.
    """
    off = result.status == "divergent" and not result.fault and isfinite(result.error)
    if not (off and result.step.endswith(".products") and result.tolerance < 1):
        return result
    missed, size = (
        np.linalg.norm(x, axis=1) for x in (actual[result.step].astype(np.float64) - truth, truth)
    )
    typical = np.sqrt(np.mean(np.square(size)))
    error = float(np.max(missed / np.maximum(size, typical)))
    return result if error > result.tolerance else replace(result, status="pass", error=error)


def dead_ties(
    case: Case, reference: ReferenceRun, dtype: str, step: str, bits: Array, slack: Array
) -> Positions:
    """Where SparseGPT decides otherwise because an input that carries next to nothing carries 0.

    Such an input scores 0, and all its weights go; one that carries ever so little scores as high
    as damping makes it. Behind a GELU float32 rounds to 0 what float64 does not; and in 16 bits a
    ReLU may let through what should be 0.
    """
    _, block, linear = linear_of(step)
    sequences, damping = len(case.inputs["token_ids"]), case.recipe.damping
    dense, products, slip = _sparsegpt_inputs(case, reference, step, dtype)
    keep, truth = (unpacked(x, dense.shape[1]) for x in (bits, case.expected[step]))
    carried = np.sqrt(np.diag(products))
    least = slip * np.sqrt(np.mean(np.square(carried)))
    # Of the equal scores of dead inputs the last ones stay, if the budget ends among them.
    dead = (carried > 0) & (carried <= least) & (2 * keep.sum(axis=0) <= truth.sum(axis=0))
    alive = (carried == 0) & keep.any(axis=0) & (EPS[dtype] > EPS["float32"]) & np.isfinite(least)
    mostly = alive & (2 * (~keep).sum(axis=0) <= (~truth).sum(axis=0))
    index = list(case.model.config.linears[block]).index(linear)
    goal = int(case.expected[f"{case.recipe.bases[0]}.counts"][block, index])
    none = np.zeros_like(alive)  # what a revived input changes may look like another given up
    for given_up, revived in product((dead, none), (alive, mostly, none)):
        if not (given_up | revived).any():
            continue
        other = np.where(given_up | given_up[:, None], 0.0, products)
        other[revived, revived] = np.square(least * 1e-3)  # next to nothing: only that it is not 0
        right, _ = decision(dense, other, sequences, goal, PrunerOptions("sparsegpt", damping))
        score, _ = sparsegpt_scores(dense, other, sequences, right, damping)
        differ, right_bits = int((keep != right).sum()), np.packbits(right, axis=1)
        near = turnable(right_bits, score, -WIDTH, slack / 4)
        few = differ <= 2 + max(TIE_SHARE * score.size, near)
        if few and (not differ or keep_ties(bits, right_bits, score, -WIDTH, slack)):
            return positions(np.argwhere(keep != truth))
    return ()


def score_behind(
    case: Case, reference: ReferenceRun, step: str, dtype: str, moved: float = 0.0
) -> tuple[Array, int, Array]:
    """Scores [out, in] behind a decision, their group as in `keep_ties`, and relative errors.

    What an input carries is off by rounding of what it is made of, which is of the size of the
    others: an input that carries less than most is off by as much more of itself. Errors are of
    each input, [in], or of all, [1], and may be beyond 1. `moved` is added to those of SparseGPT,
    as earlier blocks may have been rounded the other way.
    """
    pruner, block, linear = linear_of(step)
    if pruner == "magnitude":
        weight = case.model.block(block, np.float64)[f"{linear}.weight"]
        slack = tolerance_of("score", np.zeros(1), 0.0, dtype)
        return np.abs(weight), -weight.shape[1], np.array([slack])
    if not pruner.startswith("sparsegpt"):
        group = parse_pattern(case.recipe.pattern).group if pruner == "pattern" else 0
        squares = f"{pruner}.blocks.{block}.{input_of(linear)}.squares"  # behind the score
        slack = tolerance_of("score", np.zeros(1), reference.errors[squares], dtype)
        carried = np.sqrt(case.expected[squares])
        typical = np.sqrt(np.mean(np.square(carried)))
        small = np.divide(typical, carried, out=np.full(carried.shape, inf), where=carried > 0)
        score = reference.steps.get(step.removesuffix("keep") + "score")
        if score is None:  # of the dense model
            weight = case.model.block(block, np.float64)[f"{linear}.weight"]
            score = wanda_score(weight, reference.steps[squares] / len(case.inputs["token_ids"]))
        return score, group, slack * np.maximum(small, 1.0)
    sequences, damping = len(case.inputs["token_ids"]), case.recipe.damping
    weight, products, _ = _sparsegpt_inputs(case, reference, step, dtype)
    keep = unpacked(case.expected[step], weight.shape[1])
    in_order = pruner == "sparsegpt_pattern"
    group = parse_pattern(case.recipe.pattern).group if in_order else WIDTH
    score, _ = sparsegpt_scores(weight, products, sequences, keep, damping, group)
    known = {other: x for other, x in case.expected.items() if other.endswith(".products")}
    name = f"{pruner}.blocks.{block}.{input_of(linear)}.products"
    known[name] = products  # of a block that is not shown, too: errors grow with depth
    errors = [
        sparsegpt_error(reference.steps[other], total, sequences, damping)
        for other, total in known.items()
    ]
    slack = tolerance_of(step + "score", np.zeros(1), max(errors), dtype) + moved
    if not in_order:
        return score, -WIDTH, np.array([slack])
    # A weight is off by what those before it in the row left of themselves: small ones by more.
    size = np.sqrt(score)
    typical = np.sqrt(score.mean(axis=1, keepdims=True))
    small = np.divide(typical, size, out=np.full(size.shape, inf), where=size > 0)
    return score, group, slack * np.maximum(small, 1.0)


@once_per_case
def products_of_all(case: Case) -> Mapping[str, Array]:
    """SparseGPT's products in float64, of the blocks that are not shown too."""
    every = every_array(replace(case_inputs(case), given=None))
    return {name: x for name, x in every.items() if name.endswith(".products")}


def _sparsegpt_inputs(
    case: Case, reference: ReferenceRun, step: str, dtype: str
) -> tuple[Array, Array, float]:
    """Dense weights and products behind a decision of SparseGPT, and the products' tolerance."""
    pruner, block, linear = linear_of(step)
    name = f"{pruner}.blocks.{block}.{input_of(linear)}.products"
    errors = reference.errors
    every = [x for other, x in errors.items() if other.endswith(".products") and isfinite(x)]
    own = errors.get(name, max(every, default=0.0))
    weight = case.model.block(block, np.float64)[f"{linear}.weight"]
    products = case.expected[name] if name in case.expected else products_of_all(case)[name]
    return weight, products, tolerance_of("score", np.zeros(1), own, dtype)
