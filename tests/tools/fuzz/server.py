"""Runs of the program in forked children, with limits, and what they left."""

import ctypes
import multiprocessing.util
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from select import select

PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
SECONDS, CPU, MEMORY = 60.0, 20.0, 1 << 30  # limits of a case
ENDED = 10.0  # seconds that children of the child may take to end after it


@dataclass(frozen=True)
class Left:
    """Exit code or minus a signal, output, seconds of all its processes, peak of the largest."""

    code: int
    out: bytes
    err: bytes
    seconds: float
    cpu: float
    memory: int
    hung: bool
    orphans: bool


def run_forked(words: list[str], folder: Path, seconds: float = SECONDS) -> Left:
    """Run `refimpl` with these words in a folder, in a fork of this process."""
    files = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
    started = time.monotonic()
    child = os.fork()
    if not child:
        _child(words, folder, files)
    handle = os.pidfd_open(child)
    hung = not select([handle], [], [], seconds)[0]
    os.close(handle)
    if hung:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    elapsed = time.monotonic() - started
    orphans = _end_group(child)
    out, err = (path.read_bytes() for path in files)
    for path in files:
        path.unlink()
    cpu = usage.ru_utime + usage.ru_stime
    return Left(code, out, err, elapsed, cpu, usage.ru_maxrss * 1024, hung, orphans)


def adopt_orphans() -> None:
    """Become the parent of processes whose parent has ended, so that they can be seen to end."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_group(group: int) -> bool:
    """Whether processes of a run outlive it; they are killed."""
    until = time.monotonic() + ENDED
    while True:
        with suppress(ChildProcessError):  # orphans are ours: see `adopt_orphans`
            os.waitpid(-group, os.WNOHANG)
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return False
        if time.monotonic() > until:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            return True
        time.sleep(0.01)


def _child(words: list[str], folder: Path, files: list[Path]) -> None:
    """The child: own group, limits, files for the output; never returns."""
    code = 99
    try:
        os.setsid()
        for number, path in zip((1, 2), files, strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        sys.argv = ["refimpl", *words]
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(  # noqa: SIM115
            2, "w", encoding="utf-8", errors="backslashreplace", closefd=False
        )
        from refimpl.cli.main import main

        try:
            main()
            code = 0
        except SystemExit as left:
            code = (
                left.code
                if isinstance(left.code, int)
                else 0
                if left.code is None
                else 98
            )
        for end in (threading._shutdown, multiprocessing.util._exit_function):
            with suppress(
                OSError
            ):  # as the interpreter does at its end: pools of processes end
                end()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        with suppress(BaseException):
            os.write(2, f"Traceback of the harness: {error!r}".encode())
    finally:
        os._exit(code)
