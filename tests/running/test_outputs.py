"""Outputs never destroy what a command reads: every input of every command against its outputs."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from pages import commands
from program import ran, refused

SMALL = ("--samples", "1", "--seq-len", "6")
CASE = FIXTURES / "cases" / "llama"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, a case that refers to it, and an input of each kind."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FIXTURES / "llama", "llama")
    shutil.copytree(FIXTURES / "llama_sharded", "sharded")
    shutil.copytree(CASE, "cases/llama")
    shutil.copy(FIXTURES / "text.txt", "text.txt")
    Path("base.json").write_text("[0.4, 0.5, 0.6, 0.7]")
    np.save("ids.npy", [[1, 2]])
    shutil.copy("llama/config.json", "config.json")
    ran("score", "llama", *SMALL, "-o", "scores.json")
    ran("export", "llama", "-o", "graph.onnx")
    return tmp_path


INDEX = "model.safetensors.index.json"
CHECK = ("check", "cases/llama", "cases/llama/expected.safetensors")
READ = {  # what a command reads, in any way
    ("score", "llama", "--text", "text.txt", "--base", "base.json"): (
        "text.txt",
        "base.json",
        "llama/model.safetensors",
        "llama/tokenizer.json",
        "llama/new.json",
    ),
    ("score", "llama/model.safetensors"): (
        "llama/model.safetensors",
        "llama/config.json",
    ),
    ("score", "sharded", "--tokens", "ids.npy"): ("ids.npy", f"sharded/{INDEX}"),
    ("score", f"sharded/{INDEX}"): (f"sharded/{INDEX}", "sharded/config.json"),
    ("allocate", "scores.json", "--base", "base.json"): ("scores.json", "base.json"),
    ("prune", "llama", "--allocation", "scores.json"): (
        "scores.json",
        "llama",
        "llama/new",
    ),
    ("inspect", "llama"): ("llama/config.json",),
    ("eval", "llama", "--tokens", "ids.npy"): ("ids.npy", "llama/config.json"),
    ("validate", "llama", "--graph", "graph.onnx"): ("graph.onnx", "graph.onnx.data"),
    CHECK: ("cases/llama/case.json", "llama/model.safetensors", "cases/llama/new.json"),
    ("plot", "scores.json"): ("scores.json",),
    ("case", "make", "llama"): ("llama", "llama/new"),
    ("export", "llama/model.safetensors"): ("llama/model.safetensors",),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_no_output_damages_an_input(here: Path) -> None:
    before = contents(here)
    os.symlink("text.txt", "link")
    os.link("llama/model.safetensors", "same")
    for words, read in READ.items():
        forced = () if words[0] == "case" else ("--force",)
        more = (
            ("link",)
            if "text.txt" in read
            else ("same",)
            if read[0].startswith("llama/m")
            else ()
        )
        for name in (*read, *more):
            assert "-o " in refused(*words, "-o", name, *forced).splitlines()[0]
    os.unlink("link")
    os.unlink("same")
    assert contents(here) == before


def test_an_existing_output_needs_force(here: Path) -> None:
    for words in READ:
        if words[0] in ("prune", "case", "export"):
            continue
        Path("old.json").write_text("old")
        assert "add --force to replace it" in refused(*words, "-o", "old.json")
        assert Path("old.json").read_text() == "old"


def test_nothing_is_written_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "HOME",
        "XDG_CACHE_HOME",
        "REFIMPL_CACHE",
    ):  # no file in it is taken for ours
        monkeypatch.setenv(name, str(tmp_path))
    for number in range(12):
        (tmp_path / f"subject-{number}.ids").write_text("mine")
    text = tmp_path / "long.txt"
    text.write_text("Entia non sunt multiplicanda praeter necessitatem.\n" * 21_000)
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    ran("score", FIXTURES / "llama", "--text", text, *SMALL)
    assert contents(tmp_path) == before


def functions() -> list[Any]:
    return [command.callback for command in commands().values()]
