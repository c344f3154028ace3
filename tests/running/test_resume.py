"""Finished units, and runs that are stopped and resumed: nothing is repeated, nothing differs."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import FIXTURES
from documents import before_unit, content, files, interrupt, numbers, units
from gates import bits
from program import ran, refused, run

from refimpl import RefimplError
from refimpl.running.file_system import finished_units

LLAMA = FIXTURES / "llama"
SMALL = ("--samples", 3, "--seq-len", 12)
HALF = ("--sparsity", 0.5)
NOISE = ("--perturbation", "gaussian")
RUNS: dict[str, tuple[object, ...]] = {
    "gaussian": (
        "score",
        *SMALL,
        "--perturbation",
        "gaussian",
        "--eta",
        "0.01,0.1,0.3,0.5",
    ),
    "lsa": (
        "score",
        *SMALL,
        "--perturbation",
        "gaussian",
        "--eta",
        "0.01,0.5",
        "--base",
        "lsa",
    ),
    "pruning": (
        *("score", *SMALL, "--perturbation", "pruning", "--base", "owl"),
        *("--correct", "divergence"),
    ),
    "alphas": ("score", *SMALL, *NOISE, "--base", "alphapruning", "--sparsity", 0.4),
    "wanda": ("prune", *SMALL, "--nm", "2:4"),
    "sparsegpt": ("prune", *SMALL, "--nm", "2:4", "--pruner", "sparsegpt"),
    "random": ("prune", "--nm", "2:4", "--pruner", "random"),
    "scored": ("prune", *SMALL, *HALF, "--pruner", "sparsegpt"),
    "signals": ("prune", *SMALL, *HALF, "--allocation", "owl"),
}
PLACES = (("--threads", 1), ("--threads", 2, "--memory", "64K"))
ENOUGH = (*PLACES[1][:3], "1M")  # for SparseGPT's matrices, too


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units so small that these runs have many; stacks of two states."""
    monkeypatch.setattr("refimpl.scoring.experiment._ROWS", 24)
    monkeypatch.setattr("refimpl.scoring.experiment.STATES_AT_RISK", 3)
    monkeypatch.setattr("refimpl.scoring.experiment.SEQUENCES_AT_RISK", 1)


def words(kind: str) -> tuple[object, ...]:
    return (RUNS[kind][0], LLAMA, *RUNS[kind][1:])


def result(output: Path) -> Any:
    return content(output) if output.is_dir() else numbers(output)


@pytest.fixture
def whole(tmp_path: Path) -> Callable[[str], Any]:
    def of(kind: str) -> Any:
        ran(*words(kind), "-o", tmp_path / "whole")
        found = result(tmp_path / "whole")
        (shutil.rmtree if (tmp_path / "whole").is_dir() else os.unlink)(
            tmp_path / "whole"
        )
        return found

    return of


@pytest.mark.parametrize("kind", RUNS)
def test_an_interrupted_run_equals_one_run(
    kind: str, tmp_path: Path, whole: Any
) -> None:
    """It is stopped after each unit in turn, and goes on with other threads and memory."""
    expected, output, done = whole(kind), tmp_path / "out", list[str]()
    places = PLACES[0], ENOUGH if "sparsegpt" in RUNS[kind] else PLACES[1]
    for number in range(99):
        with before_unit(
            1 if kind in ("wanda", "sparsegpt", "random") else 2, interrupt
        ):
            stopped = run(*words(kind), *places[number % 2], "-o", output)
        if stopped.code == 0:
            break
        assert (stopped.code, stopped.out) == (130, "")
        assert f"finished units are kept in {tmp_path}/.out.part\n" in stopped.err
        assert not output.exists()
        found = units(output)
        assert len(found) == len(set(found))  # nothing is computed twice
        assert set(done) <= set(found)
        done = found
    assert 1 < number < 98
    assert result(output) == expected
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["gaussian", "scored"])
def test_another_run_has_units_of_its_own(
    kind: str, tmp_path: Path, whole: Any
) -> None:
    """It begins anew, leaves those of the first run alone, and removes them when it is whole."""
    other = ("--seed", 1) if kind == "gaussian" else ("--damping", 0.2)
    expected, output = whole(kind), tmp_path / "out"
    for number, more in enumerate(((), other)):
        with before_unit(2, interrupt):
            assert run(*words(kind), *more, "-o", output).code == 130
        folders = [*tmp_path.glob(".out.part/*/")]
        assert len(folders) == number + 1
    first = units(output)
    with before_unit(0, interrupt):
        assert run(*words(kind), "-o", output).code == 130
    assert units(output) == first
    ran(*words(kind), "-o", output)
    assert result(output) == expected
    assert os.listdir(tmp_path) == ["out"]


def test_another_pruning_begins_anew(tmp_path: Path, whole: Any) -> None:
    expected, output = whole("wanda"), tmp_path / "out"
    for more in ((), ("--seq-len", 11)):
        with before_unit(2, interrupt):
            assert run(*words("wanda"), *more, "-o", output).code == 130
        assert units(output) == ["block 0", "block 1"]
    ran(*words("wanda"), "-o", output)
    assert result(output) == expected
    assert os.listdir(tmp_path) == ["out"]


