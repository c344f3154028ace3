"""What a test asks for: families, steps, and what is known to fail."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from refimpl.errors import RefimplError
from refimpl.testing.folders import CaseFolder

MARKER = "refimpl(families=[...], steps=[...], xfail=[...])"


@dataclass(frozen=True)
class Selection:
    """The arguments of the marker `refimpl`.

    Args:
        families: Which are implemented, such as "llama"; those of all cases if empty.
        steps: Which are implemented, as shell patterns.
        xfail: Cases that are known to fail, by name, or steps of one, as "case::pattern".
    """

    families: tuple[str, ...] = ()
    steps: tuple[str, ...] = ("*",)
    xfail: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """One case, and what is asked of it.

    Args:
        case: The case.
        steps: Patterns of the steps that are asked for.
        fails: Whether the case as a whole is known to fail.
        failing: Patterns of the steps that are known to fail.
    """

    case: CaseFolder
    steps: tuple[str, ...]
    fails: bool = False
    failing: tuple[str, ...] = field(default=())


def selection(words: Sequence[object], named: Mapping[str, Any]) -> Selection:
    """Read the arguments of the marker.

    Args:
        words: Those without a name: there are none.
        named: Those with a name: lists of strings.

    Returns:
        What the test asks for.

    Raises:
        RefimplError: Other arguments, or no lists of strings.

    Source:
        ours.

    Example:
        >>> selection((), {"families": ["llama"]}).families
        ('llama',)
    """
    known = Selection.__dataclass_fields__
    for name, value in named.items():
        texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
        if name not in known or not texts or not (value or name == "xfail"):
            raise RefimplError(
                f"@pytest.mark.refimpl({name}={value!r})", MARKER, "give lists of strings"
            )
    if words:
        raise RefimplError(f"@pytest.mark.refimpl{tuple(words)!r}", MARKER, f"name it: {[*known]}")
    return Selection(**{name: tuple(value) for name, value in named.items()})


def wanted(asked: Selection, cases: Iterable[CaseFolder]) -> list[Wanted]:
    """The cases a test is run on. Nothing it names may be without effect.

    Args:
        asked: What the test asks for.
        cases: All there are.

    Returns:
        One or more.

    Raises:
        RefimplError: No case of the families, or a pattern or an entry that matches nothing.

    Source:
        ours.

    Example:
        >>> from refimpl.testing.folders import core_cases
        >>> [one.case.name for one in wanted(Selection(("opt",)), core_cases())]
        ['opt']
    """
    every = list(cases)
    chosen = [case for case in every if not asked.families or case.family in asked.families]
    if not chosen:
        raise RefimplError(
            f"families {list(asked.families)}: no case of them",
            f"one of {sorted({case.family for case in every})}",
            "add a case with --refimpl-cases DIR; refimpl case make makes one",
        )
    steps = {
        case.name: [s for s in case.steps if any(fnmatchcase(s, p) for p in asked.steps)]
        for case in chosen
    }
    for pattern in asked.steps:
        _matched(f"steps: {pattern!r}", pattern, [s for case in chosen for s in case.steps])
    failing: dict[str, list[str]] = {case.name: [] for case in chosen}
    for entry in asked.xfail:
        name, _, pattern = entry.partition("::")
        _matched(f"xfail: {entry!r}", name, list(steps))
        _matched(f"xfail: {entry!r}", pattern or "*", steps[name])
        failing[name].append(pattern)
    return [
        Wanted(
            case,
            asked.steps,
            "" in failing[case.name],
            tuple(pattern for pattern in failing[case.name] if pattern),
        )
        for case in chosen
        if steps[case.name]
    ]


def _matched(what: str, pattern: str, names: Sequence[str]) -> None:
    """Refuse a pattern without effect."""
    if not any(fnmatchcase(name, pattern) for name in names):
        some = ", ".join(dict.fromkeys(names[:3]))
        raise RefimplError(
            f"{what} names nothing there is", f"such as {some}", "correct it, or take it out"
        )
