"""Reports on candidates and graphs, as tables and as JSON; and what was exported."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from refimpl.loading.files.documents import Document, filled, plain
from refimpl.oracle.check import Report, Verdict
from refimpl.oracle.measures import Status, StepResult, kind_of, stage_of
from refimpl.running.file_system import MIB
from refimpl.show.table import (
    Table,
    counted,
    fitting,
    model_facts,
    page_text,
    token_facts,
)
from refimpl.version import SPEC, __version__

if TYPE_CHECKING:  # check needs no onnx
    from refimpl.onnx.export import Exported
    from refimpl.onnx.validate import Validation

_SHOWN = 3  # names of steps in a line
UNJUDGED = {
    "missing": "missing",
    "conditional": "not judged",
    "unresolved": "not resolved",
}


def report_table(report: Report, candidate: str) -> str:
    """A row per stage, the verdict, and the first wrong step."""
    name, family = report.case.name, report.case.model.config.family
    judge = (
        {"vectors": [name]}
        if family == "none"
        else {"case": [name, f"family {family}"]}
    )
    facts = {**judge, "candidate": [candidate, report.dtype]}
    if report.uncovered:
        facts["not covered"] = list(dict.fromkeys(map(kind_of, report.uncovered)))
    stages: dict[str, list[StepResult]] = {}
    for step in report.steps:
        stages.setdefault(stage_of(step.step), []).append(step)
    said = [part for line in verdict_lines(report, candidate) for part in fitting(line)]
    return page_text(facts, steps_table("stage", stages).lines(), said)


def steps_table(heading: str, stages: Mapping[str, Sequence[StepResult]]) -> Table:
    """A row per group of steps: how many, their statuses, and the worst of them."""
    groups = list(stages.values())
    worst = [max(group, key=_share) for group in groups]
    columns: dict[str, list[str]] = {
        heading: list(stages),
        "steps": [f"{len(group):,}" for group in groups],
        **{
            status: [
                f"{sum(step.status == status for step in group) or ''}"
                for group in groups
            ]
            for status in ("pass", "divergent", "missing", "conditional", "unresolved")
        },
        "worst step": [step.step for step in worst],
        "error": [_number(step.error) for step in worst],
        "allowed": [_number(step.tolerance) for step in worst],
        "own": [_number(step.own) for step in worst],
    }
    return Table(columns)


def verdict_lines(report: Report, candidate: str = "") -> Iterator[str]:
    """Whether it agrees; if not, the first wrong step and its diagnosis.

    If `refimpl check` read a candidate, also how to repeat that.
    """
    first, asked = report.first, len(report.steps)
    if report.unknown:
        yield f"no steps of this case, and not checked: {_named(report.unknown)}"
    if report.verdict == "pass":
        passed = sum(step.status == "pass" for step in report.steps)
        every = len(report.case.expected)
        of = f" of {every:,}" if passed < every else ""
        yield f"passes: {counted(passed, 'step')}{of}"
    elif first is not None:
        yield f"divergent, first at {first.step}: {_said(first)}"
        yield from [first.diagnosis] * bool(first.diagnosis)
        if others := [
            x.step for x in report.steps if x.status == "divergent" and x != first
        ]:
            yield f"also divergent ({len(others):,}): {_named(others)}"
        words = f"--only '{first.step}'" + (
            f" {report.options}" if report.options else ""
        )
        if candidate:
            yield f"again: refimpl check {report.case.folder} {candidate} {words}"
    else:
        passed = sum(step.status == "pass" for step in report.steps)
        yield f"not judged: {passed:,} of {counted(asked, 'step')} agree in {report.dtype}"
        there = {kind_of(x.step) for x in report.steps if x.status != "missing"}
        if kinds := [x for x in report.unjudged_kinds if x in there]:
            yield f"  nothing was judged of {', '.join(kinds)}: write what they read, or float32"
        for status, words in UNJUDGED.items():
            if names := [step.step for step in report.steps if step.status == status]:
                yield f"  {counted(len(names), 'step')} {words}: {_named(names)}"
        yield from ["--only PATTERN checks a part"] * bool(candidate)


def _named(steps: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join([*steps[:_SHOWN], *["..."] * (len(steps) > _SHOWN)])


def _said(step: StepResult) -> str:
    """What is wrong with a step, in words."""
    texts = [step.fault]
    if isfinite(step.error):
        allowed = f"allowed {_number(step.tolerance)}, own {_number(step.own)}"
        counts = [f"{step.error:.0f} differ"]
        texts += [_number(step.error), allowed] if step.tolerance else counts
    texts += [f"worst at {list(step.where)}"] if step.where else []
    return ", ".join(filter(None, texts))


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
    error: float | None  # of the worst token or number
    tolerance: float | None  # largest accepted error
    own: float | None  # refimpl's own error in this dtype
    where: tuple[int, ...]  # index of the worst token or number
    fault: str | None  # such as another shape
    near_ties: tuple[
        tuple[int, ...], ...
    ]  # discrete choices that rounding could reverse
    diagnosis: (
        str | None
    )  # the mistake that gives its numbers, or which of them are wrong


class CheckDocument(Document, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON of `refimpl check`."""

    case: str
    family: str
    refimpl: str
    spec: int
    candidate: str
    dtype: str
    verdict: Verdict
    first: CheckedStep | None  # the first divergent step
    steps: tuple[CheckedStep, ...]
    unknown: tuple[str, ...]  # arrays of the candidate that are no step
    not_covered: tuple[str, ...]  # kinds of step that the candidate lacks


