"""Processes that mpiexec started: `pytest -m mpi`."""

import json
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES
from documents import content, numbers
from processes import ran

pytestmark = pytest.mark.mpi
MPI = (
    *(str(Path(sys.executable).parent / "mpiexec"), "-n", "3"),
    *(sys.executable, "-m", "mpi4py.futures", "-m", "refimpl"),
)
SCORE = ("score", FIXTURES / "llama", "--samples", 4, "--seq-len", 32)


@pytest.mark.parametrize("options", [(), ("--perturbation", "pruning", "--base", "owl")])
def test_scores(options: tuple[str, ...], tmp_path: Path) -> None:
    ran(*SCORE, *options, "-o", tmp_path / "here.json")
    ran(*SCORE, *options, "-o", tmp_path / "there.json", "--executor", "mpi", program=MPI)
    assert numbers(tmp_path / "there.json") == numbers(tmp_path / "here.json")


def test_a_budget(tmp_path: Path) -> None:
    place = ("--executor", "mpi")
    estimate = json.loads(ran(*SCORE, *place, "--estimate", "--json", program=MPI))
    assert estimate["threads"] == 2
    ran(*SCORE, "-o", tmp_path / "here.json")
    ran(*SCORE, "-o", tmp_path / "there.json", *place, "--budget", 5, program=MPI)
    budget = {"budget_minutes": 5}
    assert numbers(tmp_path / "there.json") == numbers(tmp_path / "here.json") | budget


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_pruned_model(method: str, tmp_path: Path) -> None:
    words = ("prune", FIXTURES / "llama", "--samples", 4, "--method", method, "--nm", "2:4")
    ran(*words, "-o", tmp_path / "here")
    ran(*words, "-o", tmp_path / "there", "--executor", "mpi", program=MPI)
    assert content(tmp_path / "there") == content(tmp_path / "here")
