"""Wrong answers that a tolerance may not see: what passes with nothing of it computed."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from refimpl.model.experts import ROUTER
from refimpl.model.ops import Array
from refimpl.oracle import near_ties
from refimpl.oracle.case import Case
from refimpl.oracle.judging import measures
from refimpl.oracle.judging.measures import EPS, FLOOR, error_of, tolerance_of
from refimpl.oracle.truth import Truth


def misses_budget(case: Case, step: str, sparsity: Array) -> bool:
    """Whether an allocation [L] prunes another share than asked."""
    if not step.endswith((".base", ".corrected")):
        return False
    weights, asked = case.model.config.linear_sizes.sum(axis=1), case.recipe.sparsity
    share = float(np.vdot(sparsity.astype(np.float64), weights) / weights.sum())
    rounding = EPS[sparsity.dtype.name] / 2 + FLOOR * EPS["float32"]
    return not abs(share - asked) <= rounding * asked


def trivial_answer(truth: Truth, result: measures.StepResult) -> str:
    """What would pass for a step with nothing of it computed, and is wrong for the case, or ""."""
    step, tolerance, case = result.step, result.tolerance, truth.case
    if result.near_ties and step.endswith(".keep") and not step.endswith(ROUTER):
        off = np.median(near_ties.score_behind(truth, step)[2])
        return "a decision by other scores" if off >= measures.RESOLVABLE["numbers"] else ""
    if result.near_ties and step.endswith(".counts"):
        name = near_ties.shares_behind(truth, step)
        tolerance = 2 * truth.tolerance(name)  # of quotas, either of two may be off
        shares = replace(result, step=name, tolerance=tolerance, near_ties=())
        return trivial_answer(truth, shares)
    name, right, (first, *_) = step.partition(".")[0], case.expected[step], case.recipe.bases
    base = f"{name if name in case.recipe.bases else first}.base"
    answers: tuple[tuple[str, str, str | float], ...] = (
        ("absorption_coefficient", "a coefficient of 1", 1.0),
        (".base", "the same sparsity everywhere", case.recipe.sparsity),
        (".corrected", "the base without a correction", base),
        (".corrected", "the same sparsity everywhere", case.recipe.sparsity),
        (".perplexity", "the dense perplexity", "dense.perplexity"),
    )
    if tolerance >= measures.COARSE_DRIFT:
        answers += ((".drift", "a drift of 1", 1.0),)

    def error(steps: Mapping[str, Array], answer: str | float) -> float:
        x, known = steps[answer] if isinstance(answer, str) else answer, steps[step]
        return error_of(step, np.where(np.isnan(known), known, x), known)[0]

    for end, words, answer in answers:
        if step.endswith(end) and (answer in truth.values or not isinstance(answer, str)):
            exact, own = tolerance_of(step, right, 0.0, "float64"), error(truth.values, answer)
            known = error(case.expected, answer) <= exact
            if end == ".corrected" and own <= exact:  # of a correction that differs by block
                errors, log = truth.correction(name)
                known |= bool(np.ptp(log(errors)) > tolerance)
            if not known and own <= tolerance:
                return words
    return ""


def unchanged(case: Case, step: str, actual: Mapping[str, Array], dtype: str) -> str:
    """The state that a block adds to, if the candidate added nothing and rounding is not why."""
    block, _, kind = step.rpartition(".")
    start = f"{block}.resid_pre"
    if kind not in ("resid_mid", "resid_post") or start not in actual.keys() & case.expected.keys():
        return ""
    after = actual[step]
    if not np.array_equal(actual[start], after):
        return ""
    with np.errstate(all="ignore"):  # a candidate's numbers may be of any size
        added, size = case.expected[step] - case.expected[start], after.astype(np.float64)
        return start if np.linalg.norm(added) > 4 * EPS[dtype] * np.linalg.norm(size) else ""
