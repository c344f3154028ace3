"""The sample project, in torch, agrees with the cases; a line of it that is broken is named."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from candidates import CORE, PROJECT, needs_torch, project, project_arrays
from crafted_cases import CRAFTED, oracle_case
from gates import case_folder_of, case_of
from program import run

from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.oracle.check import check
from refimpl.oracle.measures import kind_of


def checked(case: Path, dtype: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """Run the sample project, as a reader would: the exit code and the report of the check."""
    actual = folder / "actual.safetensors"
    words = (PROJECT / "candidate.py", case, "-o", actual, "--dtype", dtype)
    done = subprocess.run(
        [sys.executable, "-W", "error", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert f"steps in {dtype} on cpu" in done.stdout
    asked = ("--dtype", dtype) if dtype.endswith("16") else ()
    result = run("check", case, actual, "--json", *asked)
    report = json.loads(result.out)
    assert report["dtype"] == dtype
    return result.code, report


@needs_torch
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", [*CORE, "mistral", "qwen2"])
def test_it_agrees_with_every_case_of_its_families(
    name: str, dtype: str, tmp_path: Path
) -> None:
    """In 16 bits the method is not judged."""
    code, report = checked(case_folder_of(name), dtype, tmp_path)
    arrays, truth = (
        SafetensorsFile(tmp_path / "actual.safetensors").arrays,
        case_of(name).expected,
    )
    assert {k: v.shape for k, v in arrays.items()} == {
        k: v.shape for k, v in truth.items()
    }
    statuses = {step["step"]: step["status"] for step in report["steps"]}
    rest = {kind_of(x) for x, status in statuses.items() if status != "pass"}
    assert {*statuses.values()} <= {"pass", "unresolved"}, report["first"]
    assert code == (3 if dtype.endswith("16") else 0)
    assert not rest or dtype.endswith("16")


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CRAFTED)
def test_it_agrees_with_crafted_cases(name: str, dtype: str) -> None:
    case = oracle_case(name)
    report = check(case, project_arrays(right(), case, dtype), dtype=dtype)
    assert report.verdict == "pass", report.first


@cache
def right() -> ModuleType:
    return project()


@needs_torch
@pytest.mark.parametrize(
    ("edit", "name", "step", "words"),
    [
        (
            (" + eps) * scale", ") * scale"),
            "llama",
            "blocks.0.attn_norm",
            "norm_eps is 0",
        ),
        (
            ("repeat_interleave(groups, 1)", "repeat(1, groups, 1, 1)"),
            "llama",
            "blocks.0.attn_out",
            "key-value heads are tiled (h % K), not repeated",
        ),
        (
            ('recipe["eta"] * size', 'recipe["eta"] * 1'),
            "qwen2",
            "perturbed.0.drift",
            "noise has the size eta, whatever the state's",
        ),
        (
            ("damping * h.diagonal()", "0.5 * damping * h.diagonal()"),
            "plain",
            "sparsegpt.blocks.0.q_proj.keep",
            "`damping` is `damping / 2` in factored",
        ),
    ],
)
def test_a_mistake_is_named_at_its_step(
    edit: tuple[str, str], name: str, step: str, words: str
) -> None:
    case = oracle_case(name)
    first = check(case, project_arrays(project(edit), case)).first
    assert first is not None
    assert (first.step, first.diagnosis.partition(" if ")[2]) == (step, words)


def test_it_shares_no_code_with_refimpl() -> None:
    files = sorted(PROJECT.rglob("*.py"))
    assert len(files) == 5
    lines = [line for path in files for line in path.read_text("utf-8").splitlines()]
    assert not [line for line in lines if "import" in line and "refimpl" in line]
