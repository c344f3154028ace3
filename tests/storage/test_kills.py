"""Fifty runs of each command killed at random moments, and one before each of its steps.

`pytest -m kills -s` prints what became of the kills.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from test_folder import CHANGES
from test_resume import content, keys, numbers

from refimpl.cli.main import main

KILLS = 50
LLAMA = FIXTURES / "llama"
ENV = os.environ | {"PYTHONPATH": str(FIXTURES.parent), "OMP_NUM_THREADS": "1"}
SCORE = ("score", LLAMA, "--samples", 64, "--seq-len", 64)
PRUNE = ("prune", LLAMA, "--samples", 256, "--seq-len", 64, "--sparsity", 0.5)
COMMANDS: dict[str, tuple[object, ...]] = {
    "score": (*SCORE, "--draws", 6),
    "score, pruning": (*SCORE, "--perturbation", "pruning", "--base", "owl"),
    "score, processes": (*SCORE, "--draws", 6, "--executor", "processes", "--threads", 2),
    "prune, scored": (*PRUNE, "--base", "owl"),
    "prune, sparsegpt": (*PRUNE[:-2], "--nm", "2:4", "--method", "sparsegpt"),
    "prune, processes": (*PRUNE[:-2], "--nm", "2:4", "--executor", "processes", "--threads", 2),
}


def command(words: tuple[object, ...], output: Path) -> list[str]:
    return [sys.executable, "-m", "refimpl", *map(str, (*words, "-o", output, "--resume"))]


def result(output: Path) -> Any:
    return content(output) if output.is_dir() else numbers(output)


def found(output: Path) -> list[str]:
    """Keys of what is kept, as far as there is any."""
    kept = output.with_name(f".{output.name}.part") / "kept"
    parts = (output.with_name(f"{output.name}.part"), kept / "scores", kept / "blocks")
    return [f"{part.name} {key}" for part in parts if part.exists() for key in keys(part)]


@pytest.mark.kills
@pytest.mark.parametrize("kind", COMMANDS)
def test_fifty_kills(kind: str, tmp_path: Path) -> None:
    words, whole, output = COMMANDS[kind], tmp_path / "whole", tmp_path / "out"
    started = time.monotonic()
    subprocess.run(command(words, whole), env=ENV, capture_output=True, check=True)
    length, expected = time.monotonic() - started, result(whole)
    random, kills, ends, taken_up, known = np.random.default_rng(0), 0, 0, 0, list[str]()
    while kills < KILLS or known:
        process = subprocess.Popen(
            command(words, output), env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            wait = random.uniform(0.2, 1.0) * length if kills < KILLS else 600
            _, err = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills += 1
            if output.exists():  # killed between the last rename and the end
                assert result(output) == expected
            now = found(output)
            assert len(now) == len(set(now)), "a unit was found twice"
            assert set(known) <= set(now) or output.exists(), "what was kept is lost"
            known, taken_up = now, taken_up + bool(now)
        else:
            assert process.returncode == 0, err.decode()
            ends += 1
        if output.exists():
            assert result(output) == expected
            shutil.rmtree(output) if output.is_dir() else output.unlink()
            known = []  # what a kill after the last rename left is nobody's to take up
    names = {path.name for path in tmp_path.iterdir()} - {"whole", ".out.part", "out.part"}
    assert names == set()
    print(f"\n{kind}: {kills} kills, {taken_up} of them left something to take up, {ends} ends")
    assert taken_up > KILLS / 4


def kill_at_every_step(top: str) -> None:
    """Fork a pruning for each of its steps, killed before it; take it up; compare.

    A step is anything that changes the file system, as Python's audit events tell.
    """
    words = ["prune", str(LLAMA), "--samples", "2", "--seq-len", "9", "--sparsity", "0.5"]
    whole = Path(top, "whole")
    program(*words, "-o", whole)
    expected, number, killed, states = content(whole), 0, True, dict[str, int]()
    while killed:
        output = Path(top, str(number), "out")
        shutil.copytree(LLAMA, output)
        old = {path.name: path.read_bytes() for path in output.iterdir()}
        child = os.fork()
        if not child:
            left = number

            def step(event: str, args: tuple[Any, ...]) -> None:
                nonlocal left
                reading = event == "open" and not (
                    isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
                )
                if event in CHANGES and not reading:
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1

            sys.addaudithook(step)
            program(*words, "-o", output, "--force")
            os._exit(0)
        killed = bool(os.waitpid(child, 0)[1])
        hidden = output.parent / ".out.part"
        if not output.exists():
            state = "moved aside"
            assert {p.name: p.read_bytes() for p in (hidden / "old").iterdir()} == old
        elif "pruning.json" in {path.name for path in output.iterdir()}:
            state = "new"
            assert content(output) == expected
        else:
            state = "old"
            assert {p.name: p.read_bytes() for p in output.iterdir()} == old
        states[state] = states.get(state, 0) + 1
        program(*words, "-o", output, "--force", "--resume")
        assert content(output) == expected
        assert os.listdir(output.parent) == ["out"]
        shutil.rmtree(output.parent)
        number += 1
    print(json.dumps(states))


def program(*words: object) -> None:
    """Run the command line here, and say nothing."""
    sys.argv = ["refimpl", *map(str, words), "--json"]
    out, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
    try:
        main()
    except SystemExit as left:
        if left.code:
            raise
    finally:
        sys.stdout = out


@pytest.mark.kills
def test_a_kill_at_every_step_of_a_pruning(tmp_path: Path) -> None:
    code = f"import test_kills; test_kills.kill_at_every_step({str(tmp_path)!r})"
    env = ENV | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=env, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    states = json.loads(done.stdout)
    print(f"\na kill before each step of a pruning: {states}")
    assert states["old"] > 60
    assert states["moved aside"] == 1
    assert states["new"] > 3
