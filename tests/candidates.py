"""Candidates for the oracle's tests: refimpl itself in other dtypes, and the sample project."""

import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import FIXTURES
from gates import case_of
from safetensors.numpy import save_file

from refimpl.model.ops import Array
from refimpl.oracle.rounding import RoundedModel
from refimpl.oracle.steps import steps

CASES, PROJECT = FIXTURES / "cases", Path(__file__).parent / "sample_project"
CASE_NAMES = sorted(folder.name for folder in CASES.iterdir())

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")

Arrays = dict[str, Array]


@cache
def computed(name: str, dtype: str = "float32") -> Arrays:
    """The arrays of refimpl in a dtype, written in it: a right candidate."""
    case = case_of(name)
    arrays = steps(case.model, case.inputs["token_ids"], case.recipe, dtype)
    return {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in arrays.items()}


class StoredModel(RoundedModel):
    """Weights in 16 bits and states in float32: another right candidate than refimpl's own."""

    def _rounded(self, *args: object) -> Arrays:
        return {k: np.asarray(x) for k, x in super()._rounded(*args).items()}  # type: ignore[arg-type]


def narrow(x: Array, dtype: str) -> Array:
    """An array of float32 in a dtype of 16 bits; statistics, in float64, stay as they are."""
    if x.dtype != np.float32:
        return x
    return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


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
    """Write a safetensors file."""
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path)
    return path


def run_sample_project(
    case: Path, dtype: str, output: Path, *options: str, project: Path = PROJECT
) -> str:
    """Run the sample project, as a reader would; returns what it prints."""
    words = [project / "candidate.py", case, "-o", output, "--dtype", dtype, *options]
    done = subprocess.run(
        [sys.executable, "-W", "error", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
