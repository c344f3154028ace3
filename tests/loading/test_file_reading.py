"""What is read: only regular files, only so much, only JSON that can be computed with."""

import os
import stat
from pathlib import Path

import pytest
from conftest import FIXTURES
from program import ran, refused
from refusals import refusal_of

from refimpl.errors import RefimplError, printable
from refimpl.loading.files.documents import read_file
from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.loading.samples import read_ids
from refimpl.oracle.case_folders import cases_below
from refimpl.running.file_system import open_file


@pytest.mark.parametrize(
    "kind", ["pipe", "socket", "/dev/zero", "/dev/null", "/dev/tty"]
)
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.npy"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    else:
        path.symlink_to(kind)
    handles = {*os.listdir("/proc/self/fd")}
    for reader in (read_ids, SafetensorsFile):
        error = refusal_of(reader, path)
        if kind not in ("socket", "/dev/tty"):  # which cannot even be opened
            assert "is not a regular file" in error.problem
    with pytest.raises((RefimplError, OSError)):
        read_file(path)
    assert {
        *os.listdir("/proc/self/fd")
    } <= handles  # other tests' handles may be closed meanwhile


def test_a_regular_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234\n\n5678")
    with open_file(tmp_path / "file", 10) as file:
        assert file.read() == b"1234\n\n5678"
    for reader in (open_file, read_file):
        refusal_of(reader, tmp_path / "file", 9, says="is larger than")
    refusal_of(open_file, tmp_path, says="is not a regular file")


def test_what_is_foreign_is_escaped(tmp_path: Path) -> None:
    forged = "m\x1b[2J\u202e\nerror: forged"
    assert printable(forged) == "m\\x1b[2J\\u202e\\nerror: forged"
    error = RefimplError(forged, "x", "y", [forged])
    assert str(error).count("\n") == 3  # the problem, its detail, and two more lines
    folder = tmp_path / forged
    assert "\nerror: forged" not in refused("score", folder)
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((FIXTURES / "llama" / name).read_bytes())
    scores, small = (
        tmp_path / "scores.json",
        ("--tokens", "random", "--samples", 1, "--seq-len", 4),
    )
    for words in (("inspect", folder), ("score", folder, *small, "-o", scores)):
        text = ran(*words)
        assert "m\\x1b[2J\\u202e\\nerror: forged" in text
        assert not set("\x1b\u202e") & set(text)
    page = tmp_path / "page.html"
    ran("plot", scores, "-o", page)
    assert not set("\x1b\u202e") & set(page.read_text("utf-8"))


def test_a_nested_case_is_refused_where_tests_are_collected(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text("[" * 100_000)
    refusal_of(cases_below, tmp_path, says="nested deeper than 64")
