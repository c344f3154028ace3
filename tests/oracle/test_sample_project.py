"""The sample project, in torch, agrees with every case; a line of it that is broken is named."""

import ast
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from candidates import CASE_NAMES, CASES, PROJECT, needs_torch, run_sample_project
from crafted_cases import CRAFTED, oracle_case
from mistakes import AREAS, MISTAKES, arrays_of, project, write_project
from program import ran, run
from safetensors.numpy import load_file

from refimpl.oracle.case import Case
from refimpl.oracle.check import check

ALLOWED = {"torch", "safetensors"}  # beyond the standard library and its own modules


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASE_NAMES)
def test_it_agrees_with_every_case(name: str, dtype: str, tmp_path: Path) -> None:
    actual = tmp_path / "actual.safetensors"
    printed = run_sample_project(CASES / name, dtype, actual)
    assert f"steps in {dtype} on the CPU" in printed
    arrays, truth = load_file(actual), load_file(CASES / name / "expected.safetensors")
    assert {k: v.shape for k, v in arrays.items()} == {k: v.shape for k, v in truth.items()}
    assert dtype in ran("check", CASES / name, actual)


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CASE_NAMES)
def test_in_16_bits_nothing_diverges(name: str, dtype: str, tmp_path: Path) -> None:
    """What follows a near tie is not judged; what comes before choices passes."""
    actual = tmp_path / "actual.safetensors"
    run_sample_project(CASES / name, dtype, actual)
    checked = run("check", CASES / name, actual, "--json", "--dtype", dtype)
    statuses = {step["step"]: step["status"] for step in json.loads(checked.out)["steps"]}
    assert set(statuses.values()) <= {"pass", "conditional"}, checked.out
    assert checked.code == (3 if "conditional" in statuses.values() else 0)
    before = [
        status for step, status in statuses.items() if step.startswith(("blocks.", "perturbed"))
    ]
    assert set(before) == {"pass"}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for crafted cases, which are made once."""
    yield tmp_path_factory.mktemp("crafted")
    case_in.cache_clear()


@cache
def case_in(name: str, parent: Path) -> Case:
    return oracle_case(name, parent)


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CRAFTED)
def test_it_agrees_with_crafted_cases(name: str, dtype: str, parent: Path) -> None:
    case = case_in(name, parent)
    report = check(case, arrays_of(right(), case, dtype), dtype=dtype)
    assert report.verdict == "pass", report.first


@cache
def right() -> ModuleType:
    return project()


BY_CASE = sorted(MISTAKES, key=lambda name: MISTAKES[name].case)  # so that a case is computed once


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("name", BY_CASE)
def test_a_mistake_is_named_at_its_step(name: str, parent: Path) -> None:
    mistake = MISTAKES[name]
    case = case_in(mistake.case, parent)
    report = check(case, arrays_of(project(mistake), case, "float32"), dtype="float32")
    assert report.verdict == "divergent"
    assert report.first is not None
    assert report.first.step == mistake.step
    assert report.first.causes("float32")


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("area", AREAS)
def test_the_command_names_a_mistake_of_every_area(area: str, parent: Path, tmp_path: Path) -> None:
    name, mistake = next(iter(AREAS[area].items()))
    folder, actual = tmp_path / "project", tmp_path / "actual.safetensors"
    write_project(folder, mistake)
    case = case_in(mistake.case, parent).folder
    run_sample_project(case, "float32", actual, project=folder)
    checked = run("check", case, actual, "--json")
    assert checked.code == 1, (name, checked.out)
    first = json.loads(checked.out)["first"]
    assert first["step"] == mistake.step
    assert first["usual_causes"]


def test_mistakes_are_many_and_each_is_one_line() -> None:
    assert len(MISTAKES) == sum(len(area) for area in AREAS.values()) >= 45
    assert {mistake.case for mistake in MISTAKES.values()} - set(CASE_NAMES) == set(CRAFTED)
    assert all(mistake.file for mistake in MISTAKES.values())


@cache
def imported(path: Path) -> frozenset[str]:
    """First words of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module is not None
            names.add(node.module.split(".")[0])
    return frozenset(names)


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
