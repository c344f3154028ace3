"""A folder that appears whole or not at all: kills at every step, full disks, and refusals."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES
from refusals import refusal_of

from refimpl import RefimplError
from refimpl.running import file_system
from refimpl.running.outputs import check_folder, undo_killed, whole

OLD = {"model.safetensors": "old weights", "config.json": "old"}
NEW = {"model.safetensors": "new weights", "config.json": "new", "pruning.json": "{}"}


def fill(path: Path, content: dict[str, str]) -> None:
    path.mkdir(exist_ok=True)
    for name, text in content.items():
        (path / name).write_text(text)


def content_of(path: Path) -> dict[str, str] | None:
    """Files of a folder, or None where there is none."""
    return {p.name: p.read_text() for p in path.iterdir()} if path.exists() else None


def write_new(
    target: Path, force: bool = False, then: Callable[[], Any] = lambda: None
) -> None:
    with whole(target, force) as new:
        fill(new, NEW)
        then()


def refusal(call: Callable[[], Any]) -> str:
    return str(refusal_of(call))


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_folder(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        private = tmp_path / ".out.part/new/config.json"  # as some libraries write
        write_new(tmp_path / "out", then=lambda: private.chmod(0o600))
        fill(tmp_path / "plain", NEW)
    finally:
        os.umask(before)
    for name in (".", "config.json"):
        modes = [(tmp_path / f / name).stat().st_mode for f in ("out", "plain")]
        assert modes[0] == modes[1]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "failure",
    [KeyboardInterrupt, ZeroDivisionError, OSError(errno.ENOSPC, "No space left")],
)
def test_a_failure_leaves_no_trace(failure: Any, force: bool, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if force:
        fill(target, OLD)
    before = content_of(target)
    wanted = RefimplError if isinstance(failure, OSError) else failure

    def fail() -> None:
        raise failure

    with pytest.raises(wanted):
        write_new(target, force, fail)
    assert content_of(target) == before
    assert os.listdir(tmp_path) == (["out"] if force else [])


def test_a_folder_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    fill(target, OLD)

    def failing(path: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", failing)
        error = refusal(lambda: write_new(target, force=True))
    assert f"{tmp_path}/.out.part/old: cannot be written (Permission denied)" in error
    assert content_of(target) == NEW
    write_new(target, force=True)
    assert os.listdir(tmp_path) == ["out"]


def test_a_target_that_came_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"

    assert "exists" in refusal(
        lambda: write_new(target, then=lambda: fill(target, OLD))
    )
    assert content_of(target) == OLD
    assert os.listdir(tmp_path) == ["out"]


def test_files_are_on_the_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def synced(handle: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def renamed(source: Path, target: Path) -> None:
        events.append(f"{source.name} -> {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    fill(tmp_path / "out", OLD)
    write_new(tmp_path / "out", force=True)
    moves = [
        events.index(move) for move in ("out -> old", "new -> out", "old -> deleted")
    ]
    assert moves == sorted(moves)
    assert {*NEW, "new"} == set(events[: moves[0]])
    assert events[moves[0] - 1] == "new"  # the folder after its files
    for move in moves[:2]:
        assert set(events[move + 1 : move + 3]) == {tmp_path.name, ".out.part"}


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with whole(target) as new:
        assert "another run is writing it" in refusal(
            lambda: write_new(target, force=True)
        )
        refusal_of(undo_killed, target, says="another run is writing it")
        write_new(tmp_path / "other")
        fill(new, NEW)
    assert content_of(target) == NEW
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


def test_a_lock_that_was_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def removed(file: Any, how: int) -> None:
        (tmp_path / ".out.part" / "refimpl.lock").unlink()
        flock(file, how)

    monkeypatch.setattr(file_system.fcntl, "flock", removed)
    assert "another run" in refusal(lambda: write_new(tmp_path / "out"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO, None])
def test_without_locks(
    number: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    if number is None:  # a system that has none at all
        monkeypatch.setattr(file_system, "fcntl", None)
    else:
        monkeypatch.setattr(file_system.fcntl, "flock", without)
    write_new(tmp_path / "out")
    assert content_of(tmp_path / "out") == NEW
    assert os.listdir(tmp_path) == ["out"]


def check(target: Path, force: bool = False, **inputs: Path) -> str:
    return refusal(lambda: check_folder(target, inputs, force))


def test_a_good_target_passes_and_nothing_is_made(tmp_path: Path) -> None:
    check_folder(tmp_path / "out", {"MODEL": FIXTURES / "llama", "--text": None}, False)
    check_folder(tmp_path / "out", {"MODEL": tmp_path / "missing"}, False)
    assert os.listdir(tmp_path) == []
    (tmp_path / "out").mkdir()
    check_folder(tmp_path / "out", {}, True)
    fill(tmp_path / "out", OLD)
    check_folder(tmp_path / "out", {}, True)
    (tmp_path / "m.safetensors").touch()  # a named file's folder may hold anything
    check_folder(tmp_path / "new", {"MODEL": tmp_path / "m.safetensors"}, False)
    assert content_of(tmp_path / "out") == OLD


@pytest.mark.parametrize("force", [False, True])
def test_targets_that_cannot_be_made(force: bool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("file", "link", "dangling"):
        assert "a link, or not a folder" in check(tmp_path / name, force)
        refusal(lambda name=name: write_new(tmp_path / name, force))  # type: ignore[misc]
    assert "is missing" in check(tmp_path / "no" / "out", force)
    assert "is missing" in check(tmp_path / "file" / "out", force)
    assert "too long" in refusal(lambda: write_new(tmp_path / ("x" * 255), force))
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file", "folder", "link"]
    if not force:
        assert "exists" in check(tmp_path / "folder")


def test_a_parent_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o500)
    if os.geteuid():
        assert "Permission denied" in refusal(
            lambda: write_new(tmp_path / "out", False)
        )
    else:  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert "may not be written" in check(tmp_path / "out")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("force", [False, True])
def test_an_output_that_is_holds_or_lies_in_an_input(
    force: bool, tmp_path: Path
) -> None:
    model = tmp_path / "models" / "model"
    fill(model.parent, OLD)
    fill(model, OLD)
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "linked parent").symlink_to(model.parent)
    linked = tmp_path / "linked parent" / "model"
    for name in (model, tmp_path / "link", linked):
        assert "is, or holds, MODEL" in check(model, force, MODEL=name)
        assert "is, or holds, MODEL" in check(model.parent, force, MODEL=name)
        assert "is, or holds, MODEL" in check(linked, force, MODEL=name)
        for inside in (
            model / "out",
            tmp_path / "link" / "out",
            model / ".." / "model" / "out",
        ):
            assert "lies in MODEL" in check(inside, force, MODEL=name)
    weights = model / "model.safetensors"
    assert "is, or holds, MODEL" in check(model, force, MODEL=weights)
    (tmp_path / "text").symlink_to(weights)
    assert "is, or holds, text" in check(model, force, text=tmp_path / "text")
    farm = (
        tmp_path / "farm"
    )  # a folder whose files are links: where they lead, and the farm
    fill(farm, {})
    (farm / "model.safetensors").symlink_to(weights)
    for held in (model, farm):
        assert "is, or holds, MODEL" in check(
            held, force, MODEL=farm / "model.safetensors"
        )
    assert content_of(model) == OLD


def test_the_same_folder_under_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two mounts of one disk are: here links that nobody resolves."""
    fill(tmp_path / "a", {})
    fill(tmp_path / "a" / "model", OLD)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    monkeypatch.setattr(os.path, "realpath", os.path.abspath)
    other = tmp_path / "b" / "model"
    assert "is, or holds, MODEL" in check(other, True, MODEL=tmp_path / "a" / "model")
    assert "lies in MODEL" in check(other / "out", MODEL=tmp_path / "a" / "model")


def test_force_replaces_models_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    for name in ("letter.txt", "config.json", "model.bin"):
        fill(target, {name: "precious"})
        assert "not a model's folder" in check(target, force=True)
        assert "not a model's folder" in refusal(lambda: write_new(target, force=True))
        assert content_of(target) == {name: "precious"}
        shutil.rmtree(target)
    fill(target, {"pruning.json": "{}"})
    check_folder(target, {}, True)
    monkeypatch.setenv("HOME", str(target / "me"))
    (target / "me").mkdir()
    assert "is, or holds, the home folder" in check(target, force=True)
    assert "is, or holds, the home folder" in check(target / "me", force=True)
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(target / "me")
    assert "is, or holds, the working folder" in check(target, force=True)
    assert "is, or holds, the working folder" in check(Path(), force=True)
    assert "exists" in check(Path())
    monkeypatch.chdir(tmp_path)
    check_folder(target, {}, True)
    check_folder(Path("out"), {}, True)
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    assert "not a model's folder" in check(target, force=True)
