"""Folders of cases, found without NumPy: those that travel with the package, and others."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError

CORE = ("llama", "opt", "phi3")  # the wheel holds them, with their models: see pyproject.toml
PACKAGE = Path(__file__).parent.parent
FACTS = "case.json"


@dataclass(frozen=True)
class CaseFolder:
    """A case that is known by its `case.json` alone.

    Args:
        path: The folder.
        facts: What its `case.json` says.
    """

    path: Path
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def family(self) -> str:
        """What the model's `config.json` calls it."""
        return str(self.facts["family"])

    @property
    def steps(self) -> tuple[str, ...]:
        """Names, in the order of execution."""
        return tuple(step["name"] for step in self.facts["steps"])


def case_folder(path: Path) -> CaseFolder:
    """Look into the folder of a case.

    Args:
        path: The folder.

    Returns:
        The case, as its `case.json` describes it.

    Raises:
        RefimplError: No folder of a case.

    Source:
        ours.

    Example:
        >>> case_folder(Path("fixtures/cases/opt")).steps[:2]
        ('embed', 'blocks.0.resid_pre')
    """
    try:
        found = CaseFolder(path.resolve(), json.loads((path / FACTS).read_text("utf-8")))
        _ = found.family, found.steps
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefimplError(
            f"{path}: not a case ({type(error).__name__}: {error})",
            f"a folder with {FACTS}",
            "take it out, or make the case again with refimpl case make",
        ) from error
    return found


def core_cases() -> list[CaseFolder]:
    """The cases that travel with the package: in the wheel, or in a checkout's `fixtures/`.

    Returns:
        A few families, which have little in common.

    Source:
        ours.

    Example:
        >>> [case.name for case in core_cases()]
        ['llama', 'opt', 'phi3']
    """
    inside = PACKAGE / "fixtures"
    fixtures = inside if inside.is_dir() else PACKAGE.parent / "fixtures"
    return [case_folder(fixtures / "cases" / name) for name in CORE]


def cases_below(folder: Path) -> list[CaseFolder]:
    """The case in a folder, or the cases in its folders.

    Args:
        folder: Of a case, or of nothing but folders of cases; hidden ones are passed over.

    Returns:
        One or more, by name.

    Raises:
        RefimplError: No case, or a folder that is none.

    Source:
        ours.

    Example:
        >>> len(cases_below(Path("fixtures/cases"))), len(cases_below(Path("fixtures/cases/opt")))
        (10, 1)
    """
    if (folder / FACTS).is_file():
        return [case_folder(folder)]
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [case_folder(p) for p in paths if p.is_dir() and not p.name.startswith(".")]
    if not found:
        raise RefimplError(
            f"{folder}: no cases",
            f"a folder with {FACTS}, or a folder of such folders",
            "check the path, or make a case with refimpl case make",
        )
    return found


def united(cases: Iterable[CaseFolder]) -> list[CaseFolder]:
    """Cases by name; a copy of one is left out.

    Args:
        cases: Any.

    Returns:
        Those with different `case.json`.

    Raises:
        RefimplError: Two different cases of one name.

    Source:
        ours.

    Example:
        >>> len(united([*core_cases(), *cases_below(Path("fixtures/cases"))]))
        10
    """
    found: dict[str, CaseFolder] = {}
    for case in cases:
        other = found.setdefault(case.name, case)
        if other.facts != case.facts:
            raise RefimplError(
                f"two cases are called {case.name}: {other.path} and {case.path}",
                "a name for each",
                "rename one of the folders",
            )
    return list(found.values())