def report_document(report: Report, candidate: str) -> dict[str, Any]:
    """A report as one JSON document."""
    first, case = report.first, report.case

    def checked(step: StepResult) -> CheckedStep:
        numbers = {"error": step.error, "tolerance": step.tolerance, "own": step.own}
        finite = {name: x if isfinite(x) else None for name, x in numbers.items()}
        words = {"fault": step.fault or None, "diagnosis": step.diagnosis or None}
        return filled(CheckedStep, step, **finite, **words)

    document: dict[str, Any] = plain(
        filled(
            CheckDocument,
            report,
            case=case.name,
            family=case.model.config.family,
            refimpl=__version__,
            spec=SPEC,
            candidate=candidate,
            first=first and checked(first),
            steps=tuple(map(checked, report.steps)),
            not_covered=report.uncovered,
        )
    )
    return document


VALIDATION_FORMAT = 3  # of `validate --json`


def validation_table(validation: "Validation") -> str:
    """A row per run, the verdict, and the first wrong step with its diagnosis."""
    graph, runs = validation.graph, {_name(x): x.steps for x in validation.reports}
    facts = {
        "model": model_facts(
            validation.model, validation.family, validation.num_blocks
        ),
        "graph": ["recorded here, with every trace point" if graph is None else graph],
        "against": [validation.ran],
        "tokens": token_facts(validation.tokens),
    }
    if validation.verdict == "pass":
        steps = counted(sum(map(len, runs.values())), "step")
        said = [f"passes: {steps} in {counted(len(runs), 'run')}"]
    else:
        first = next(x for x in validation.reports if x.verdict == validation.verdict)
        verdict, *words = verdict_lines(first)
        said = [f"{_name(first)}: {verdict}", *words]
    lines = [part for line in (*said, *validation.notes) for part in fitting(line)]
    return page_text(facts, steps_table("run", runs).lines(), lines)


def validation_document(validation: "Validation") -> dict[str, Any]:
    """A validation as one JSON document; an error that is no number is null."""
    facts = {name: x for name, x in vars(validation).items() if name != "reports"}
    runs = []
    for report in validation.reports:
        content = report_document(report, "")
        shared = {
            name: content[name] for name in ("dtype", "verdict", "first", "steps")
        }
        runs.append({"shape": _shape(report), **shared})
    facts |= {"verdict": validation.verdict, "runs": runs}
    document: dict[str, Any] = plain(
        {"format": VALIDATION_FORMAT, "refimpl": __version__, **facts}
    )
    return document


def _name(report: Report) -> str:
    """What was run, in which dtype, on token ids of which shape."""
    return f"{stage_of(report.steps[0].step)} {report.dtype} {_shape(report)}"


def _shape(report: Report) -> list[int]:
    return list(report.case.inputs["token_ids"].shape)


def export_table(exported: "Exported") -> str:
    """What was written, a line per fact."""
    facts, count = exported.metadata, counted(exported.tensors, "tensor")
    zeros, prunable = (int(facts[f"prunable_{name}"]) for name in ("zeros", "weights"))
    graph, data = (
        f"{x / MIB:,.2f} MiB" for x in (exported.graph_bytes, exported.data_bytes)
    )
    lines = {
        "model": [
            facts["model"],
            f"family {facts['family']}",
            f"{zeros:,} of {prunable:,} prunable weights zero ({zeros / prunable:.2%})",
        ],
        "graph": [f"{exported.graph}, {graph}", f"opset {exported.opset}"],
        "computes": [f"token_ids to {facts['outputs']}", facts["dtype"]],
        "weights": [f"{count} in {exported.data}, {data}"],
    }
    return page_text(lines)
