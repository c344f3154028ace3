"""The command line: what goes where, in which form, and that every option does what it says."""

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import typer
from conftest import FIXTURES
from documents import facts
from pages import commands
from processes import ENV, PROGRAM
from program import Result, ran, run
from tables import cases

import refimpl

LLAMA = FIXTURES / "llama"
SMALL = ("--samples", "2", "--seq-len", "12")


def scored(*words: object, **options: Any) -> str:
    return ran("score", LLAMA, *SMALL, *words, **options)


def without_run(text: str) -> str:
    """A table without the lines on time, memory and versions."""
    return re.sub(r"^(run|written:|next:) .*\n(?: .*\n)*", "", text, flags=re.MULTILINE)


def rows(text: str) -> str:
    return text.split("\n\n")[1]


# Options


@pytest.mark.parametrize(("words", "key", "value"), cases("cli", "arriving"))
def test_every_option_arrives(words: str, key: str, value: Any) -> None:
    found: Any = facts(json.loads(scored(*words.split(), "--json")))
    for part in key.split("."):
        found = found[part]
    assert found == value


def test_options_of_allocate_change_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    plain = rows(scored("--correct", "absorption", "-o", path))
    for words in (
        *("--base owl", "--sparsity 0.6", "--correct none", "--strength 0.1"),
        *("--max-correction 0.01", "--lo 0.5", "--hi 0.5"),
        "--compat peer",
    ):
        assert rows(ran("allocate", path, *words.split())) != plain, words


def test_a_command_offers_what_belongs_to_it() -> None:
    most = {
        "score": 22,
        "prune": 18,
        "eval": 10,
        "check": 12,
        "explain": 20,
        "bench": 16,
    }
    for name, count in most.items():
        params = commands()[name].params
        assert sum(x.param_type_name == "option" for x in params) <= count + 1, (
            name
        )  # and --help


# Help


@pytest.mark.parametrize("command", ["", *commands()])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(command: str, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "GITHUB_ACTIONS",
        "FORCE_COLOR",
        "PY_COLORS",
    ):  # they make help colourful
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    text = ran(*command.split(), flag)
    assert f"refimpl {command}".strip() in text
    names = ["--version", *(name.split()[0] for name in commands())]
    if command:
        names = [
            name
            for one in commands()[command].params
            for name in one.opts
            if name[0] == "-"
        ]
    assert [name for name in names if name not in text] == []
    assert all(len(line) <= 100 for line in text.splitlines())


def test_without_a_command_there_is_help() -> None:
    assert ran() == ran("--help")
    assert "make" in ran("case")  # a group


