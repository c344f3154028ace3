"""Files and folders that appear whole or not at all, and outputs that are refused."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from refusals import refusal_of

from refimpl.running.outputs import check_file, json_text, write_text

CONTENT = {"numbers": [1.5, None], "text": "Gewichtstreue ≤ 1"}


def test_written_files_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    old = os.umask(0o027)
    try:
        write_text(path, json_text({"first": 1}))
        write_text(path, json_text(CONTENT))
    finally:
        os.umask(old)
    assert json.loads(path.read_text("utf-8")) == CONTENT
    assert path.read_text("utf-8").endswith("}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_not_written(
    number: float, tmp_path: Path
) -> None:
    path = tmp_path / "out.json"
    path.write_text("before")
    with pytest.raises(ValueError, match="JSON"):
        write_text(path, json_text({"x": [number]}))
    assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_folders_that_do_not_take_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none" / "o", tmp_path / "folder", tmp_path / "file" / "o"):
        refusal_of(write_text, path, "{}", says="cannot be written")
        refusal_of(
            check_file,
            path,
            {},
            True,
            says="is not a file" if path.exists() else "missing",
        )
    assert {p.name for p in tmp_path.rglob("*")} == {"folder", "file"}


def test_a_folder_that_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    tmp_path.chmod(0o500)
    if not hasattr(os, "geteuid") or os.geteuid() == 0:  # root may write anywhere
        monkeypatch.setattr(Path, "open", refuse)
        monkeypatch.setattr(os, "access", lambda *_: False)
    path, denied = tmp_path / "out.json", "cannot be written (Permission denied)"
    refusal_of(write_text, path, "{}", says=denied)
    refusal_of(check_file, path, {}, False, says="may be written")
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


def test_inputs_are_not_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("x")
    (tmp_path / "link").symlink_to(text)
    os.link(text, tmp_path / "same")
    monkeypatch.chdir(tmp_path)
    for path in (text, Path("text.txt"), tmp_path / "link", tmp_path / "same"):
        inputs = {"--tokens": None, "--text": text}
        refusal_of(check_file, path, inputs, force=True, says="is also --text")
    refusal_of(
        check_file,
        Path("new.json"),
        {"MODEL": tmp_path},
        force=True,
        says="lies in MODEL",
    )
    check_file(
        tmp_path / "new.json",
        {"--text": text, "--config": tmp_path / "none"},
        force=False,
    )
    (tmp_path / "old.json").symlink_to("nowhere")
    refusal_of(
        check_file,
        tmp_path / "old.json",
        {},
        force=False,
        says="add --force to replace it",
    )
    check_file(tmp_path / "old.json", {}, force=True)
    assert text.read_text() == "x"


@pytest.mark.parametrize("length", [249, 250, 255, 300])
def test_long_names_are_refused_before_any_work(length: int, tmp_path: Path) -> None:
    path = tmp_path / ("x" * length)
    if length == 249:
        check_file(path, {}, force=False)
        write_text(path, json_text(CONTENT))
    else:
        refusal_of(check_file, path, {}, False, says="File name too long")
