"""The program in processes of its own, and processes that are killed before any of their steps."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import Any

from conftest import FIXTURES, HERE
from program import Result

PROGRAM = (sys.executable, "-m", "refimpl")
FOLDERS = os.pathsep.join(map(str, (FIXTURES.parent, HERE, HERE / "tools")))
ENV = os.environ | {"PYTHONPATH": FOLDERS, "OMP_NUM_THREADS": "1"}
CHANGES = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "shutil.rmtree",
    "fcntl.flock",
    "os.fsync",
    "os.truncate",
    "os.chmod",
)


def started(
    *words: object,
    program: tuple[str, ...] = PROGRAM,
    session: bool = False,
    folder: Path | None = None,
) -> "subprocess.Popen[str]":
    """A run of `refimpl` with these words, on request as the leader of a session of its own."""
    return subprocess.Popen(
        [*program, *map(str, words)],
        cwd=folder,
        env=ENV,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=session,
        preexec_fn=partial(
            signal.signal, signal.SIGINT, signal.SIG_DFL
        ),  # a shell's & ignores it
    )


def ended(process: "subprocess.Popen[str]") -> str:
    """Wait for a run, and check that it succeeds; returns what it printed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def ran(*words: object, program: tuple[str, ...] = PROGRAM) -> str:
    with started(*words, program=program) as process:
        return ended(process)


def stopped_at_step(
    number: int, action: Callable[[], Result], how: str
) -> Result | None:
    """Do something in a forked process; at a step kill it, fail with EIO, or let the disk be full.

    A step is anything that changes the file system, as Python's audit events tell, and an fsync.
    Returns None if there are not so many steps.
    """
    left, reached = number, mmap(-1, 1)

    def step(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        reading = event == "open" and not (
            isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if event not in CHANGES or reading:
            return
        left -= 1
        if left == -1:
            reached[0] = 1
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "EIO":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def stepping() -> Result:
        fsync = os.fsync

        def noted(handle: int) -> None:
            step("os.fsync", ())
            fsync(handle)

        os.fsync = noted
        sys.addaudithook(step)
        return action()

    result = forked(stepping)
    return result if reached[0] else None


def forked(action: Callable[[], Result]) -> Result:
    """The result of something in a forked process; minus the signal if it is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            result = action()
            os.write(
                writing,
                json.dumps([result.code, result.out[-999:], result.err]).encode(),
            )
            os._exit(0)
        finally:
            os._exit(99)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Result(*json.loads(text)) if text else Result(status, "", "")


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
    return json.loads(done.stdout or "null")
