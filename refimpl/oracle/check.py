"""A candidate checked against a case, step by step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from refimpl.arguments import checked
from refimpl.errors import RefimplError
from refimpl.oracle import measures, near_ties
from refimpl.oracle.case import Case
from refimpl.oracle.case_folders import FACTS, NEXT, matching
from refimpl.oracle.diagnosis import diagnosis
from refimpl.oracle.measures import EPS, StepResult, kind_of
from refimpl.oracle.truth import truth_of

Verdict = Literal["pass", "fail", "not judged"]
NOT_IN_16_BITS = "the method is judged in float32 and float64 alone"
EXIT: Mapping[Verdict, int] = {"pass": 0, "fail": 1, "not judged": 3}


@dataclass(frozen=True)
class Report:
    """The judgement on each step that was asked for, in the order of execution.

    `unknown` are the candidate's names that are no step, `uncovered` steps that its names do not
    cover. `options` are those of the command that read it.
    """

    case: Case
    dtype: str
    steps: tuple[StepResult, ...]
    unknown: tuple[str, ...]
    uncovered: tuple[str, ...] = ()
    options: str = ""

    @property
    def first(self) -> StepResult | None:
        """The first divergent step: where to look, as later ones may only follow it."""
        return next((step for step in self.steps if step.status == "divergent"), None)

    @property
    def verdict(self) -> Verdict:
        """Whether all steps that the dtype resolves agree, and of each kind one at least."""
        if self.first is not None:
            return "fail"
        right = all(step.status in ("pass", "unresolved") for step in self.steps)
        return "pass" if right and not self.unjudged_kinds else "not judged"

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
) -> Report:
    """Check a candidate's arrays against a case, each step on what it wrote for earlier ones.

    Args:
        case: From `read_case`.
        actual: The candidate's arrays, or torch tensors, by the names of the steps.
        only: Steps that are asked for, as shell patterns; every one that matches must be there.
        dtype: The candidate's dtype; the coarsest of its float arrays if None.

    Raises:
        RefimplError: No step asked for, or a dtype that is not compared.

    Example:
        >>> from refimpl.oracle.case import read_case
        >>> case = read_case("fixtures/cases/llama")
        >>> actual = {**case.expected, "blocks.2.v": -case.expected["blocks.2.v"]}
        >>> check(case, case.expected).verdict, check(case, actual).first.step
        ('pass', 'blocks.2.v')
    """
    wanted = matching(case.expected, only)
    if not wanted:
        raise RefimplError(
            f"`only={' '.join(only)}`: no step of the case matches",
            f"names such as {', '.join([*case.expected][:3])}, or patterns such as 'blocks.*'",
            f"choose from the steps in the case's {FACTS}",
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
    if dtype not in EPS:
        raise RefimplError(f"dtype {dtype} is not supported", " or ".join(EPS), "choose one")
    narrow = EPS[dtype] > EPS["float32"]  # in which the forward alone is judged
    some = [name for name in wanted if not narrow or measures.stage_of(name) == "forward"]
    truth = truth_of(case, actual, dtype, some if len(some) < len(case.expected) else None)
    if unknown := [x for x in some if x not in truth.values]:
        raise RefimplError(
            f"{case.folder}: its recipe does not compute the step {unknown[0]}",
            f"the steps of the recipe in {FACTS}",
            NEXT,
        )
    results = list[StepResult]()
    for name in wanted:
        if name not in some:
            x = NOT_IN_16_BITS if name in actual else "missing"
            results.append(StepResult(name, "unresolved" if name in actual else "missing", fault=x))
            continue
        right, numbers = truth.values[name], (truth.own_error(name), truth.tolerance(name))
        ties = partial(near_ties.ties_of, truth, name, actual.get(name, right))
        result = measures.step_result(name, actual, right, *numbers, ties)
        wrong = result.status == "divergent"
        if wrong and not result.fault and near_ties.follows_a_choice(truth, name):
            fault = "a token at a router's edge may have gone to another expert"
            result = replace(result, status="conditional", fault=fault)
        elif wrong and all(x.status != "divergent" for x in results):
            result = replace(result, diagnose=partial(diagnosis, truth, result))
        results.append(result)
    return Report(case, dtype, tuple(results), tuple(sorted(actual.keys() - case.expected.keys())))
