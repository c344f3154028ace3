"""Processes that mpiexec started: `pytest -m mpi`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES
from test_resume import content, numbers

pytestmark = pytest.mark.mpi
ENV = os.environ | {"PYTHONPATH": str(FIXTURES.parent), "OMP_NUM_THREADS": "1"}
PROGRAM = (sys.executable, "-m", "refimpl")
MPI = (
    *(str(Path(sys.executable).parent / "mpiexec"), "-n", "3"),
    *(sys.executable, "-m", "mpi4py.futures", "-m", "refimpl"),
)


def ran(program: tuple[str, ...], *words: object) -> str:
    command = [*program, *map(str, words)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("options", [(), ("--perturbation", "pruning", "--base", "owl")])
def test_scores(options: tuple[str, ...], tmp_path: Path) -> None:
    words = ("score", FIXTURES / "llama", "--samples", 4, "--seq-len", 32, *options)
    ran(PROGRAM, *words, "-o", tmp_path / "here.json")
    ran(MPI, *words, "-o", tmp_path / "there.json", "--executor", "mpi")
    assert numbers(tmp_path / "there.json") == numbers(tmp_path / "here.json")


def test_a_budget(tmp_path: Path) -> None:
    words = ("score", FIXTURES / "llama", "--samples", 4, "--seq-len", 32)
    told = json.loads(ran(MPI, *words, "--executor", "mpi", "--estimate", "--json"))
    assert told["threads"] == 2
    ran(PROGRAM, *words, "-o", tmp_path / "here.json")
    ran(MPI, *words, "-o", tmp_path / "there.json", "--executor", "mpi", "--budget", 5)
    budget = {"budget_minutes": 5}
    assert numbers(tmp_path / "there.json") == numbers(tmp_path / "here.json") | budget


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_pruned_model(method: str, tmp_path: Path) -> None:
    words = ("prune", FIXTURES / "llama", "--samples", 4, "--method", method, "--nm", "2:4")
    ran(PROGRAM, *words, "-o", tmp_path / "here")
    ran(MPI, *words, "-o", tmp_path / "there", "--executor", "mpi")
    assert content(tmp_path / "there") == content(tmp_path / "here")
