"""Interrupted and resumed runs of score and prune: nothing is repeated, nothing differs."""

import errno
import os
import resource
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from documents import content, files, keys, numbers
from gates import bits
from program import ran, refused, run
from refusals import refusal_of

from refimpl import RefimplError
from refimpl.pruning.partial_pruning import PartialPruning
from refimpl.running.work_units import LostWorkerError
from refimpl.storage import lock
from refimpl.storage.partial_results import PartialResults, PartialResultsError

LLAMA = FIXTURES / "llama"
SMALL = ("--samples", 3, "--seq-len", 12)
SCORES = {
    "gaussian": ("--eta", "0.01,0.5", "--draws", 2),
    "subset": ("--eta", "0.01,0.5", "--draws", 2, "--subset", 2, "--base", "lsa"),
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
Interrupt = Callable[[int], None]
PLACES = (("--threads", 1), ("--threads", 2, "--memory", "64K"), ("--executor", "processes"))


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units so small that these runs have many; stacks of two states."""
    monkeypatch.setattr("refimpl.scoring.grouping.ROWS", 24)
    monkeypatch.setattr("refimpl.scoring.grouping.STATES_AT_RISK", 3)
    monkeypatch.setattr("refimpl.scoring.dense_statistics.SEQUENCES_AT_RISK", 1)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Interrupt the next run after so many lines of partial results, and half of another one."""
    write = PartialResults._write

    def after(number: int) -> None:
        left = number  # the first line of a file is the identity of the run

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


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("place", PLACES[:2])
def test_interrupted_scores_are_those_of_one_run(
    kind: str, place: tuple[object, ...], tmp_path: Path, interrupt: Interrupt
) -> None:
    words = ("score", LLAMA, *SMALL, *SCORES[kind])
    ran(*words, "-o", tmp_path / "whole.json")
    output, part = tmp_path / "out.json", tmp_path / "out.json.part"
    done, interrupts = 0, 0
    while True:
        interrupt(2)
        result = run(*words, *(place if interrupts % 2 else ()), "-o", output, "--resume")
        if result.code == 0:
            break
        assert (result.code, result.out) == (130, "")
        assert f"partial results are kept in {part}" in result.err
        assert not output.exists()
        results = keys(part)
        assert len(results) == len(set(results)) > done  # nothing is computed twice
        done, interrupts = len(results), interrupts + 1
    assert interrupts > (3 if place == PLACES[0] else 1)
    assert numbers(output) == numbers(tmp_path / "whole.json")
    assert sorted(os.listdir(tmp_path)) == ["out.json", "whole.json"]


@pytest.mark.parametrize("kind", SCORES)
def test_an_executor_continues_scores(kind: str, tmp_path: Path, interrupt: Interrupt) -> None:
    words = ("score", LLAMA, *SMALL, *SCORES[kind])
    ran(*words, "-o", tmp_path / "whole.json")
    output, part = tmp_path / "out.json", tmp_path / "out.json.part"
    for place, after in ((PLACES[2], 3), (PLACES[0], 2), (PLACES[2], 1)):
        interrupt(after)
        assert run(*words, *place, "-o", output, "--resume").code == 130
        assert len(keys(part)) == len(set(keys(part))) > 0
    ran(*words, "-o", output, "--resume")
    assert numbers(output) == numbers(tmp_path / "whole.json")


def test_partial_scores_are_refused(tmp_path: Path, interrupt: Interrupt) -> None:
    words = ("score", LLAMA, *SMALL, "--tokens", "random", "-o", tmp_path / "out.json")
    interrupt(2)
    assert run(*words).code == 130
    before = (tmp_path / "out.json.part").read_bytes()
    assert "--resume without -o" in refused(*words[:-2], "--resume")
    for change, named in (
        (("--eta", 0.5), "perturbation differ"),
        (("--subset", 3), "perturbation differ"),
        (("--dtype", "float64"), "dtype differ"),
        (("--seq-len", 11), "tokens differ"),
        (("--seed", 1), "perturbation, tokens differ"),
        (("--base", "owl"), "base differ"),
        (("--perturbation", "pruning", "--correct", "divergence"), "base, divergence, perturb"),
    ):
        error = refused(*words, *change)
        assert f"out.json.part belongs to another run: {named}" in error
    assert (tmp_path / "out.json.part").read_bytes() == before
    ran(*words, "--sparsity", 0.3)  # which no unit depends on


def test_a_custom_base_identifies_the_run(tmp_path: Path, interrupt: Interrupt) -> None:
    base = tmp_path / "base.json"
    base.write_text("[0.4, 0.5, 0.6, 0.7]")
    options = ("--perturbation", "pruning", "--base", base)
    words = ("score", LLAMA, *SMALL, *options, "-o", tmp_path / "out.json")
    interrupt(2)
    assert run(*words).code == 130
    for limit in (("--lo", 0.69), ("--hi", 0.75)):  # which change the base's projection
        assert "belongs to another run: base differ" in refused(*words, *limit, "--resume")
    base.write_text("[0.7, 0.6, 0.5, 0.4]")
    assert "belongs to another run: base differ" in refused(*words, "--resume")


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
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
        read = part.results
    assert str(read) == str(values)
    for name in ("floats", "odd", "array", "small"):
        assert bits(read[name]) == bits(values[name])


@pytest.mark.parametrize("kind", PRUNINGS)
def test_an_interrupted_pruning_is_that_of_one_run(
    kind: str, tmp_path: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
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
        assert (result.code, result.out) == (130, "")
        assert "partial results are kept" in result.err or number == 0
        assert not out.exists()
        assert len(list((hidden / "kept").glob("states-*"))) <= 2
    assert number > (4 if kind in ("wanda", "sparsegpt", "random") else 6)
    assert done == [0, 1, 2, 3]  # each block once
    assert content(out) == content(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


@pytest.mark.parametrize("kind", ["wanda", "sparsegpt"])
def test_an_executor_continues_a_pruning(kind: str, tmp_path: Path, interrupt: Interrupt) -> None:
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
    """A disk that is full once, when a result with this key is written."""
    add = PartialResults.add

    def adding(self: PartialResults[Any, Any], results: Any) -> None:
        if at in results:
            monkeypatch.setattr(PartialResults, "add", add)
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, results)

    monkeypatch.setattr(PartialResults, "add", adding)


@pytest.mark.parametrize(
    ("kind", "at", "place"),
    [
        ("sparsegpt", "2", PLACES[0]),
        ("sparsegpt", "2", PLACES[2]),
        ("scored", "state 1 0 0 3", PLACES[0]),
        ("scored", "1", PLACES[0]),
        ("signals", "dense 2", PLACES[0]),
    ],
)
def test_a_full_disk_leaves_partial_results_with_resume(
    kind: str, at: str, place: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, out = ("prune", LLAMA, *SMALL, *PRUNINGS[kind], *place), tmp_path / "out"
    ran(*words, "-o", tmp_path / "whole")
    full_disk(monkeypatch, at)
    assert "No space left" in refused(*words, "-o", out)
    assert os.listdir(tmp_path) == ["whole"]

    def results() -> list[str]:
        folder = tmp_path / ".out.part" / "kept"
        return [key for name in ("scores", "blocks") for key in keys(folder / name)]

    before: list[str] = []
    for _ in range(2):
        full_disk(monkeypatch, at)
        assert "No space left" in refused(*words, "-o", out, "--resume")
        assert (tmp_path / ".out.part" / "kept").exists()
        assert set(before) <= set(results())
        before = results()
        assert len(before) == len(set(before))  # nothing is computed twice
    ran(*words, "-o", out, "--resume")
    assert content(out) == content(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def test_a_partial_pruning_is_refused(tmp_path: Path, interrupt: Interrupt) -> None:
    out, kept = tmp_path / "out", tmp_path / ".out.part" / "kept"
    shutil.copytree(LLAMA, out)
    words = ("prune", LLAMA, *SMALL, "--nm", "2:4", "-o", out, "--force")
    interrupt(2)
    assert run(*words).code == 130
    before = files(kept)
    for change in (("--method", "magnitude"), ("--seq-len", 11), ("--dtype", "float64")):
        tokens = () if change[1] == "magnitude" else SMALL
        rest = ("--nm", "2:4", "-o", out, "--force")
        assert "belongs to another run: " in refused("prune", LLAMA, *tokens, *rest, *change)
    scored = ("prune", LLAMA, *SMALL, "--sparsity", 0.5, "-o", out, "--force")
    assert "belongs to another run: " in refused(*scored)
    assert before.items() <= files(kept).items()
    assert files(out) == files(LLAMA)
    shutil.rmtree(kept)
    interrupt(2)
    assert run(*scored).code == 130
    assert f"{kept}/scores belongs to another run, with --sparsity" in refused(*words)
    (kept / "scores").unlink()
    ran(*words)
    assert os.listdir(tmp_path) == ["out"]


def test_a_lost_worker_leaves_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("prune", LLAMA, *SMALL, "--nm", "2:4", "--executor", "processes")
    ran(*words, "-o", tmp_path / "whole")
    add = PartialPruning.add

    def lost(self: PartialPruning, block: int, *given: Any) -> None:
        add(self, block, *given)
        if block == 1:
            raise LostWorkerError(OSError("killed"))

    with monkeypatch.context() as patch:
        patch.setattr(PartialPruning, "add", lost)
        assert "a worker was lost" in refused(*words, "-o", tmp_path / "out")
    ran(*words, "-o", tmp_path / "out", "--resume")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def partial_file(path: Path, results: int = 3) -> bytes:
    with PartialResults[str, Any](path, {"a": 1}, resume=False) as part:
        for number in range(results):
            part.add({str(number): [number, 0.5]})
    return path.read_bytes()


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    """A byte of each place changed, removed or added: only an incomplete last line is dropped."""
    path = tmp_path / "out.json.part"
    whole, reads = partial_file(path), 0
    for at in range(len(whole)):
        for changed in (
            whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
            whole[:at] + whole[at + 1 :],
            whole[:at] + b"0" + whole[at:],
            whole[:at],
        ):
            path.write_bytes(changed)
            with (
                suppress(PartialResultsError),
                PartialResults[str, Any](path, {"a": 1}, resume=True) as part,
            ):
                assert part.results == {str(n): [n, 0.5] for n in range(len(part.results))}, changed
                reads += 1
    assert reads < 2 * len(whole)


def test_a_run_without_results_blocks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.json.part"
    whole = partial_file(path, 1)
    head = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with PartialResults[str, Any](path, {"a": 2}, resume=False) as part:
            assert part.results == {}
            assert path.read_bytes()[:9] == whole[:9]
    assert length > head


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("whole", range(4))
def test_a_full_disk_is_an_error_that_names_the_file(
    whole: int, resume: bool, tmp_path: Path
) -> None:
    """It gets full in the first line, the identity, or the results after so many."""
    path = tmp_path / "out.json.part"
    sizes = [0, 10, len(partial_file(path, 0)) + 5, len(partial_file(path, 1)) + 5]
    path.unlink()

    def results() -> None:
        with PartialResults[str, Any](path, {"a": 2}, resume) as part:
            for n in range(len(part.results), 2):
                part.add({str(n): n / 7})

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[whole], hard))  # files end here, like a disk
    try:
        refusal_of(results, says=f"{path}: cannot be written (File too large)")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ([path.name] if resume and whole == 3 else [])
    results()
    assert keys(path) == ["0", "1"]


def test_a_lock_that_fails_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "out.json.part"
    path.write_text("the user's")
    monkeypatch.setattr(lock.fcntl, "flock", failing)
    says = f"{path}: cannot be written (Input/output error)"
    refusal_of(PartialResults, path, {"a": 1}, resume=False, says=says)
    assert path.read_text() == "the user's"


def test_what_the_user_named_like_ours_stays(tmp_path: Path) -> None:
    path, precious = tmp_path / "out.json.part", tmp_path / "precious"
    precious.write_text("precious\n")
    words = ("score", LLAMA, *SMALL, "-o", tmp_path / "out.json")
    for make in (path.symlink_to, path.hardlink_to, lambda _: shutil.copy(precious, path)):
        make(precious)
        for resume in ((), ("--resume",)):
            assert "was not made by refimpl" in refused(*words, *resume)
        assert precious.read_text() == path.read_text() == "precious\n"
        path.unlink()
    os.mkfifo(path)
    assert "was not made by refimpl" in refused(*words)
    path.unlink()
    for command, name in (("allocate", ".a.json.part"), ("prune", ".out.part")):
        hidden = tmp_path / name
        for make in (lambda x: (x.mkdir(), (x / "lock").symlink_to(precious)), os.mkfifo):
            make(hidden)  # type: ignore[no-untyped-call]
            before = sorted(hidden.iterdir()) if hidden.is_dir() else []
            if command == "prune":
                said = refused("prune", LLAMA, "--nm", "2:4", *SMALL, "-o", tmp_path / "out")
            else:
                ran("score", LLAMA, *SMALL, "-o", tmp_path / "scores.json", "--force")
                said = refused("allocate", tmp_path / "scores.json", "-o", tmp_path / "a.json")
            assert "was not made by refimpl" in said
            assert before == (sorted(hidden.iterdir()) if hidden.is_dir() else [])
            shutil.rmtree(hidden) if hidden.is_dir() else hidden.unlink()
    assert precious.read_text() == "precious\n"
