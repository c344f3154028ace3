"""Every command that writes, stopped at every step on the disk: killed, or with a failing disk."""

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from conftest import FIXTURES
from documents import content, files, numbers
from processes import forked, stopped_at_step
from program import Result, run

from refimpl import RefimplError
from refimpl.running.file_system import RUN_FOLDER
from refimpl.running.outputs import whole

LLAMA, CASES = FIXTURES / "llama", FIXTURES / "cases"
HOWS = ("kill", "EIO", "full")
TEXT = FIXTURES / "text.txt"
SMALL = ("--samples", 1, "--seq-len", 6, "--threads", 1)


@dataclass(frozen=True)
class Command:
    """A command with small inputs: its words, the name of its output, and what that must equal.

    SCORES stands for a file of scores; `forced` tells whether it can replace an old output.
    """

    words: tuple[Any, ...]
    output: str = "out.json"
    result: Callable[[Path], Any] = numbers
    forced: bool = True


def graph(path: Path) -> bytes:
    """A graph with all its weights in it."""
    import onnx

    return bytes(onnx.load(path).SerializeToString(deterministic=True))


PRUNE = ("prune", LLAMA, *SMALL)
COMMANDS = {
    "score": Command(("score", LLAMA, *SMALL)),
    "score --perturbation pruning": Command(
        ("score", LLAMA, *SMALL, "--perturbation", "pruning", "--base", "owl")
    ),
    "allocate": Command(("allocate", "SCORES")),
    "prune": Command((*PRUNE, "--nm", "2:4"), "out", content),
    "prune --sparsity": Command((*PRUNE, "--sparsity", 0.5), "out", content),
    "inspect": Command(("inspect", LLAMA)),
    "eval": Command(("eval", LLAMA, "--text", TEXT, "--windows", 2, "--threads", 1)),
    "export": Command(("export", LLAMA), "out.onnx", graph),
    "validate": Command(
        ("validate", LLAMA, "--samples", 1, "--seq-len", 3, "--dtype", "float32")
    ),
    "check": Command(
        ("check", CASES / "llama", CASES / "llama" / "expected.safetensors")
    ),
    "case make": Command(
        ("case", "make", LLAMA, "--samples", 1, "--seq-len", 4),
        "out",
        files,
        forced=False,
    ),
}
FOLDER = Command((), "out", files)  # replaced in Python, without a command


def written(
    command: Command, words: tuple[Any, ...], target: Path, more: tuple[str, ...]
) -> Result:
    """Run the command, or replace a folder by another one."""
    if command is not FOLDER:
        return run(*words, "-o", target, *more)
    try:
        with whole(target, force=True) as new:
            new.mkdir()
            for name in ("model.safetensors", "config.json"):
                (new / name).write_text(f"new {name}")
    except RefimplError as error:
        return Result(2, "", f"error: {error}")
    return Result(0, "", "")


def stops(name: str, most: int = 10**9, stride: int = 1) -> None:
    """Stop a command before each of its steps, in each way; check what is left; print counts."""
    command, top = COMMANDS.get(name, FOLDER), Path(tempfile.mkdtemp())
    scores = top / "scores.json"
    if "SCORES" in command.words:
        forked(lambda: run("score", LLAMA, *SMALL, "-o", scores))
    words = tuple(scores if word == "SCORES" else word for word in command.words)
    old, new = top / "old" / command.output, top / "whole" / command.output
    for made in (old, new):
        made.parent.mkdir()
    assert forked(lambda: written(command, words, new, ())).code == 0
    if command.output == "out":
        shutil.copytree(LLAMA, old)
    elif command.output == "out.onnx":
        assert forked(lambda: run(*words, "--dtype", "float64", "-o", old)).code == 0
    else:
        old.write_text("old")
    expected, inputs = command.result(new), files(LLAMA)
    force = ("--force",) if command.forced else ()
    counts: dict[str, Counter[str]] = {}
    for how in HOWS:
        number, counts[how] = 0, Counter()
        while number < most:
            folder = top / f"{how}-{number}"
            folder.mkdir()
            target = folder / command.output
            if command.forced:
                folder.rmdir()
                shutil.copytree(old.parent, folder)
            action = partial(written, command, words, target, force)
            stopped = stopped_at_step(number, action, how)
            if stopped is None:
                shutil.rmtree(folder)
                break
            assert stopped.code in (0, 2, -9), (how, number, stopped)
            assert "Traceback" not in stopped.err, (how, number, stopped)
            assert files(LLAMA) == inputs
            if stopped.code == 2 and how == "full":  # else a removal may have failed
                refused(stopped, folder, target.name)
            counts[how][state(command, target, expected)] += 1
            again = forked(action)
            if not command.forced and "exists" in again.err:
                assert command.result(target) == expected
            else:
                assert again.code == 0, (how, number, again)
            assert command.result(target) == expected, (how, number)
            left = {path.name for path in folder.iterdir()} - {target.name}
            assert {
                name for name in left if not name.endswith(".onnx.data")
            } <= set(), left
            assert len(left) <= 1, left
            shutil.rmtree(folder)
            number += stride
    shutil.rmtree(top)
    print(json.dumps(counts))


def refused(stopped: Result, folder: Path, output: str) -> None:
    """A run that ends with a message names what it could not write; it leaves finished units."""
    first = stopped.err.splitlines()[0]
    assert re.match(
        f"error: {re.escape(str(folder))}/[^ ]*{re.escape(output)}", first
    ), stopped
    left = {path.name for path in folder.iterdir()} - {output, f"{output}.data"}
    hidden = folder / f".{output}.part"
    assert left <= {hidden.name}, (stopped, left)
    if hidden.exists():
        allowed = {hidden / "refimpl.lock", *hidden.glob(RUN_FOLDER)}
        if (hidden / "done.json").exists():  # the copy has whole blocks
            allowed |= {hidden / "done.json", hidden / "new"}
        assert {*hidden.iterdir()} <= allowed, stopped


def same(one: Path, other: Path) -> bool:
    """Whether two files or folders have the same bytes."""
    if one.is_dir():
        return files(one) == files(other)
    return other.exists() and one.read_bytes() == other.read_bytes()


def state(command: Command, target: Path, expected: Any) -> str:
    """What a stopped run left: the old output, the new one, none, or the old one aside."""
    if not target.exists():
        aside, old = (
            target.parent / f".{target.name}.part" / "old",
            target.parent.parent / "old",
        )
        if (
            not command.forced or command.result is graph
        ):  # the old graph went before the data
            return "none"
        assert files(aside) == files(old / target.name)
        return "aside"
    old = target.parent.parent / "old"
    if command.forced and all(same(x, target.parent / x.name) for x in old.iterdir()):
        return "old"
    assert command.result(target) == expected
    return "new"
