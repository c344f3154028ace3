"""The fixture `refimpl_case`: a case for a test, and the check of the test's own arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import pytest

from refimpl.loading.files.documents import filled
from refimpl.loading.files.safetensors_file import write_arrays
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, read_case
from refimpl.oracle.case_folders import SelectedCase, matching
from refimpl.oracle.check import Report, check, read_candidate
from refimpl.oracle.measures import array_of
from refimpl.oracle.recipe import Recipe
from refimpl.show.oracle import report_table


@dataclass(frozen=True, repr=False)
class CaseFixture:
    """A case for a test, what the test asks of it, and a new folder for arrays that diverged.

    Args:
        name: The case's name.
        folder: The case's folder, for programs that read its files themselves.
        model: The model's folder: `config.json` and safetensors files.
        family: The model's family.
        recipe: The computation: eta, sparsity, and so on.
        inputs: `token_ids` [N, S], int64; `noise` [L, N, S, D], float64, unscaled; further draws.
        expected: Every step in float64; a step-wise candidate reads these.
        steps: Names of the steps that are asked for, in the order of execution.
    """

    name: str
    folder: Path
    model: Path
    family: str
    recipe: Recipe
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]
    steps: tuple[str, ...]
    case: Case
    selected: SelectedCase
    new_folder: Callable[[], Path]

    @classmethod
    def of(cls, selected: SelectedCase, new_folder: Callable[[], Path]) -> "CaseFixture":
        """The fixture of a case that a test selected, which is read."""
        case, facts = read_case(selected.case.path), selected.case
        return filled(
            cls, case, case=case, selected=selected, new_folder=new_folder, model=case.model.path,
            family=facts.facts.family, steps=tuple(matching(facts.steps, selected.steps)),
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<refimpl case {self.name}>"

    def check(
        self,
        actual: Mapping[str, Any] | str | PathLike[str],
        dtype: str | None = None,
        stepwise: bool = False,
        resolvable: bool = False,
    ) -> Report:
        """Check arrays or torch tensors by the names of the steps, or a safetensors file of them.

        The dtype is that of the coarsest array if None; `stepwise`, each step read `expected`; if
        `resolvable`, steps that the dtype does not resolve may be open, but no kind of step.
        """
        __tracebackhide__ = True
        if isinstance(actual, Mapping):
            file, arrays = "", {name: array_of(x) for name, x in actual.items()}
        else:
            file, arrays = str(actual), read_candidate(Path(actual))
        report = check(self.case, arrays, self.selected.steps, dtype, stepwise)
        patterns = [*filter(None, self.selected.failing)]
        wrong = [step.step for step in report.steps if step.status in ("divergent", "missing")]
        listed = matching(wrong, patterns)
        rest = replace(report, steps=tuple(s for s in report.steps if s.step not in listed))
        if rest.verdict != "pass" and not (resolvable and rest.is_resolved):
            raise AssertionError(_message(rest, file or str(_saved(arrays, self.new_folder()))))
        if stale := [p for p in patterns if not matching(listed, [p])]:
            names = ", ".join(f"{self.name}::{pattern}" for pattern in stale)
            raise AssertionError(f"{names}: passes, remove it from the list of xfail")
        if listed:
            pytest.xfail(f"in the list of xfail: {', '.join(sorted(listed))}")
        return report


def _message(report: Report, candidate: str) -> str:
    """The verdict in a line of its own, which pytest's summary shows; and the table."""
    first = report.first
    verdict = f"diverges, first at {first.step}" if first else "is not judged in some steps"
    return f"{report.case.name} {verdict}\n\n{report_table(report, candidate)}"


def _saved(arrays: Mapping[str, Array], folder: Path) -> Path:
    """Write arrays that diverged, so that `refimpl check` can be run on them."""
    path = folder / "actual.safetensors"
    write_arrays(path, {k: x for k, x in arrays.items() if x.dtype.kind in "fiubV"})
    return path
