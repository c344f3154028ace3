"""Runs of score and prune, interrupted and taken up: nothing is repeated, nothing differs."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from program import Result, run

from refimpl import RefimplError
from refimpl.pruning.partial_pruning import PartialPruning
from refimpl.storage.partial_results import PartialResults

LLAMA = FIXTURES / "llama"
SMALL = ("--samples", 3, "--seq-len", 12)
SCORES = {
    "gaussian": ("--eta", "0.01,0.5", "--draws", 2),
    "pruning": ("--perturbation", "pruning", "--base", "owl", "--correct", "divergence"),
    "alphas": ("--base", "alphapruning", "--sparsity", 0.4),
}
PRUNINGS = {
    "wanda": ("--nm", "2:4"),
    "sparsegpt": ("--nm", "2:4", "--method", "sparsegpt"),
    "random": ("--nm", "2:4", "--method", "random"),
    "scored": ("--sparsity", 0.5, "--base", "owl", "--method", "sparsegpt"),
    "signals": ("--sparsity", 0.5, "--base", "owl", "--correct", "none"),
}
PLACES = (("--threads", 1), ("--threads", 2, "--memory", "64K"), ("--executor", "processes"))


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units so small that these runs have many."""
    monkeypatch.setattr("refimpl.scoring.experiment.KEPT", 3)
    monkeypatch.setattr("refimpl.scoring.dense_statistics.KEPT", 1)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Interrupt what comes next when it has written so many lines, and half of another one."""
    write = PartialResults._write

    def after(number: int) -> None:
        left = number  # of which the first one of a part says what the run is

        def writing(self: PartialResults[Any, Any], row: Any) -> None:
            nonlocal left
            if left == 0:
                monkeypatch.setattr(PartialResults, "_write", write)
                self._file.write(b'{"state 0 0 0 0": [[0.25, 0.')  # torn
                self._file.flush()
                raise KeyboardInterrupt
            left -= 1
            write(self, row)

        monkeypatch.setattr(PartialResults, "_write", writing)

    return after


def ran(*words: object) -> str:
    result = run(*words)
    assert (result.code, result.err) == (0, "")
    return result.out


def refused(*words: object) -> Result:
    result = run(*words)
    assert (result.code, result.out) == (2, "")
    assert "\nnext: " in result.err
    return result


def numbers(path: Path) -> dict[str, Any]:
    """A document without what differs from run to run."""
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "run"}


def keys(part: Path) -> list[str]:
    """Keys in the whole lines of a part, in order."""
    lines = part.read_bytes().splitlines(keepends=True)
    return [key for line in lines[1:] if line.endswith(b"\n") for key in json.loads(line)]


# ---- score --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("place", PLACES[:2])
def test_interrupted_scores_are_those_of_one_run(
    kind: str, place: tuple[object, ...], tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    words = ("score", LLAMA, *SMALL, *SCORES[kind])
    ran(*words, "-o", tmp_path / "whole.json")
    output, part = tmp_path / "out.json", tmp_path / "out.json.part"
    found, interrupts = 0, 0
    while True:
        interrupt(2)
        result = run(*words, *(place if interrupts % 2 else ()), "-o", output, "--resume")
        if result.code == 0:
            break
        assert result == Result(130, "", "")
        assert not output.exists()
        known = keys(part)
        assert len(known) == len(set(known)) > found  # nothing is found twice
        found, interrupts = len(known), interrupts + 1
    assert interrupts > (3 if place == PLACES[0] else 1)
    assert numbers(output) == numbers(tmp_path / "whole.json")
    assert sorted(os.listdir(tmp_path)) == ["out.json", "whole.json"]


@pytest.mark.parametrize("kind", SCORES)
def test_one_engine_takes_up_what_another_found(
    kind: str, tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    words = ("score", LLAMA, *SMALL, *SCORES[kind])
    ran(*words, "-o", tmp_path / "whole.json")
    output, part = tmp_path / "out.json", tmp_path / "out.json.part"
    for place, after in ((PLACES[2], 3), (PLACES[0], 2), (PLACES[2], 1)):
        interrupt(after)
        assert run(*words, *place, "-o", output, "--resume").code == 130
        assert len(keys(part)) == len(set(keys(part))) > 0
    ran(*words, "-o", output, "--resume")
    assert numbers(output) == numbers(tmp_path / "whole.json")


def test_what_is_kept_is_refused_without_resume(
    tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    words = ("score", LLAMA, *SMALL, "-o", tmp_path / "out.json")
    interrupt(2)
    assert run(*words).code == 130
    before = (tmp_path / "out.json.part").read_bytes()
    assert "add --resume to continue that run, or remove the file" in refused(*words).err
    for change, named in (
        (("--eta", 0.5), "perturbation differ"),
        (("--dtype", "float64"), "dtype differ"),
        (("--seq-len", 11), "tokens differ"),
        (("--seed", 1), "perturbation, tokens differ"),
        (("--base", "owl"), "base differ"),
        (("--perturbation", "pruning", "--correct", "divergence"), "base, divergence, perturb"),
    ):
        error = refused(*words, *change, "--resume").err
        assert f"out.json.part belongs to another run: {named}" in error
    assert (tmp_path / "out.json.part").read_bytes() == before
    ran(*words, "--sparsity", 0.3, "--resume")  # which no unit depends on


def test_a_custom_base_is_part_of_what_the_run_is(
    tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    base = tmp_path / "base.json"
    base.write_text("[0.4, 0.5, 0.6, 0.7]")
    options = ("--perturbation", "pruning", "--base", base)
    words = ("score", LLAMA, *SMALL, *options, "-o", tmp_path / "out.json")
    interrupt(2)
    assert run(*words).code == 130
    base.write_text("[0.7, 0.6, 0.5, 0.4]")
    assert "belongs to another run: base differ" in refused(*words, "--resume").err


def test_resume_needs_an_output() -> None:
    assert "--resume without -o" in refused("score", LLAMA, *SMALL, "--resume").err


def test_two_runs_do_not_keep_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json.part"
    with (
        PartialResults(path, {"a": 1}, resume=False),
        pytest.raises(RefimplError, match="another run is writing it"),
    ):
        PartialResults(path, {"a": 1}, resume=True)
    with PartialResults(path, {"a": 1}, resume=True) as part:
        assert part.results == {}


def test_numbers_come_back_bit_for_bit(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = {
        "floats": random.standard_normal(50).tolist(),
        "odd": [np.pi * 1e-310, -0.0, 1e308, float("nan"), float("inf")],
        "array": random.standard_normal((3, 4)),
        "small": random.standard_normal(3).astype(np.float32),
        "nested": [{"x": np.arange(3), "y": [1, True, None, "text"]}],
    }
    with PartialResults(tmp_path / "p", {}, resume=False) as part:
        part.add(values)
    with PartialResults(tmp_path / "p", {}, resume=True) as part:
        found = part.results
    assert str(found) == str(values)
    for name in ("floats", "odd"):
        assert np.array(found[name]).tobytes() == np.array(values[name]).tobytes()
    for name in ("array", "small"):
        assert found[name].dtype == values[name].dtype  # type: ignore[attr-defined]
        assert found[name].tobytes() == values[name].tobytes()  # type: ignore[attr-defined]


# ---- prune --------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    """Files of a model's folder, `pruning.json` without what differs from run to run."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | {"pruning.json": repr(numbers(folder / "pruning.json")).encode()}


