"""The report on a candidate, as a table and as JSON; and tables of cases."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from refimpl.loading.files.documents import Document, filled, plain
from refimpl.oracle.case_folders import CaseFolder
from refimpl.oracle.check import Report, Verdict, Way, coarse_step
from refimpl.oracle.judging.measures import Status, StepResult, kind_of, stage_of
from refimpl.show.header import counted, fitting, joined, wrapped
from refimpl.show.table import Table
from refimpl.version import SPEC, __version__

SHOWN_TIES = 5  # named, of near ties
SHOWN_STEPS = 3  # of the steps that were not judged


def report_table(report: Report, candidate: str) -> str:
    """A row per stage, the verdict, and the first wrong step."""
    case = report.case
    versions = [f"refimpl {__version__}", f"spec {SPEC}"]
    facts = {
        "case": [case.name, f"family {case.model.config.family}", *versions],
        "candidate": [candidate, report.dtype, report.way],
        "judged by": ["the float64 truth", "and what the dtype costs refimpl itself"],
    }
    if report.way == "chained":
        facts["in part"] = ["the last tokens of each sequence"]
    if report.uncovered:
        facts["not covered"] = list(dict.fromkeys(map(kind_of, report.uncovered)))
    said = [part for line in verdict_lines(report, candidate) for part in fitting(line)]
    return joined([*wrapped(facts), "", *steps_table("stage", _stages(report)).lines(), "", *said])


def _stages(report: Report) -> dict[str, list[StepResult]]:
    """The steps of each part of the method."""
    stages: dict[str, list[StepResult]] = {}
    for step in report.steps:
        stages.setdefault(stage_of(step.step), []).append(step)
    return stages


def steps_table(heading: str, stages: Mapping[str, Sequence[StepResult]]) -> Table:
    """A row per group of steps: how many, their statuses, and the worst of them."""
    groups = list(stages.values())
    worst = [max(group, key=_share) for group in groups]
    columns: dict[str, list[str]] = {
        heading: list(stages),
        "steps": [f"{len(group):,}" for group in groups],
        **{
            status: [f"{sum(step.status == status for step in group) or ''}" for group in groups]
            for status in ("pass", "divergent", "missing", "conditional", "unresolved")
        },
        "worst step": [step.step for step in worst],
        "error": [_number(step.error) for step in worst],
        "allowed": [_number(step.tolerance) for step in worst],
        "own": [_number(step.own) for step in worst],
    }
    return Table(columns)


def cases_document(cases: Sequence[CaseFolder]) -> dict[str, Any]:
    """Some cases as one JSON document."""
    rows = [(x.name, x.facts.family, str(x.path), x.steps) for x in cases]
    keys = ("name", "family", "folder", "steps")
    return {"cases": [dict(zip(keys, row, strict=True)) for row in rows]}


def cases_table(cases: Sequence[CaseFolder]) -> str:
    """A row per case."""
    columns = {
        "case": [case.name for case in cases],
        "family": [case.facts.family for case in cases],
        "tokens": [" x ".join(map(str, case.facts.tokens.shape)) for case in cases],
        "steps": [f"{len(case.steps):,}" for case in cases],
    }
    return joined(Table(columns).lines())


def verdict_lines(report: Report, candidate: str = "") -> Iterator[str]:
    """Whether it agrees; if not, the first wrong step and its usual causes.

    If `refimpl check` read a candidate, also how to repeat that.
    """
    first = report.first
    for step in report.steps:
        if step.near_ties:
            positions = ", ".join(str(list(tie)) for tie in step.near_ties[:SHOWN_TIES])
            more = ", ..." if len(step.near_ties) > SHOWN_TIES else ""
            yield f"{step.step}: {counted(len(step.near_ties), 'near tie')} at {positions}{more}"
    if report.unknown:
        yield f"no steps of this case, and not checked: {', '.join(report.unknown[:SHOWN_TIES])}"
    if report.verdict == "pass":
        asked, every = len(report.steps), len(report.case.expected)
        of = f" of the case's {every:,}" if asked < every else ""
        yield f"passes: {counted(asked, 'step')}{of}"
    elif first is None:
        yield from _unjudged(report, bool(candidate))
    else:
        yield f"divergent, first at {first.step}: {_said(first)}"
        if causes := first.causes(report.dtype):
            yield from ("usual causes:", *(f"  {text}" for text in causes))
        words = f"--only '{first.step}'" + " --stepwise" * (report.way == "stepwise")
        words += f" {report.options}" if report.options else ""
        if candidate:
            yield f"again: refimpl check {report.case.folder} {candidate} {words}"


def _unjudged(report: Report, checked: bool) -> Iterator[str]:
    """What agrees, and what was not judged, if nothing diverges."""
    steps = {
        status: [step.step for step in report.steps if step.status == status]
        for status in ("pass", "missing", "conditional", "unresolved")
    }
    passed, unresolved = set(steps["pass"]), steps["unresolved"]
    covered = [step for step in unresolved if coarse_step(step) in passed]
    open_steps = {
        "missing": steps["missing"],
        "not judged": steps["conditional"],
        f"not resolved by {report.dtype}, and covered by coarse.*, which passes": covered,
        f"not resolved by {report.dtype}": [x for x in unresolved if x not in covered],
    }
    of = f"{len(passed):,} of {counted(len(report.steps), 'step')}"
    yield f"not judged: {of} agree in {report.dtype}"
    if kinds := report.unjudged_kinds:
        yield f"  nothing was judged of {', '.join(kinds)}"
    for what, names in open_steps.items():
        if names:
            more = ", ..." * (len(names) > SHOWN_STEPS)
            some = ", ".join(names[:SHOWN_STEPS]) + more
            yield f"  {counted(len(names), 'step')} {what}: {some}"
    if not checked:
        return
    yield "--resolvable exits with 0" if report.is_resolved else "--only PATTERN checks a part"


def _said(step: StepResult) -> str:
    """What is wrong with a step, in words."""
    worst = f"worst at {list(step.where)}" if step.where else ""
    counting = step.tolerance == 0
    size = f"{step.error:.0f} differ" if counting else f"{_number(step.error)}"
    allowed = "" if counting else f"allowed {_number(step.tolerance)}, own {_number(step.own)}"
    numbers = (size, allowed, worst) if isfinite(step.error) else (worst,)
    return ", ".join(text for text in (step.fault, *numbers) if text)


def _share(step: StepResult) -> tuple[bool, float]:
    """The rank of a step among the worst ones; steps without an error come last."""
    if step.status not in ("pass", "divergent"):
        return False, -1.0
    return step.status == "divergent", step.error / (step.tolerance or 1.0)


def _number(x: float) -> str:
    return f"{x:.1e}" if isfinite(x) and x else f"{x:g}"


class CheckedStep(Document, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The judgement on one step; null for a number that is not finite."""

    step: str
    status: Status
    error: float | None
    tolerance: float | None
    own: float | None
    where: tuple[int, ...]
    fault: str | None
    near_ties: tuple[tuple[int, ...], ...]


