"""A candidate checked against a case, step by step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refimpl.arguments import checked
from refimpl.errors import RefimplError
from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.model.experts import ROUTER
from refimpl.model.ops import Array
from refimpl.oracle import measures, near_ties
from refimpl.oracle.case import Case, is_choice
from refimpl.oracle.case_folders import FACTS, matching
from refimpl.oracle.measures import (
    EPS,
    FLOOR,
    StepResult,
    error_of,
    judges_sparsegpt,
    kind_of,
    tolerance_of,
)
from refimpl.oracle.truth import Truth, truth_of

Verdict = Literal["pass", "fail", "not judged"]
Way = Literal["own inputs", "stepwise", "chained"]
RIGHT_SO_FAR = ("pass", "unresolved")
NOT_IN_16_BITS = "SparseGPT is judged in float32 and float64 alone"
EXIT: Mapping[Verdict, int] = {"pass": 0, "fail": 1, "not judged": 3}


@dataclass(frozen=True)
class Report:
    """The judgement on each step that was asked for, in the order of execution, by some `way`.

    `unknown` are the candidate's names that are no step, `uncovered` steps that its names do not
    cover. `options` are those of the command that read it.
    """

    case: Case
    dtype: str
    steps: tuple[StepResult, ...]
    unknown: tuple[str, ...]
    way: Way = "own inputs"
    uncovered: tuple[str, ...] = ()
    options: str = ""

    @property
    def first(self) -> StepResult | None:
        """The first divergent step: where to look, as later ones may only follow it."""
        return next((step for step in self.steps if step.status == "divergent"), None)

    @property
    def verdict(self) -> Verdict:
        """Whether the steps agree: a step that was not judged is no pass."""
        if self.first is not None:
            return "fail"
        return "pass" if all(step.status == "pass" for step in self.steps) else "not judged"

    @property
    def is_resolved(self) -> bool:
        """Whether all steps that the dtype resolves agree, and of each kind one step at least.

        Each fine step of the experiment that is not resolved needs its coarse one.
        """
        passed = [step.step for step in self.steps if step.status == "pass"]
        rest = [step.step for step in self.steps if step.status != "pass"]
        coarse = {*map(coarse_step, rest)} - {""}
        return (
            all(step.status in RIGHT_SO_FAR for step in self.steps)
            and {*map(kind_of, rest)} <= {*map(kind_of, passed)}
            and coarse <= {*passed}
        )

    @property
    def unjudged_kinds(self) -> list[str]:
        """Kinds of which no step was judged."""
        judged = {kind_of(x.step) for x in self.steps if x.status in ("pass", "divergent")}
        return [x for x in dict.fromkeys(kind_of(x.step) for x in self.steps) if x not in judged]


@checked
def check(
    case: Case,
    actual: Mapping[str, Any],
    only: tuple[str, ...] = ("*",),
    dtype: str | None = None,
    stepwise: bool = False,
    chained: bool = False,
) -> Report:
    """Check a candidate's arrays against a case, each step on what it wrote for earlier ones.

    Args:
        case: From `read_case`.
        actual: The candidate's arrays, or torch tensors, by the names of the steps.
        only: Steps that are asked for, as shell patterns; every one that matches must be there.
        dtype: The candidate's dtype; the coarsest of its float arrays if None.
        stepwise: Whether the candidate was fed the case's own values at each step
            (docs/how-to/check.md); if not, it ran from the tokens.
        chained: Whether to judge from the tokens, as a part of the arrays is not the candidate's.

    Raises:
        RefimplError: No step asked for, or a dtype that is not compared.

    Example:
        >>> from refimpl.oracle.case import read_case
        >>> case = read_case("fixtures/cases/llama")
        >>> actual = {**case.expected, "blocks.2.v": -case.expected["blocks.2.v"]}
        >>> check(case, case.expected).verdict, check(case, actual).first.step
        ('pass', 'blocks.2.v')
    """
    wanted = asked_steps([*case.expected], only)
    if stepwise and case.recipe.only:
        raise RefimplError(
            f"`stepwise`: {case.name} holds some of the steps",
            "a case of every step, whose values a step-wise candidate reads",
            "omit `stepwise`, or make a case without `only`",
        )
    actual = {name: measures.array_of(x) for name, x in actual.items()}
    names = {x.dtype.name for x in actual.values()} & EPS.keys() if dtype is None else {dtype}
    if not names:
        raise RefimplError(
            "the candidate has no float array",
            f"arrays of {', '.join(EPS)}",
            "add `dtype`, or write the results in the dtype of their computation",
        )
    dtype = max(names, key=lambda name: EPS.get(name, 0.0))
    some = wanted if len(wanted) < len(case.expected) else None
    truth = truth_of(case, actual, dtype, stepwise, chained, some)
    judged, results = near_ties.without_rounding(truth), list[StepResult]()
    for name in wanted:
        if name in actual and name.startswith("sparsegpt") and not judges_sparsegpt(dtype):
            results.append(StepResult(name, "unresolved", fault=NOT_IN_16_BITS))
            continue
        right, numbers = truth.values[name], (truth.own_error(name), truth.tolerance(name))
        ties = partial(near_ties.ties_of, truth, name, actual.get(name, right))
        results.append(_explained(truth, measures.step_result(name, judged, right, *numbers, ties)))
    unknown = tuple(sorted(actual.keys() - case.expected.keys()))
    way: Way = "stepwise" if stepwise else "chained" if chained else "own inputs"
    return Report(case, dtype, tuple(results), unknown, way)


def asked_steps(steps: Sequence[str], only: Sequence[str]) -> list[str]:
    """The steps that `--only` asks for, one or more."""
    if found := matching(steps, only):
        return found
    raise RefimplError(
        f"`only={' '.join(only)}`: no step of the case matches",
        f"names such as {', '.join(steps[:3])}, or patterns such as 'blocks.*'",
        f"choose from the steps in the case's {FACTS}",
    )


def _explained(truth: Truth, result: StepResult) -> StepResult:
    """The result, or another one for a reason that the error of the step does not show."""
    case, name, status, fault = truth.case, result.step, result.status, ""
    actual, dtype = truth.actual, truth.computed_in
    if name not in actual:
        return result
    if status in RIGHT_SO_FAR and _misses_budget(case, name, actual[name]):
        status = "divergent"
        fault = "does not sum to the budget, within half a unit in the last place of each"
    elif status in RIGHT_SO_FAR and (start := _unchanged(case, name, actual, dtype)):
        status, fault = "divergent", f"every bit is that of {start}: nothing was added"
    elif status == "pass" and (answer := _trivial_answer(truth, result)):
        status = "unresolved"
        fault = f"not resolvable in this dtype: {answer} would pass, too"
    elif status != "divergent" or result.fault:
        return result
    elif near_ties.carries_nothing(truth, name):
        status, fault = "conditional", "an input carries next to nothing, and was not written"
    elif EPS[dtype] > EPS["float32"] and any(map(is_choice, truth.missing[name])):
        status, fault = "conditional", "follows from choices that were not written"
    elif near_ties.follows_a_choice(truth, name):
        status = "conditional"
        fault = "a token at a router's edge may have gone to another expert"
    return replace(result, status=status, fault=fault or result.fault)


def _misses_budget(case: Case, step: str, sparsity: Array) -> bool:
    """Whether an allocation [L] prunes another share than asked."""
    if not step.endswith((".base", ".corrected")):
        return False
    weights, asked = case.model.config.linear_sizes.sum(axis=1), case.recipe.sparsity
    share = float(np.vdot(sparsity.astype(np.float64), weights) / weights.sum())
    rounding = EPS[sparsity.dtype.name] / 2 + FLOOR * EPS["float32"]
    return not abs(share - asked) <= rounding * asked


def _trivial_answer(truth: Truth, result: StepResult) -> str:
    """What would pass for a step with nothing of it computed, and is wrong for the case, or ""."""
    step, tolerance, case = result.step, result.tolerance, truth.case
    if result.near_ties and step.endswith(".keep") and not step.endswith(ROUTER):
        off = np.median(near_ties.score_behind(truth, step)[2])
        return "a decision by other scores" if off >= measures.RESOLVABLE["numbers"] else ""
    if result.near_ties and step.endswith(".counts"):
        name = near_ties.shares_behind(truth, step)
        tolerance = 2 * truth.tolerance(name)  # of quotas, either of two may be off
        shares = replace(result, step=name, tolerance=tolerance, near_ties=())
        return _trivial_answer(truth, shares)
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


def _unchanged(case: Case, step: str, actual: Mapping[str, Array], dtype: str) -> str:
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


def coarse_step(step: str) -> str:
    """The step of the same kind at `coarse_eta`, which 16 bits resolve, or ""."""
    rest = step.removeprefix("perturbed.")
    return f"coarse.{rest}" if rest != step or step == "absorption_coefficient" else ""


@checked
def read_candidate(path: str | Path) -> dict[str, Array]:
    """Read a candidate's arrays by name from a safetensors file."""
    return SafetensorsFile(Path(path)).arrays
