"""Folders of cases, read without NumPy: those that travel with the package, and others."""

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
    """A folder of a case and the content of its `case.json`."""

    path: Path
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def family(self) -> str:
        """The model's family, as its `config.json` names it."""
        return str(self.facts["family"])

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the steps, in the order of execution."""
        return tuple(step["name"] for step in self.facts["steps"])


def case_folder(path: Path) -> CaseFolder:
    """Read the `case.json` of a folder."""
    try:
        folder = CaseFolder(path.resolve(), json.loads((path / FACTS).read_text("utf-8")))
        _ = folder.family, folder.steps
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefimplError(
            f"{path} is not a case ({type(error).__name__}: {error})",
            f"a folder with {FACTS}",
            "remove the folder, or make the case again with refimpl case make",
        ) from error
    return folder


def core_cases() -> list[CaseFolder]:
    """The cases that travel with the package: in the wheel, or in a checkout's `fixtures/`."""
    inside = PACKAGE / "fixtures"
    fixtures = inside if inside.is_dir() else PACKAGE.parent / "fixtures"
    return [case_folder(fixtures / "cases" / name) for name in CORE]


def cases_below(folder: Path) -> list[CaseFolder]:
    """The case in a folder, or the cases in its folders, by name; hidden folders are skipped."""
    if (folder / FACTS).is_file():
        return [case_folder(folder)]
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    cases = [case_folder(p) for p in paths if p.is_dir() and not p.name.startswith(".")]
    if not cases:
        raise RefimplError(
            f"{folder} holds no cases",
            f"a folder with {FACTS}, or a folder of such folders",
            "check the path, or make a case with refimpl case make",
        )
    return cases


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
