"""The program in processes of its own, and processes that are killed before any of their steps."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import FIXTURES, HERE

PROGRAM = (sys.executable, "-m", "refimpl")
ENV = os.environ | {"PYTHONPATH": f"{FIXTURES.parent}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "fcntl.flock")


def started(*words: object, program: tuple[str, ...] = PROGRAM) -> "subprocess.Popen[str]":
    """A run of `refimpl` with these words."""
    return subprocess.Popen(
        [*program, *map(str, words)],
        env=ENV,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(process: "subprocess.Popen[str]") -> str:
    """Wait for a run, and check that it succeeds; returns what it printed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def ran(*words: object, program: tuple[str, ...] = PROGRAM) -> str:
    """Run `refimpl` with these words, and check that it succeeds."""
    with started(*words, program=program) as process:
        return ended(process)


def killed_before_step(number: int, action: Callable[[], object]) -> bool:
    """Do something in a forked process, killed before this step; whether it has so many.

    A step is anything that changes the file system, as Python's audit events tell.
    """
    child = os.fork()
    if not child:
        left = number

        def step(event: str, args: tuple[Any, ...]) -> None:
            nonlocal left
            reading = event == "open" and not (
                isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if event in CHANGES and not reading:
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(step)
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


def printed_json(test: str, call: str) -> Any:
    """What a call of a test file's function prints, in a process whose one thread may fork."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {Path(test).stem} import *; {call}"],
        cwd=Path(test).parent,
        env=ENV | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
