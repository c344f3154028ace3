"""Fifty runs of each command killed at random moments, and one stopped at each of its steps.

`pytest -m kills -s` prints what became of the kills.
"""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import crashes
import numpy as np
import pytest
from conftest import FIXTURES
from documents import content, files, numbers, units
from processes import ended, printed_json, ran, started

LLAMA = FIXTURES / "llama"
SCORE = ("score", LLAMA, "--samples", 64, "--seq-len", 64)
PRUNE = ("prune", LLAMA, "--samples", 256, "--seq-len", 64, "--sparsity", 0.5)
COMMANDS: dict[str, tuple[object, ...]] = {
    "score": (*SCORE, "--perturbation", "gaussian"),
    "score, pruning": (*SCORE, "--perturbation", "pruning", "--base", "owl"),
    "prune, scored": PRUNE,
    "prune, sparsegpt": (*PRUNE[:-2], "--nm", "2:4", "--pruner", "sparsegpt"),
}
KILL, POLITE = (
    (signal.SIGKILL,),
    (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM),
)


def inode(path: Path) -> int | None:
    """What differs when an output is replaced, and its units go."""
    return path.stat().st_ino if path.exists() else None


def survives(
    words: tuple[object, ...],
    folder: Path,
    kills: int,
    signals: tuple[signal.Signals, ...] = KILL,
) -> int:
    """Stop a command so often at random moments, and compare; how many left finished units.

    Whenever it has ended, its output goes, or is to be replaced in the next run.
    """
    whole, output, model = folder / "whole", folder / "out", Path(str(words[1]))
    inputs, begin = files(model), time.monotonic()
    ran(*words, "-o", whole)
    length, result = time.monotonic() - begin, content if whole.is_dir() else numbers
    expected, random, before = result(whole), np.random.default_rng(0), list[str]()
    stops = resumable = ends = 0
    while stops < kills or before:
        aside = (
            folder / ".out.part" / "old"
        ).exists()  # a kill between the two renames
        force, old = ("--force",) if output.exists() or aside else (), inode(output)
        with started(*words, "-o", output, *force) as process:
            if stops < kills:
                try:
                    process.wait(random.uniform(0.2, 1.0) * length)
                except subprocess.TimeoutExpired:
                    process.send_signal(signals[stops % len(signals)])
                    process.wait()
            if process.returncode is None or process.returncode == 0:
                ended(process)
                ends, before = ends + 1, []
            else:
                assert process.returncode in (*(-x for x in signals), 130)
                after = units(output)
                assert len(after) == len(set(after)), "a result was computed twice"
                assert set(before) <= set(after) or inode(output) != old, (
                    "a result is lost"
                )
                stops, resumable, before = stops + 1, resumable + bool(after), after
        if output.exists():  # even after a kill, between the last rename and the end
            assert result(output) == expected
            if ends % 2:
                shutil.rmtree(output) if output.is_dir() else output.unlink()
        elif force:  # between two renames: the next run puts it back
            assert result(folder / ".out.part" / "old") == expected
    ran(*words, "-o", output, *(("--force",) if output.exists() else ()))
    assert result(output) == expected
    assert {path.name for path in folder.iterdir()} == {"whole", "out"}
    assert files(model) == inputs
    print(f"\n{stops} stops, {resumable} of them left finished units, {ends} ends")
    return resumable


@pytest.mark.kills
@pytest.mark.parametrize("kind", COMMANDS)
def test_fifty_kills(kind: str, tmp_path: Path) -> None:
    assert survives(COMMANDS[kind], tmp_path, 50) > 12


@pytest.mark.thorough
def test_a_few_stops(tmp_path: Path) -> None:
    words = ("prune", LLAMA, "--nm", "2:4", "--pruner", "sparsegpt", "--seq-len", 64)
    survives(words, tmp_path, 4, POLITE)


@pytest.mark.kills
@pytest.mark.parametrize("name", crashes.COMMANDS)
def test_a_command_that_is_stopped_at_every_step(name: str) -> None:
    steps = printed_json(crashes.__file__, f"stops({name!r})")
    print(f"\n{name}: {steps}")
    for how in crashes.HOWS:
        assert steps[how]["new"] > 1
        assert sum(steps[how].values()) > 8


@pytest.mark.thorough
def test_a_folder_that_is_replaced_is_stopped_at_every_step() -> None:
    counts = printed_json(crashes.__file__, "stops('a folder')")
    assert (
        counts["kill"]["aside"] == 3
    )  # the two names are brought to the disk, and a rename
    assert all(counts[how].keys() >= {"old", "new"} for how in crashes.HOWS)


@pytest.mark.parametrize(
    ("name", "steps", "stride"),
    [("allocate", 9, 4), pytest.param("export", 23, 11, marks=pytest.mark.thorough)],
)
def test_a_command_that_is_stopped_at_a_few_steps(
    name: str, steps: int, stride: int
) -> None:
    counts = printed_json(crashes.__file__, f"stops({name!r}, {steps}, {stride})")
    assert {sum(counts[how].values()) for how in crashes.HOWS} <= {-(-steps // stride)}
