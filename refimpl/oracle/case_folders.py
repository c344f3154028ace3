"""Folders of cases, read without NumPy: the core cases, which refimpl contains, and others."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import json_object, read_file, reading
from refimpl.loading.files.json_schema import require

FACTS = "case.json"
NEXT = "make the case again with refimpl case make"
EXPECTED = f"a case: a folder with {FACTS} and the files that refimpl case make wrote"
CORE = ("llama", "opt", "phi3")  # the wheel holds them, with their models: see pyproject.toml
PACKAGE = Path(__file__).parent.parent


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
    return CaseFolder(path.resolve(), case_facts(path))


def core_cases() -> list[CaseFolder]:
    """The cases that refimpl contains: in the wheel, or in a checkout's `fixtures/`."""
    inside = PACKAGE / "fixtures"
    fixtures = inside if inside.is_dir() else PACKAGE.parent / "fixtures"
    return [case_folder(fixtures / "cases" / name) for name in CORE]


def core_case(path: Path) -> Path:
    """The folder of a case: the path itself, or that of a core case that it names."""
    if str(path) in CORE and not (path / FACTS).is_file():
        return next(case.path for case in core_cases() if case.name == str(path))
    if not path.exists():
        raise RefimplError(
            f"{path}: no such case",
            f"a folder with {FACTS}, or a core case: {', '.join(CORE)}",
            "check the path, or see refimpl case list",
        )
    return path


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


def case_facts(folder: Path) -> dict[str, Any]:
    """The facts of the case in a folder, which are as the schema says."""
    file = folder / FACTS
    with reading(file, EXPECTED):
        facts = json_object(read_file(file), str(file), EXPECTED)
    try:
        require(facts, _schema())
    except ValueError as error:
        raise RefimplError(f"{folder} is not a case ({error})", EXPECTED, NEXT) from error
    return facts


@cache
def _schema() -> dict[str, Any]:
    content = files("refimpl.oracle").joinpath("case.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(content)
    return schema