class FirstStep(CheckedStep, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first divergent step, and the usual causes, the likeliest first."""

    usual_causes: tuple[str, ...]


class CheckDocument(Document, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON of `refimpl check`."""

    case: str
    family: str
    refimpl: str
    spec: int
    candidate: str
    dtype: str
    way: Way
    verdict: Verdict
    first: FirstStep | None
    steps: tuple[CheckedStep, ...]
    unknown: tuple[str, ...]
    not_covered: tuple[str, ...]


def report_document(report: Report, candidate: str) -> dict[str, Any]:
    """A report as one JSON document."""
    first, case = report.first, report.case

    def checked(step: StepResult, kind: type[CheckedStep] = CheckedStep, **more: Any) -> Any:
        numbers = {name: getattr(step, name) for name in ("error", "tolerance", "own")}
        finite = {name: x if isfinite(x) else None for name, x in numbers.items()}
        return filled(kind, step, **finite, fault=step.fault or None, **more)

    last = first and checked(first, FirstStep, usual_causes=first.causes(report.dtype))
    document: dict[str, Any] = plain(
        filled(
            CheckDocument, report, case=case.name, family=case.model.config.family,
            refimpl=__version__, spec=SPEC, candidate=candidate,
            first=last, steps=tuple(map(checked, report.steps)), not_covered=report.uncovered,
        )
    )  # fmt: skip
    return document
