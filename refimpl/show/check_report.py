"""The JSON of a check: written, and read as the baseline of a later one; and Markdown of a job."""

from math import isfinite
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.files.documents import Document, converted, filled, plain, read_document
from refimpl.oracle.check import Report, Verdict, Way
from refimpl.oracle.judging.measures import Status, StepResult
from refimpl.show.header import counted, joined
from refimpl.version import SPEC, __version__

WORSE: tuple[Status, ...] = ("pass", "unresolved", "conditional", "missing", "divergent")
SHOWN = 5  # steps of a comparison that are named


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
    stated: dict[str, str]
    way: Way
    verdict: Verdict
    first: FirstStep | None
    steps: tuple[CheckedStep, ...]
    unknown: tuple[str, ...]
    not_covered: tuple[str, ...]
    covered_in_part: str | None


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
            refimpl=__version__, spec=SPEC, candidate=candidate, stated=dict(report.stated),
            first=last, steps=tuple(map(checked, report.steps)), not_covered=report.uncovered,
            covered_in_part=report.covered or None,
        )
    )  # fmt: skip
    return document


def read_baseline(path: Path, report: Report) -> CheckDocument:
    """The report of an earlier check of the same case, which must be comparable."""
    named = "a report of refimpl check", "what refimpl check -o FILE wrote", "write it again"
    earlier = read_document(path, named, None, lambda x: converted(x, CheckDocument))
    now = report_document(report, "")
    facts = ("case", "spec", "dtype", "way")
    if other := [x for x in facts if getattr(earlier, x) != now[x]]:
        raise RefimplError(
            f"--baseline {path}: another {other[0]}, {getattr(earlier, other[0])}",
            f"the report of a check of {other[0]} {now[other[0]]}",
            "write the baseline again: refimpl check ... -o FILE",
        )
    return earlier


def compared(path: Path, report: Report) -> tuple[bool, str]:
    """Whether a step is worse than in an earlier report, and what changed, in words.

    A step that is not asked for any more is worse; one that was not asked for has to pass.
    """
    before: dict[str, Status] = {x.step: x.status for x in read_baseline(path, report).steps}
    now: dict[str, Status] = {x.step: x.status for x in report.steps}
    change = {
        x: WORSE.index(now.get(x, "missing")) - WORSE.index(before.get(x, "pass"))
        for x in before | now
    }
    worse, better = ([x for x in change if sign * change[x] > 0] for sign in (1, -1))
    lines = [
        f"{counted(len(steps), 'step')} {word} than in {path}: {', '.join(steps[:SHOWN])}"
        + ", ..." * (len(steps) > SHOWN)
        for steps, word in ((worse, "worse"), (better, "better"))
        if steps
    ]
    calm = f"no step is worse than in {path}" + "; write it again" * bool(better)
    return bool(worse), joined([*lines, *([] if worse else [calm])])
