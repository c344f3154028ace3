"""Candidates for the oracle's tests: refimpl itself in other dtypes, changed or not."""

import shutil
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from conftest import FIXTURES
from gates import case_of
from safetensors.numpy import save_file

from refimpl.model.experts import ROUTER
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, case_inputs, read_case
from refimpl.oracle.case_folders import CORE
from refimpl.oracle.check import Report
from refimpl.oracle.measures import array_of, reads_of
from refimpl.oracle.rounding import RoundedArray, RoundedModel
from refimpl.oracle.steps import every_array, steps

CASES, PROJECT = FIXTURES / "cases", Path(__file__).parent / "tools" / "sample_project"
CASE_NAMES = (
    *CORE,
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "mistral",
    "qwen2",
    "qwen3",
)

Arrays = dict[str, Array]


def needs_torch(test: Any) -> Any:
    """Mark a test as one of torch, to be skipped without it."""
    skip = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
    return pytest.mark.torch(skip(test))


def by_default(name: str, first: bool = True) -> Any:
    """Marks of a test on a case: those of the wheel run by default, the others in a tier."""
    return () if first and name in CORE else pytest.mark.thorough


EACH_CASE = [pytest.param(name, marks=by_default(name)) for name in CASE_NAMES]


def by_turns(names: Iterable[str], *values: Any) -> list[Any]:
    """Each name with one of the values, by turns; those of the wheel in a tier with the others."""
    return [
        pytest.param(name, value, marks=by_default(name, j == i % len(values)))
        for i, name in enumerate(names)
        for j, value in enumerate(values)
        if name in CORE or j == i % len(values)
    ]


def read_cases_once(patch: pytest.MonkeyPatch) -> None:
    """Commands read a case of `fixtures/cases` once, so its tolerances are computed once."""

    def once(folder: str | Path, **options: Any) -> Case:
        path = Path(folder)
        return (
            case_of(path.name) if path.parent == CASES else read_case(folder, **options)
        )

    patch.setattr("refimpl.oracle.case.read_case", once)


def project(edit: tuple[str, str] = ("", "")) -> ModuleType:
    """The sample project's candidate.py, imported by itself: other modules keep their names."""
    with tempfile.TemporaryDirectory() as away:
        folder = write_project(Path(away) / "project", edit)
        modules = {path.stem for path in folder.glob("*.py")}
        others = {name: sys.modules.pop(name) for name in modules & sys.modules.keys()}
        with patch.object(sys, "path", [str(folder), *sys.path]):
            try:
                return import_module("candidate")
            finally:
                for name in modules:
                    sys.modules.pop(name, None)
                sys.modules.update(others)


def write_project(folder: Path, edit: tuple[str, str] = ("", "")) -> Path:
    """The sample project in a new folder; with an edit, a text of it is replaced."""
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    found = [path for path in folder.glob("*.py") if edit[0] in path.read_text("utf-8")]
    assert not edit[0] or len(found) == 1
    for path in found if edit[0] else ():
        path.write_text(path.read_text("utf-8").replace(*edit), "utf-8")
    return folder


def project_arrays(candidate: ModuleType, case: Case, dtype: str = "float32") -> Arrays:
    """The arrays of the sample project, from the tokens."""
    import torch

    with torch.inference_mode():
        arrays = candidate.candidate(case.folder, getattr(torch, dtype))
    return {name: array_of(x) for name, x in arrays.items()}


def stepwise_steps(
    case: Case, dtype: Any = np.float64, rounded: type[RoundedArray] | None = None
) -> Arrays:
    """Every step from the case's own values of those before its block or stage."""
    inner = {x for x in case.expected if reads_of(x) and not x.endswith("resid_post")}
    given = {
        k: x for k, x in case.expected.items() if k not in inner or k.endswith(ROUTER)
    }
    arrays = every_array(case_inputs(case, given, dtype, rounded))
    return {name: np.asarray(value) for name, value in arrays.items()}


@cache
def computed(name: str, dtype: str = "float32") -> Arrays:
    """The arrays of refimpl in a dtype, written in it: a right candidate."""
    case = case_of(name)
    return written(
        case, steps(case.model, case.inputs["token_ids"], case.recipe, dtype), dtype
    )


def single(case: Case) -> Arrays:
    """The steps of a case, those of floats in float32."""
    kinds = {"f": np.float32}
    return {
        k: x.astype(kinds.get(x.dtype.kind, x.dtype)) for k, x in case.expected.items()
    }


def written(case: Case, arrays: Arrays, dtype: str) -> Arrays:
    """The case's steps alone, in a dtype; in 16 bits what is float64 in the method stays that."""
    narrow = ("f4",) if dtype.endswith("float16") else ("f4", "f8")
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    expected = {name: arrays[name] for name in case.expected}
    return {
        k: v.astype(kind) if v.dtype.str[1:] in narrow else v
        for k, v in expected.items()
    }


class StoredModel(RoundedModel):
    """Weights in 16 bits and states in float32: another right candidate than refimpl's own."""

    def other(self, *args: Any) -> Arrays:
        return {k: np.asarray(x) for k, x in super().other(*args).items()}


def open_steps(report: Report) -> set[str]:
    """Steps that were not judged as they follow a near tie."""
    return {step.step for step in report.steps if step.status == "conditional"}


def with_one_number_off(arrays: Arrays, step: str) -> Arrays:
    """The arrays with the largest number of a step 1 % off, or one, or one bit."""
    value = arrays[step].copy()
    flat = value.reshape(-1)
    at = int(np.argmax(np.abs(flat.astype(np.float64))))
    if value.dtype.kind == "f":
        flat[at] *= 1.01
    else:
        flat[at] ^= 1
    return arrays | {step: value}


def write_arrays(path: Path, arrays: Arrays) -> Path:
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path)
    return path
