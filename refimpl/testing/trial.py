"""A case before a candidate, in a test: what it gives, and what it says of what comes back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from refimpl.model.ops import Array
from refimpl.oracle.case import Case, read_case
from refimpl.oracle.check import Report, check, read_candidate
from refimpl.oracle.steps import Recipe
from refimpl.show.oracle import report_table
from refimpl.testing.selection import Wanted


@dataclass(frozen=True, repr=False)
class Trial:
    """What the fixture `refimpl_case` is.

    Args:
        case: The case, as the library reads it.
        wanted: What the test asks of it.
        new_folder: Where to keep what diverged.
    """

    case: Case
    wanted: Wanted
    new_folder: Callable[[], Path]

    def __repr__(self) -> str:
        return f"<refimpl case {self.name}>"

    @property
    def name(self) -> str:
        """Of the case."""
        return self.case.name

    @property
    def folder(self) -> Path:
        """Of the case: for programs that read its files themselves."""
        return self.case.folder

    @property
    def model(self) -> Path:
        """Of the model: `config.json` and safetensors files."""
        return self.case.model.path

    @property
    def family(self) -> str:
        """Of the model."""
        return self.case.model.config.family

    @property
    def recipe(self) -> Recipe:
        """What is computed: eta, sparsity, and so on."""
        return self.case.recipe

    @property
    def inputs(self) -> Mapping[str, Array]:
        """`token_ids` [N, S], int64; `noise` [L, N, S, D], float64, before it is scaled."""
        return self.case.inputs

    @property
    def expected(self) -> Mapping[str, Array]:
        """Every step in float64: what a candidate is fed that is held step by step."""
        return self.case.expected

    @property
    def margins(self) -> Mapping[str, Array]:
        """How near each discrete choice is to turning (docs/how-to/check.md)."""
        return self.case.margins

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the steps that are asked for, in the order of execution."""
        names = self.case.expected
        return tuple(n for n in names if any(fnmatchcase(n, p) for p in self.wanted.steps))

    def check(
        self,
        actual: Mapping[str, Any] | str | PathLike[str],
        dtype: str | None = None,
        stepwise: bool = False,
    ) -> Report:
        """Hold what was computed against the case.

        Args:
            actual: Arrays or torch tensors by the names of the steps, or a safetensors file.
            dtype: What it was computed in; the coarsest of its float arrays if None.
            stepwise: Whether it was fed the case's own values (`expected`) at each step.

        Returns:
            What became of every step.

        Raises:
            AssertionError: A step diverges, is missing, or could not be judged; or one passes that
                is in the list of xfail.
            RefimplError: No safetensors file, or a dtype that is not compared.
        """
        __tracebackhide__ = True
        given = isinstance(actual, Mapping)
        arrays = _arrays(actual) if isinstance(actual, Mapping) else read_candidate(Path(actual))
        report = check(self.case, arrays, self.wanted.steps, dtype, stepwise)
        known = self.wanted.failing
        wrong = [step.step for step in report.steps if step.status in ("divergent", "missing")]
        listed = {step for step in wrong if any(fnmatchcase(step, p) for p in known)}
        rest = replace(report, steps=tuple(s for s in report.steps if s.step not in listed))
        if rest.verdict != "pass":
            file = _saved(arrays, self.new_folder()) if given else actual
            raise AssertionError(_said(rest, str(file)))
        if stale := [p for p in known if not any(fnmatchcase(step, p) for step in listed)]:
            names = ", ".join(f"{self.name}::{pattern}" for pattern in stale)
            raise AssertionError(f"{names}: passes, take it from the list of xfail")
        if listed:
            pytest.xfail(f"in the list of xfail: {', '.join(sorted(listed))}")
        return report


def trial(wanted: Wanted, new_folder: Callable[[], Path]) -> Trial:
    """Read a case for a test.

    Args:
        wanted: Which case, and what is asked of it.
        new_folder: Where to keep what diverged.

    Returns:
        What the test is given.

    Raises:
        RefimplError: As `read_case` raises it.

    Source:
        ours.
    """
    return Trial(read_case(wanted.case.path), wanted, new_folder)


def _said(report: Report, candidate: str) -> str:
    """The verdict in a line of its own, which pytest's summary shows; and the table."""
    first = report.first
    verdict = "is inconclusive" if first is None else f"diverges, first at {first.step}"
    return f"{report.case.name} {verdict}\n\n{report_table(report, candidate)}"


def _arrays(actual: Mapping[str, Any]) -> dict[str, Array]:
    """NumPy arrays of what a test computed, on whatever device."""
    return {name: _array(value) for name, value in actual.items()}


def _array(value: Any) -> Array:
    """One array; of torch's tensors without importing torch, whose bfloat16 NumPy cannot read."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":
        return np.asarray(value.float()).astype(ml_dtypes.bfloat16)
    return np.asarray(value)


def _saved(arrays: Mapping[str, Array], folder: Path) -> Path:
    """Keep what diverged, so that `refimpl check` can be run on it."""
    path = folder / "actual.safetensors"
    kept = {k: np.ascontiguousarray(v) for k, v in arrays.items() if v.dtype.kind in "fiubV"}
    save_file(kept, path)
    return path