@pytest.mark.parametrize("kind", PRUNINGS)
def test_an_interrupted_pruning_is_that_of_one_run(
    kind: str, tmp_path: Path, interrupt: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("prune", LLAMA, *(() if kind == "random" else SMALL), *PRUNINGS[kind])
    ran(*words, "-o", tmp_path / "whole")
    out, hidden, done = tmp_path / "out", tmp_path / ".out.part", list[int]()
    add = PartialPruning.add

    def noted(self: PartialPruning, block: int, *given: Any) -> None:
        add(self, block, *given)
        done.append(block)

    monkeypatch.setattr(PartialPruning, "add", noted)
    for number in range(99):
        interrupt(1)
        result = run(*words, "-o", out, "--resume", *PLACES[number % 2])
        if result.code == 0:
            break
        assert result == Result(130, "", "")
        assert not out.exists()
        states = [path.name for path in (hidden / "kept").glob("states-*")]
        assert len(states) <= 2
    assert number > (4 if kind in ("wanda", "sparsegpt", "random") else 6)
    assert done == [0, 1, 2, 3]  # each block once
    assert content(out) == content(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


@pytest.mark.parametrize("kind", ["wanda", "sparsegpt"])
def test_one_engine_takes_up_what_another_pruned(
    kind: str, tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    words, out = ("prune", LLAMA, *SMALL, *PRUNINGS[kind]), tmp_path / "out"
    ran(*words, "-o", tmp_path / "whole")
    for place in (PLACES[2], PLACES[0], PLACES[2]):  # lines: what the run is, that all is copied
        interrupt(3 if not (tmp_path / ".out.part").exists() else 1)
        assert run(*words, *place, "-o", out, "--resume").code == 130
    assert keys(tmp_path / ".out.part" / "kept" / "blocks") == ["copied", "0", "1", "2"]
    ran(*words, *PLACES[0], "-o", out, "--resume")
    assert content(out) == content(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def full_disk(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """A disk without room for the line that holds a key, which has room again when that is told."""
    add = PartialResults.add

    def adding(self: PartialResults[Any, Any], found: Any) -> None:
        if at in found:
            monkeypatch.setattr(PartialResults, "add", add)
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, found)

    monkeypatch.setattr(PartialResults, "add", adding)


@pytest.mark.parametrize("place", [PLACES[0], PLACES[2]])
@pytest.mark.parametrize(
    ("kind", "at"),
    [("sparsegpt", "2"), ("scored", "state 2 0 0 3"), ("scored", "1"), ("signals", "dense 2")],
)
def test_a_full_disk_leaves_what_is_to_be_taken_up(
    kind: str, at: str, place: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, out = ("prune", LLAMA, *SMALL, *PRUNINGS[kind], *place), tmp_path / "out"
    ran(*words, "-o", tmp_path / "whole")
    full_disk(monkeypatch, at)
    assert "No space left" in refused(*words, "-o", out).err
    assert os.listdir(tmp_path) == ["whole"]

    def found() -> list[str]:
        parts = [tmp_path / ".out.part" / "kept" / name for name in ("scores", "blocks")]
        return [key for part in parts if part.exists() for key in keys(part)]

    full_disk(monkeypatch, at)
    assert "No space left" in refused(*words, "-o", out, "--resume").err
    before = found()
    assert (tmp_path / ".out.part" / "kept").exists()
    full_disk(monkeypatch, at)
    assert "No space left" in refused(*words, "-o", out, "--resume").err
    assert set(before) <= set(found())
    assert len(found()) == len(set(found()))  # nothing was found twice
    ran(*words, "-o", out, "--resume")
    assert content(out) == content(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def test_a_pruning_that_could_be_taken_up_is_refused_without_resume(
    tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    out, kept = tmp_path / "out", tmp_path / ".out.part" / "kept"
    shutil.copytree(LLAMA, out)
    words = ("prune", LLAMA, *SMALL, "--nm", "2:4", "-o", out, "--force")
    interrupt(2)
    assert run(*words).code == 130
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    error = refused(*words).err
    assert f"add --resume to continue that run, or remove {kept} to start anew" in error
    for change in (("--method", "magnitude"), ("--seq-len", 11), ("--dtype", "float64")):
        tokens = () if change[1] == "magnitude" else SMALL
        rest = ("--nm", "2:4", "-o", out, "--force", "--resume")
        assert "belongs to another run: " in refused("prune", LLAMA, *tokens, *rest, *change).err
    scored = ("prune", LLAMA, *SMALL, "--sparsity", 0.5, "-o", out, "--force", "--resume")
    assert "belongs to another run: " in refused(*scored).err
    assert before.items() <= {p.name: p.read_bytes() for p in kept.iterdir()}.items()
    assert (out / "model.safetensors").read_bytes() == (LLAMA / "model.safetensors").read_bytes()
    shutil.rmtree(kept)
    ran(*words)
    assert os.listdir(tmp_path) == ["out"]


def test_an_error_of_the_input_leaves_nothing_to_take_up(tmp_path: Path) -> None:
    words = ("prune", LLAMA, "--samples", 1, "--seq-len", 4, "--method", "sparsegpt", "--nm", "2:4")
    error = refused(*words, "--damping", 0, "-o", tmp_path / "out").err
    assert "blocks.0." in error
    assert os.listdir(tmp_path) == []
    scored = ("--sparsity", 0.5, "--base", "owl", "--eta", 1e39)
    refused("prune", LLAMA, *SMALL, *scored, "-o", tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_lost_worker_leaves_what_others_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("prune", LLAMA, *SMALL, "--nm", "2:4", "--executor", "processes")
    ran(*words, "-o", tmp_path / "whole")
    real = PartialPruning.add

    def lost(self: PartialPruning, block: int, *given: Any) -> None:
        from refimpl.running.executors import LostWorkerError

        real(self, block, *given)
        if block == 1:
            raise LostWorkerError(OSError("killed"))

    monkeypatch.setattr(PartialPruning, "add", lost)
    assert "a worker was lost" in refused(*words, "-o", tmp_path / "out").err
    monkeypatch.setattr(PartialPruning, "add", real)
    ran(*words, "-o", tmp_path / "out", "--resume")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
