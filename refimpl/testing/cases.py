"""The cases that a test selects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refimpl.errors import RefimplError
from refimpl.oracle.case_folders import CaseFolder, matching

MARKER = "refimpl(families=[...], steps=[...], xfail=[...])"
ARGUMENTS: Mapping[str, Sequence[str]] = {"families": (), "steps": ("*",), "xfail": ()}


def distinct_cases(cases: Iterable[CaseFolder]) -> list[CaseFolder]:
    """Cases without copies of one; two different cases of one name are refused."""
    by_name: dict[str, CaseFolder] = {}
    for case in cases:
        other = by_name.setdefault(case.name, case)
        if other.facts != case.facts:
            raise RefimplError(
                f"two cases have the name {case.name}: {other.path} and {case.path}",
                "a different name for each case",
                "rename one of the folders",
            )
    return list(by_name.values())


@dataclass(frozen=True)
class SelectedCase:
    """A case, and patterns of the steps that a test asks of it, and that fail: "" for the case."""

    case: CaseFolder
    steps: tuple[str, ...]
    failing: tuple[str, ...] = ()


def selected_cases(
    args: Sequence[object], kwargs: Mapping[str, Any], cases: Iterable[CaseFolder]
) -> list[SelectedCase]:
    """The cases that a marker selects; names and patterns that match nothing are refused."""
    for name, value in kwargs.items():
        texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
        if name not in ARGUMENTS or not texts or not (value or name == "xfail"):
            raise RefimplError(
                f"@pytest.mark.refimpl({name}={value!r})", MARKER, "pass lists of strings"
            )
    if args:
        raise RefimplError(
            f"@pytest.mark.refimpl{tuple(args)!r}", MARKER, f"name the argument: {[*ARGUMENTS]}"
        )
    families, patterns, xfail = (tuple(kwargs.get(x, y)) for x, y in ARGUMENTS.items())
    every = list(cases)
    known = {case.facts.family for case in every}
    chosen = [case for case in every if case.facts.family in (families or known)]
    if not chosen:
        raise RefimplError(
            f"no case has one of the families {[*families]}",
            f"one of {sorted(known)}",
            "add a case with --refimpl-cases=DIR; refimpl case make makes one",
        )
    steps = {case.name: matching(case.steps, patterns) for case in chosen}
    for pattern in patterns:
        _check_match(f"steps: {pattern!r}", pattern, [s for case in chosen for s in case.steps])
    failing: dict[str, list[str]] = {case.name: [] for case in chosen}
    for entry in xfail:
        name, _, pattern = entry.partition("::")
        _check_match(f"xfail: {entry!r}", name, list(steps))
        _check_match(f"xfail: {entry!r}", pattern or "*", steps[name])
        failing[name].append(pattern)
    asked = [case for case in chosen if steps[case.name]]
    return [SelectedCase(x, patterns, tuple(failing[x.name])) for x in asked]


def _check_match(label: str, pattern: str, names: Sequence[str]) -> None:
    """Refuse a pattern that matches none of the names."""
    if not matching(names, [pattern]):
        examples = ", ".join(dict.fromkeys(names[:3]))
        raise RefimplError(
            f"{label} matches nothing", f"such as {examples}", "correct or remove it"
        )
