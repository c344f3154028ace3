"""Folders of cases, read without NumPy: the core cases, which refimpl contains, and others."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from refimpl.errors import RefimplError
from refimpl.loading.files.documents import Document, converted, read_document

FACTS = "case.json"
NEXT = "make the case again with refimpl case make"
CORE = (
    "llama",
    "opt",
    "phi3",
)  # the wheel holds them, with their models: see pyproject.toml
FORWARD = ("embed", "blocks.*", "final_norm", "logits")  # patterns of its steps
PACKAGE = Path(__file__).parent.parent
IN_WHEEL = PACKAGE / "fixtures"
FIXTURES = IN_WHEEL if IN_WHEEL.is_dir() else PACKAGE.parent / "fixtures"
SCHEMA: Literal[4] = 4  # of case.json
Size = Annotated[int, Meta(ge=1)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
StepMeasure = Literal[
    "rows", "weight rows", "typical rows", "numbers", "lost", "shares", "counts", "bits"
]


class CaseTokens(Document, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The token ids of a case: their source, sequences and tokens of each, and digest."""

    source: str
    shape: tuple[Size, Size]
    sha256: Digest


class StepFacts(Document, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A step, and how a candidate's is compared: see `measures`."""

    name: Annotated[str, Meta(pattern="^[a-z0-9_.]+$")]
    shape: tuple[Size, ...]
    dtype: Literal["float64", "int64", "uint8"]
    measure: StepMeasure


class CaseFacts(Document, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `case.json`; the model is a path relative to it, or an id of the hub."""

    schema: Literal[4]
    spec: Size
    versions: dict[str, str]
    model: str
    family: str
    tokens: CaseTokens
    recipe: dict[str, Any]
    sha256: dict[str, Digest]
    steps: Annotated[list[StepFacts], Meta(min_length=1)]


@dataclass(frozen=True)
class CaseFolder:
    """A folder of a case and the content of its `case.json`."""

    path: Path
    facts: CaseFacts

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the steps, in the order of execution."""
        return tuple(step.name for step in self.facts.steps)


def case_folder(path: Path) -> CaseFolder:
    """Read the `case.json` of a folder."""
    expected = (
        f"a case: a folder with {FACTS} and the files that refimpl case make wrote"
    )
    named = "the facts of a case", expected, NEXT
    facts = read_document(path / FACTS, named, None, lambda x: converted(x, CaseFacts))
    return CaseFolder(Path(os.path.realpath(path)), facts)


def matching(steps: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The steps that match one of some shell patterns."""
    return [
        step
        for step in steps
        if any(fnmatchcase(step, pattern) for pattern in patterns)
    ]


def core_cases() -> list[CaseFolder]:
    """The cases of the whole method in the wheel, or in a checkout's `fixtures/`."""
    return [case_folder(FIXTURES / "cases" / name) for name in CORE]


def family_model(name: str) -> Path | None:
    """The tiny random model, beside these cases, of a family named by its `model_type`."""
    names = (name, name.removesuffix("_text")) if name.isidentifier() else ()
    found = (FIXTURES / x for x in names if (FIXTURES / x / "config.json").is_file())
    return next(found, None)


def case_or_model(path: Path) -> Path:
    """The folder of a case: the path, or that of a core case that it names; or a model."""
    if (name := str(path)) in CORE and not (path / FACTS).is_file():
        return FIXTURES / "cases" / name
    if path.exists() or (len(path.parts) == 2 and not path.is_absolute()):  # an id
        return path
    if (model := family_model(name)) is None:
        raise RefimplError(
            f"{path}: no such case",
            f"a folder with {FACTS}, a core case ({', '.join(CORE)}), a model, or a family such "
            "as mixtral, which stands for a tiny random model",
            "check the path",
        )
    return model


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