def test_the_list_of_commands_imports_none_of_them() -> None:
    code = """import sys
from refimpl.cli.main import program
program()(["--help"], standalone_mode=False)
print(*sys.modules)"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert "typer" in loaded
    assert not {"numpy", "refimpl.cli.score", "refimpl.cli.options"} & loaded


def test_version() -> None:
    assert ran("--version") == f"{refimpl.__version__}\n"


# Output


def test_json_is_what_output_writes(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    printed = scored(
        "--json", "-o", path, "--sparsity", "0.55", "--correct", "absorption"
    )
    assert printed == path.read_text("utf-8")
    assert list(tmp_path.iterdir()) == [path]
    again = tmp_path / "allocation.json"
    other = ("--sparsity", "0.5", "--correct", "none", "--json")
    printed = ran("allocate", path, *other, "-o", again)
    assert printed == again.read_text("utf-8")
    assert ran("allocate", again, *other) == printed


# Tokens


@pytest.mark.parametrize(("limit", "length"), [(64, 64), (128, 128), (2048, 128)])
def test_the_default_is_4_samples_of_128_or_what_the_model_allows(
    limit: int, length: int, tmp_path: Path
) -> None:
    config = json.loads((LLAMA / "config.json").read_text()) | {
        "max_position_embeddings": limit
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(LLAMA / "tokenizer.json", tmp_path)
    (tmp_path / "model.safetensors").symlink_to(LLAMA / "model.safetensors")
    np.save(tmp_path / "ids.npy", np.arange(600) % 250)
    (tmp_path / "text.txt").write_text(
        "to be or not to be, that is the question. " * 60
    )
    given = ("--tokens", tmp_path / "ids.npy"), ("--text", tmp_path / "text.txt")
    for words in ((), ("--tokens", "random"), *given):
        found = json.loads(ran("score", tmp_path, *words, "--json"))["scores"]["tokens"]
        assert (found["samples"], found["seq_len"]) == (4, length)


# Streams


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_ascii_where_the_encoding_is_not_unicode(encoding: str) -> None:
    text = scored(encoding=encoding)
    assert text.isascii()
    assert " +-" in text
    assert " ± " in scored(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["modèle", "模型", os.fsdecode(b"caf\xe9"), "a\nb", "[bold]x"]
)
def test_any_name_can_be_printed_and_written(name: str, tmp_path: Path) -> None:
    model = tmp_path / name
    shutil.copytree(LLAMA, model)
    path = tmp_path / "scores.json"
    for encoding in ("utf-8", "ascii"):
        for words in ((), ("--json",), ("-o", path, "--force")):
            ran("score", model, *SMALL, *words, encoding=encoding)
    assert json.loads(path.read_text())["scores"]["model"] == name
    assert without_run(ran("allocate", path)) == without_run(
        ran("score", model, *SMALL)
    )
    assert run("score", model / "absent", encoding="ascii").code == 2


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven seconds from one look at the clock to the next, on a terminal."""
    now = iter(range(1_000, 10**9, 7))
    monkeypatch.setattr("time.time", lambda: float(next(now)))
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.usefixtures("slow_clock")
def test_progress_shows_the_time_left_on_a_terminal() -> None:
    result = run("score", LLAMA, *SMALL, err_terminal=True)
    assert without_run(result.out) == without_run(scored())
    shown = result.err.split("\r")
    assert re.search(r"scoring .*100%", shown[-1])
    left = [re.findall(r"(\d+)%\s+(\d\d:\d\d:\d\d)", text) for text in shown]
    assert len({time for found in left for _, time in found}) > 3
    percents = [int(percent) for found in left for percent, _ in found]
    assert percents == sorted(percents)


@pytest.mark.parametrize(("term", "terminal"), [("dumb", True), ("xterm", False)])
def test_progress_is_silent_elsewhere(
    term: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    assert run("score", LLAMA, *SMALL, err_terminal=terminal).err == ""
    assert run("score", LLAMA, *SMALL, err_terminal=True).err or term == "dumb"


# As a process


def test_on_a_terminal() -> None:
    """A bar, no question: on a pseudo terminal, whose input is never written to."""
    leader, follower = pty.openpty()
    words = [sys.executable, "-W", "error", *PROGRAM[1:], "score", str(LLAMA), *SMALL]
    env = {name: value for name, value in ENV.items() if name != "NO_COLOR"} | {
        "TERM": "xterm"
    }
    process = subprocess.Popen(
        words, env=env, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    printed = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            printed += os.read(leader, 4096)
        except OSError:  # the other side is closed
            break
    os.close(leader)
    assert process.wait(60) == 0
    text = printed.decode()
    assert re.search(r"scoring .*100%", text)
    assert text.index("100%") < text.index("model       llama")


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, typer.Abort]
)  # as typer passes it on
def test_an_interrupt(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.cli.main.program", Mock(side_effect=error))
    said = "interrupted: nothing was written\nnext: repeat the command\n"
    assert run("score", LLAMA) == Result(130, "", said)


def test_arithmetic_of_allocations_is_loud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran("score", LLAMA, *SMALL, "-o", tmp_path / "scores.json")
    loud = Mock(side_effect=lambda *_: np.float64(1e300) * 1e300)
    monkeypatch.setattr("refimpl.cli.score.allocate", loud)
    with np.errstate(all="ignore"):
        assert "overflow" in run("allocate", tmp_path / "scores.json").err
