"""The sample project, in torch, agrees with every case; a line of it that is broken is named."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from conftest import FIXTURES
from mistakes import AREAS, CRAFTED, MISTAKES, PROJECT, case_of, computed, project, write_project
from program import run
from safetensors.numpy import load_file

from refimpl.oracle.case import Case
from refimpl.oracle.check import check

CASES = FIXTURES / "cases"
NAMES = sorted(folder.name for folder in CASES.iterdir())
ALLOWED = {"torch", "safetensors"}  # beyond the standard library and its own modules

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")


def candidate(
    case: Path, dtype: str, output: Path, folder: Path = PROJECT
) -> subprocess.CompletedProcess[str]:
    """Run the sample project, as a reader would."""
    words = [folder / "candidate.py", case, "-o", output, "--dtype", dtype]
    done = subprocess.run(
        [sys.executable, "-W", "error", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_it_agrees_with_every_case(name: str, dtype: str, tmp_path: Path) -> None:
    actual = tmp_path / "actual.safetensors"
    done = candidate(CASES / name, dtype, actual)
    assert f"steps in {dtype} on the CPU" in done.stdout
    found, truth = load_file(actual), load_file(CASES / name / "expected.safetensors")
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in truth.items()}
    checked = run("check", CASES / name, actual)
    assert checked.code == 0, checked.out
    assert dtype in checked.out


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_in_16_bits_nothing_diverges(name: str, dtype: str, tmp_path: Path) -> None:
    """What follows a near tie is not judged; what comes before choices passes."""
    actual = tmp_path / "actual.safetensors"
    candidate(CASES / name, dtype, actual)
    checked = run("check", CASES / name, actual, "--json", "--dtype", dtype)
    found = {step["step"]: step["status"] for step in json.loads(checked.out)["steps"]}
    assert set(found.values()) <= {"pass", "conditional"}, checked.out
    assert checked.code == (3 if "conditional" in found.values() else 0)
    before = [status for step, status in found.items() if step.startswith(("blocks.", "perturbed"))]
    assert set(before) == {"pass"}


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for crafted cases, which are made once."""
    yield tmp_path_factory.mktemp("crafted")
    made.cache_clear()


@cache
def made(name: str, away: Path) -> Case:
    return case_of(name, away)


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CRAFTED)
def test_it_agrees_with_crafted_cases(name: str, dtype: str, away: Path) -> None:
    case = made(name, away)
    report = check(case, computed(right(), case, dtype), dtype=dtype)
    assert report.verdict == "pass", report.first


@cache
def right() -> ModuleType:
    return project()


BY_CASE = sorted(MISTAKES, key=lambda name: MISTAKES[name].case)  # so that a case is computed once


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("name", BY_CASE)
def test_a_mistake_is_named_at_its_step(name: str, away: Path) -> None:
    mistake = MISTAKES[name]
    case = made(mistake.case, away)
    report = check(case, computed(project(mistake), case, "float32"), dtype="float32")
    assert report.verdict == "divergent"
    assert report.first is not None
    assert report.first.step == mistake.step
    assert report.first.causes("float32")


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("area", AREAS)
def test_the_command_names_a_mistake_of_every_area(area: str, away: Path, tmp_path: Path) -> None:
    name, mistake = next(iter(AREAS[area].items()))
    folder, actual = tmp_path / "project", tmp_path / "actual.safetensors"
    write_project(folder, mistake)
    case = made(mistake.case, away).folder
    candidate(case, "float32", actual, folder)
    checked = run("check", case, actual, "--json")
    assert checked.code == 1, (name, checked.out)
    first = json.loads(checked.out)["first"]
    assert first["step"] == mistake.step
    assert first["usual_causes"]


def test_mistakes_are_many_and_each_is_one_line() -> None:
    assert len(MISTAKES) == sum(len(area) for area in AREAS.values()) >= 45
    assert {mistake.case for mistake in MISTAKES.values()} - set(NAMES) == set(CRAFTED)
    for name, mistake in MISTAKES.items():
        assert (PROJECT / mistake.file).read_text("utf-8").count(mistake.line) == 1, name


@cache
def imported(path: Path) -> frozenset[str]:
    """First words of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module is not None
            found.add(node.module.split(".")[0])
    return frozenset(found)


def test_it_shares_no_code_with_refimpl() -> None:
    files = sorted(PROJECT.rglob("*.py"))
    assert len(files) == 7
    own = {path.stem for path in files}
    for path in files:
        others = imported(path) - own - set(sys.stdlib_module_names)
        assert others <= ALLOWED, (path.name, others)
        text = path.read_text("utf-8")
        assert "import_module" not in text
        assert "__import__" not in text
