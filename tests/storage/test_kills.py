"""Fifty runs of each command killed at random moments, and one before each of its steps.

`pytest -m kills -s` prints what became of the kills.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import crashes
import numpy as np
import pytest
from conftest import FIXTURES
from documents import content, files, keys, numbers
from processes import ended, killed_before_step, printed_json, ran, started
from program import ran as ran_here

KILLS = 50
LLAMA = FIXTURES / "llama"
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


def result(output: Path) -> Any:
    return content(output) if output.is_dir() else numbers(output)


def partial_keys(output: Path) -> list[str]:
    """Keys of all partial results of a run."""
    kept = output.with_name(f".{output.name}.part") / "kept"
    parts = (output.with_name(f"{output.name}.part"), kept / "scores", kept / "blocks")
    return [f"{part.name} {key}" for part in parts for key in keys(part)]


@pytest.mark.kills
@pytest.mark.parametrize("kind", COMMANDS)
def test_fifty_kills(kind: str, tmp_path: Path) -> None:
    words, whole, output = COMMANDS[kind], tmp_path / "whole", tmp_path / "out"
    begin = time.monotonic()
    ran(*words, "-o", whole, "--resume")
    length, expected = time.monotonic() - begin, result(whole)
    random, kills, ends, resumable, before = np.random.default_rng(0), 0, 0, 0, list[str]()
    while kills < KILLS or before:
        with started(*words, "-o", output, "--resume") as process:
            if kills < KILLS:
                try:
                    process.wait(random.uniform(0.2, 1.0) * length)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.returncode == -signal.SIGKILL:
                kills += 1
                after = partial_keys(output)
                assert len(after) == len(set(after)), "a result was computed twice"
                assert set(before) <= set(after) or output.exists(), "a result is lost"
                before, resumable = after, resumable + bool(after)
            else:
                ended(process)
                ends += 1
        if output.exists():  # even after a kill, between the last rename and the end
            assert result(output) == expected
            shutil.rmtree(output) if output.is_dir() else output.unlink()
            before = []  # no run resumes what a kill after the last rename left
    names = {path.name for path in tmp_path.iterdir()} - {"whole", ".out.part", "out.part"}
    assert names == set()
    print(f"\n{kind}: {kills} kills, {resumable} of them left partial results, {ends} ends")
    assert resumable > KILLS / 4


def kill_at_every_step(top: str) -> None:
    """Kill a pruning before each of its steps; resume it; compare; print what the kills left."""
    words = ("prune", LLAMA, "--samples", 2, "--seq-len", 9, "--sparsity", 0.5)
    whole = Path(top, "whole")
    ran_here(*words, "-o", whole)
    expected, number, killed, states = content(whole), 0, True, dict[str, int]()
    while killed:
        output = Path(top, str(number), "out")
        shutil.copytree(LLAMA, output)
        old, forced = files(output), (*words, "-o", output, "--force")
        killed = killed_before_step(number, lambda: ran_here(*forced))  # noqa: B023
        if not output.exists():
            state = "moved aside"
            assert files(output.parent / ".out.part" / "old") == old
        elif (output / "pruning.json").exists():
            state = "new"
            assert content(output) == expected
        else:
            state = "old"
            assert files(output) == old
        states[state] = states.get(state, 0) + 1
        ran_here(*forced, "--resume")
        assert content(output) == expected
        assert os.listdir(output.parent) == ["out"]
        shutil.rmtree(output.parent)
        number += 1
    print(json.dumps(states))


@pytest.mark.kills
def test_a_kill_at_every_step_of_a_pruning(tmp_path: Path) -> None:
    states = printed_json(__file__, f"kill_at_every_step({str(tmp_path)!r})")
    print(f"\na kill before each step of a pruning: {states}")
    assert states["old"] > 60
    assert states["moved aside"] == 3
    assert states["new"] > 3


@pytest.mark.kills
@pytest.mark.parametrize("name", crashes.COMMANDS)
def test_a_command_that_is_stopped_at_every_step_and_write(name: str) -> None:
    steps, writes = crashes.both(name)
    print(f"\n{crashes.row(name, steps, writes)}")
    for how in crashes.HOWS:
        assert steps[how]["new"] > 1
        assert sum(steps[how].values()) > 8
        assert sum(writes[how].values()) > 0


def test_a_command_that_is_stopped_at_a_few_steps() -> None:
    counts = printed_json(crashes.__file__, "stops('allocate', 11, 5)")
    assert [sum(counts[how].values()) for how in crashes.HOWS] == [3, 3, 3]


@pytest.mark.parametrize(("name", "writes"), [("allocate", 1), ("score", 3)])
def test_a_command_that_is_stopped_in_a_write(name: str, writes: int) -> None:
    counts = printed_json(crashes.__file__, f"stops({name!r}, writes=True)", writes=True)
    assert counts == {how: {"old": writes} for how in crashes.HOWS}
