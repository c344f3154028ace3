"""The sample project, in torch, agrees with every case; a line of it that is broken is named."""

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from candidates import CASE_NAMES, CASES, EACH_CASE, PROJECT, needs_torch
from crafted_cases import CRAFTED, oracle_case
from gates import case_of
from mistakes import AREAS, MISTAKES, Mistake, arrays_of, mistakes, project, write_project
from program import run

from refimpl.oracle.check import check, read_candidate
from refimpl.oracle.measures import stage_of

ALLOWED = {"torch", "safetensors"}  # beyond the standard library and its own modules


def checked(
    case: Path, dtype: str, folder: Path, *way: str, mistake: Mistake | None = None
) -> tuple[int, dict[str, Any]]:
    """Run the sample project, as a reader would: the exit code and the report of the check."""
    actual = folder / "actual.safetensors"
    write_project(folder / "project", mistake)
    words = (folder / "project" / "candidate.py", case, "-o", actual, "--dtype", dtype, *way)
    done = subprocess.run(
        [sys.executable, "-W", "error", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert f"steps in {dtype} on the CPU" in done.stdout
    asked = ("--dtype", dtype) if dtype.endswith("16") else ()
    result = run("check", case, actual, "--json", *asked, *way)
    report = json.loads(result.out)
    assert report["dtype"] == dtype
    return result.code, report


@needs_torch
@pytest.mark.parametrize("way", [(), ("--stepwise",)], ids=["chained", "stepwise"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", EACH_CASE)
def test_it_agrees_with_every_case(
    name: str, dtype: str, way: tuple[str, ...], tmp_path: Path
) -> None:
    """Chained in 16 bits, what follows a near tie is not judged."""
    code, report = checked(CASES / name, dtype, tmp_path, *way)
    arrays, truth = read_candidate(tmp_path / "actual.safetensors"), case_of(name).expected
    assert {k: v.shape for k, v in arrays.items()} == {k: v.shape for k, v in truth.items()}
    statuses = {step["step"]: step["status"] for step in report["steps"]}
    rest = set(statuses.values()) - {"pass"}
    assert rest <= {"conditional", "unresolved"}, report["first"]
    assert code == (3 if rest else 0)
    assert not rest or dtype.endswith("16")
    assert not way or report["verdict"] != "fail"
    after_ties = {step for step, status in statuses.items() if status == "conditional"}
    assert not after_ties or not way
    assert not [step for step in after_ties if step.startswith(("blocks.", "perturbed"))]


@needs_torch
def test_decisions_after_wrong_counts_are_judged(tmp_path: Path) -> None:
    """In 16 bits, an input may be dead where the reference has no bound on its error."""
    mistake = MISTAKES["counts split equally over linears"]
    code, report = checked(CASES / "opt", "float16", tmp_path, mistake=mistake)
    assert (code, report["first"]["step"]) == (1, "owl.counts")


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CRAFTED)
def test_it_agrees_with_crafted_cases(name: str, dtype: str) -> None:
    case = oracle_case(name)
    report = check(case, arrays_of(right(), case, dtype), dtype=dtype)
    assert report.verdict == "pass", report.first


@cache
def right() -> ModuleType:
    return project()


BY_CASE = sorted(MISTAKES, key=lambda name: MISTAKES[name].case)  # so that a case is computed once


@needs_torch
@pytest.mark.parametrize("name", BY_CASE)
def test_a_mistake_is_named_at_its_step(name: str) -> None:
    mistake = MISTAKES[name]
    case = oracle_case(mistake.case)
    report = check(case, arrays_of(project(mistake), case, "float32"), dtype="float32")
    assert report.verdict == "fail"
    assert report.first is not None
    assert report.first.step == mistake.step
    assert report.first.causes("float32")


@needs_torch
@pytest.mark.parametrize("area", AREAS)
def test_the_command_names_a_mistake_of_every_area(area: str, tmp_path: Path) -> None:
    name, mistake = next(iter(AREAS[area].items()))
    code, report = checked(oracle_case(mistake.case).folder, "float32", tmp_path, mistake=mistake)
    assert code == 1, name
    assert report["first"]["step"] == mistake.step
    assert report["first"]["usual_causes"]


HALF = mistakes(
    "sparsegpt.blocks.0.q_proj.weight",
    ("half the compensation", "error = w[:, i] * ~keep[:, i] / ⟦→2 / ⟧u[i, i]", "qwen3"),
)
MEASURED = {"drift", "alignment", "absorption_coefficient", "stderr"}  # the coarse ones are, too
# The case, the dtype, and the divergent steps' last words; of a mistake in the forward, its steps'.
DIVERGENT = {
    "a window one token longer": ("mistral", "bfloat16", {"attn_out"}),
    "eps omitted": ("llama", "float32", {"attn_norm", "mlp_norm", "final_norm"}),
    "a perturbation that is not scaled": ("qwen2", "float16", MEASURED),
    "AlphaPruning with the intended xmin": ("qwen3", "float32", {"signal"}),
    "smallest remainders first": ("llama", "float32", {"counts"}),
    "Wanda over the matrix": ("gpt2", "bfloat16", {"keep"}),
    "half the compensation": ("qwen3", "bfloat16", {"weight"}),
}


@needs_torch
@pytest.mark.parametrize("name", DIVERGENT)
def test_step_by_step_a_mistake_is_named_where_it_is(name: str, tmp_path: Path) -> None:
    case, dtype, last_words = DIVERGENT[name]
    mistake = (MISTAKES | HALF)[name]
    code, report = checked(CASES / case, dtype, tmp_path, "--stepwise", mistake=mistake)
    assert code == 1
    steps = [step["step"] for step in report["steps"] if step["status"] == "divergent"]
    forward = [step for step in steps if stage_of(step) == "forward"]
    assert {step.rsplit(".", 1)[-1] for step in forward or steps} == last_words


def test_mistakes_are_many_and_each_is_one_edit(tmp_path: Path) -> None:
    assert len(MISTAKES) == sum(len(area) for area in AREAS.values()) >= 45
    assert {mistake.case for mistake in MISTAKES.values()} - set(CASE_NAMES) == set(CRAFTED)
    for number, mistake in enumerate(MISTAKES.values()):
        write_project(tmp_path / str(number), mistake)


def test_it_shares_no_code_with_refimpl() -> None:
    files = sorted(PROJECT.rglob("*.py"))
    assert len(files) == 8
    modules = {path.stem for path in files} | ALLOWED | set(sys.stdlib_module_names)
    for path in files:
        text = path.read_text("utf-8")
        names: list[str | None] = []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names.append(node.module)
        assert {str(name).split(".")[0] for name in names} <= modules, path.name
        assert "import_module" not in text
        assert "__import__" not in text
