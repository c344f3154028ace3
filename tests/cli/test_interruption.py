"""Ctrl-C: each command says what it keeps, and the command that it names goes on from there."""

import os
import shlex
import signal
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from conftest import FIXTURES
from documents import before_unit, content, numbers, units
from gates import layouts
from processes import forked, printed_json, started
from program import Result, ran, refused, run
from tables import cases

import refimpl

LLAMA, TEXT = FIXTURES / "llama", FIXTURES / "text.txt"
SMALL = ("--samples", 6, "--seq-len", 12)
KEEPING: dict[str, tuple[object, ...]] = {
    "score": ("score", LLAMA, *SMALL, "-o", "out.json"),
    "prune": ("prune", LLAMA, *SMALL, "--nm", "2:4", "-o", "out"),
    "scored": ("prune", LLAMA, *SMALL, "--sparsity", 0.5, "-o", "out"),
}
NOTHING = "interrupted: nothing was written\nnext: repeat the command\n"


def control_c(*_: object, **__: object) -> None:
    """What a terminal does to a program when Ctrl is held and C is pressed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    os.kill(os.getpid(), signal.SIGINT)


def interrupted(number: int, *words: object) -> Result:
    """A run in a process of its own, interrupted before it keeps its unit of this number."""
    with before_unit(number, control_c):
        return forked(lambda: run(*words))


def goes_on(kind: str, folder: str) -> None:
    """Interrupt a command three times; repeat it as it is, and as the message says."""
    os.chdir(folder)
    words, output = KEEPING[kind], Path(str(KEEPING[kind][-1]))
    read: Callable[[Path], Any] = content if words[0] == "prune" else numbers
    ran(*words[:-1], "whole")

    assert interrupted(0, *words) == Result(130, "", NOTHING)

    stopped = interrupted(2, *words)
    kept, again = stopped.err.splitlines()
    assert (stopped.code, stopped.out, output.exists()) == (130, "", False)
    path = f".{output}.part"
    assert kept == f"interrupted: finished units are kept in {path}"
    command = ["refimpl", *map(str, words)]
    assert shlex.split(again.removeprefix("next: ")) == command
    before = units(output)
    assert before

    assert (
        interrupted(1, *words) == stopped
    )  # the same command goes on, and says the same
    after = units(output)
    assert set(before) < set(after)
    assert len(before) < len(after) == len(set(after))

    ran(*command[1:])
    assert read(output) == read(Path("whole"))
    assert sorted(os.listdir()) == sorted([output.name, "whole"])
    assert refused(*words).startswith(f"error: -o {output.absolute()} exists") or (
        refused(*words).startswith(f"error: -o {output} exists")
    )


@pytest.mark.parametrize("kind", layouts(KEEPING, ("score", "scored")))
def test_the_named_command_goes_on(kind: str, tmp_path: Path) -> None:
    small = "patch('refimpl.scoring.experiment.STATES_AT_RISK', 3)"
    call = f"{small}.start(); goes_on({kind!r}, {str(tmp_path)!r})"
    assert printed_json(__file__, call) is None


SLEEPING = """
import sys, time
from pathlib import Path

def score(model, tokens, plan, request, settings, **_):
    with settings.open():
        print("ready", flush=True)
        Path("a").touch()
        time.sleep(600)

if __name__ == "__main__":
    import refimpl.cli.score as cli
    from refimpl.__main__ import main

    cli.score = score
    sys.argv = ["refimpl", *sys.argv[1:]]
    main()
"""


@pytest.mark.parametrize("when", ["at once", "soon", "computing"])
def test_control_c_of_a_terminal_is_one_message(when: str, tmp_path: Path) -> None:
    script = tmp_path / "sleeping.py"
    script.write_text(SLEEPING)
    words = (script, "score", LLAMA, "--threads", 2)
    with started(
        *words, program=(sys.executable,), session=True, folder=tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if when == "soon":
            time.sleep(0.1)
        while when == "computing" and not (tmp_path / "a").exists():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, err = process.communicate(timeout=30)  # until the last process has ended
        finally:
            process.kill()
    assert (process.returncode, err.count("\n")) == (130, 2), err
    assert err == NOTHING


def is_whole(folder: str) -> None:
    os.chdir(folder)
    with patch("refimpl.cli.terminal.say", control_c):
        stopped = forked(lambda: run(*KEEPING["score"]))
    assert stopped == Result(130, "", "interrupted: out.json is whole\nnext: use it\n")
    assert os.listdir() == ["out.json"]


def test_a_whole_output_is_named(tmp_path: Path) -> None:
    assert printed_json(__file__, f"is_whole({str(tmp_path)!r})") is None


START = """
import atexit, os, signal, sys
def stop(): os.kill(os.getpid(), signal.SIGINT)
class Finder:
    def find_spec(self, name, *_):
        if name == {module!r}: stop()
sys.meta_path.insert(0, Finder())
if not {module!r}: atexit.register(stop)
sys.argv = ["refimpl", *{words!r}]
from {entry} import main
sys.exit(main())
"""


@pytest.mark.parametrize(("module", "words"), cases("cli", "importing"))
def test_control_c_is_one_line_around_a_command(module: str, words: str) -> None:
    """While a module is imported; without one, when everything is done and Python ends."""
    project = tomllib.loads((FIXTURES.parent / "pyproject.toml").read_text())["project"]
    entry, _, function = project["scripts"]["refimpl"].partition(":")
    assert function == "main"
    typed = [str(LLAMA) if word == "LLAMA" else word for word in words.split()]
    code = START.format(module=module, words=typed, entry=entry)
    with started("-c", code, program=(sys.executable,)) as process:
        out, err = process.communicate(timeout=60)
    printed = "" if module else f"{refimpl.__version__}\n"
    assert (process.returncode, out) == (130, printed)
    assert err in ("interrupted\n", NOTHING)