def test_what_says_which_blocks_are_done_is_not_believed_if_it_is_damaged(
    tmp_path: Path, whole: Any
) -> None:
    expected, output = whole("wanda"), tmp_path / "out"
    for damaged in ("", "[]", "{", '{"identity": 1}', "\x00"):
        with before_unit(2, interrupt):
            assert run(*words("wanda"), "-o", output).code == 130
        (tmp_path / ".out.part" / "done.json").write_text(damaged)
    ran(*words("wanda"), "-o", output)
    assert result(output) == expected


@pytest.mark.parametrize("kind", ["gaussian", "sparsegpt", "scored"])
def test_a_full_disk_leaves_finished_units(
    kind: str, tmp_path: Path, whole: Any, monkeypatch: Any
) -> None:
    expected, output = whole(kind), tmp_path / "out"
    writers = ("running.file_system.replaced", "pruning.pruned_files.replaced")
    for number in (2, 1):
        with monkeypatch.context() as patched:

            def fill() -> None:
                full = OSError(errno.ENOSPC, "No space left on device")
                for writer in writers:
                    patched.setattr(f"refimpl.{writer}", Mock(side_effect=full))

            with before_unit(number, fill):
                said = refused(*words(kind), "-o", output)
        assert "cannot be written (No space left on device)" in said
        assert len(units(output)) == len(set(units(output))) > 0
    ran(*words(kind), "-o", output)
    assert result(output) == expected
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "error", [RefimplError("a", "b", "c"), FloatingPointError("overflow")]
)
def test_units_of_a_refused_run_go(error: Exception, tmp_path: Path) -> None:
    def refuse() -> None:
        with finished_units(tmp_path, {"a": 1}) as finished:
            finished.write("one", {"one": 1})
            raise error

    with pytest.raises(type(error)):
        refuse()
    assert os.listdir(tmp_path) == []


def test_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = {
        "floats": random.standard_normal(50).tolist(),
        "odd": [np.pi * 1e-310, -0.0, 1e308, float("nan"), float("inf")],
        "array": random.standard_normal((3, 4)),
        "transposed": random.standard_normal((3, 4)).astype(np.float32).T,
        "empty": np.zeros((0, 2)),
        "number": np.array(1.5),
        "nested": [{"x": np.arange(3), "y": [1, True, None, "text"]}],
    }
    with finished_units(tmp_path, {}) as finished:
        finished.write("floats", values)
    with finished_units(tmp_path, {}) as finished:
        found = finished.earlier
    assert str(found) == str(values)
    for name in ("floats", "odd", "array", "transposed"):
        assert bits(found[name]) == bits(values[name])


@pytest.mark.thorough
def test_no_damage_of_a_unit_is_believed(tmp_path: Path) -> None:
    """Each byte changed, removed or added, and the file cut before it: the unit is not there."""
    right = {"half": 0.5, "x": np.arange(9)}
    with finished_units(tmp_path, {}) as finished:
        finished.write("unit", right)
        path = finished.folder / "unit.npz"
        whole = path.read_bytes()
        for at in range(len(whole)):
            for changed in (
                whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
                whole[:at] + whole[at + 1 :],
                whole[:at] + b"0" + whole[at:],
                whole[:at],
            ):
                path.write_bytes(changed)
                assert str(finished.earlier) in (
                    "{}",
                    str(right),
                )  # the date of the file is free
        path.write_bytes(whole[:-30])
        assert not finished.earlier
        finished.write("unit", {"a": 1})
        assert finished.earlier == {"a": 1}


def test_a_unit_is_on_the_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = list[str]()
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (steps.append("fsync"), fsync(handle))
    )
    monkeypatch.setattr(
        Path, "replace", lambda *x: (steps.append("replace"), replace(*x))
    )
    with finished_units(tmp_path, {}) as finished:
        finished.write("unit", {"a": 1})
    assert steps == ["fsync", "replace"]


MAKERS: dict[str, Callable[[Path, Path], object]] = {
    "link": Path.symlink_to,
    "hard link": Path.hardlink_to,
    "copy": lambda path, precious: shutil.copy(precious, path),
    "pipe": lambda path, _: os.mkfifo(path),
    "folder": lambda path, precious: (
        path.mkdir(),
        (path / "link").symlink_to(precious),
    ),
}


@pytest.mark.parametrize("make", MAKERS)
def test_what_the_user_named_like_ours_stays(make: str, tmp_path: Path) -> None:
    precious, hidden = tmp_path / "precious", tmp_path / ".out.part"
    precious.write_text("precious\n")
    MAKERS[make](hidden, precious)
    before = os.lstat(hidden)
    assert "was not made by refimpl" in refused(
        *words("random"), "-o", tmp_path / "out"
    )
    assert os.path.samestat(before, os.lstat(hidden))
    assert precious.read_text() == "precious\n"


@pytest.mark.parametrize("name", ["old", "new", "done.json", "deleted"])
def test_links_in_the_hidden_folder_are_not_followed(name: str, tmp_path: Path) -> None:
    precious, output = tmp_path / "precious", tmp_path / "out"
    precious.mkdir()
    (precious / "done.json").write_text("precious\n")
    with before_unit(2, interrupt):
        assert run(*words("random"), "-o", output).code == 130
    path = tmp_path / ".out.part" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(precious if name != "done.json" else precious / "done.json")
    ran(*words("random"), "-o", output, "--force")
    assert files(precious) == {"done.json": b"precious\n"}
    assert sorted(os.listdir(tmp_path)) == ["out", "precious"]
