"""Ctrl-C: what a command says that it keeps, and how to go on."""

import os
import signal
import sys
import time
from _thread import start_new_thread
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from refimpl.cli.terminal import command_line, complain, shows_progress
from refimpl.errors import Interrupted, printable
from refimpl.storage.finished_units import are_left
from refimpl.storage.work_folder import work_path


@contextmanager
def interruptible(outputs: Sequence[Path], values: Mapping[str, Any]) -> Iterator[None]:
    """Turn Ctrl-C into a message about the outputs of a command; and say what is continued."""
    keeps = "executor" in values  # finished units
    before = [_stamp(path) for path in outputs]
    if keeps and shows_progress():
        for path in _finished_units(outputs):
            complain(printable(f"found: {path}, finished units; remove the folder to start anew"))
    try:
        with _raising_interrupts():
            yield
    except KeyboardInterrupt:
        written = [
            str(path)
            for path, old in zip(outputs, before, strict=True)
            if _stamp(path) not in (None, old)
        ]
        if written:
            raise Interrupted(f"{', '.join(written)} is whole", "use it") from None
        if not keeps:
            raise Interrupted("nothing was written") from None
        if not outputs:
            remedy = "repeat the command, with -o FILE if it must be possible to resume it"
            raise Interrupted("nothing is kept without -o", remedy) from None
        if not (kept := _finished_units(outputs)):
            raise Interrupted("nothing was finished that could be kept") from None
        raise Interrupted(f"finished units are kept in {kept[-1]}", command_line()) from None


def _interrupt() -> None:
    """Press Ctrl-C in a moment, when the caller has returned."""
    time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def _raising_interrupts() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, again if a destructor or a callback loses it."""
    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    ours = callable(before) and before is not signal.default_int_handler

    def again(lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            start_new_thread(_interrupt, ())
        else:
            hook(lost)

    try:
        sys.unraisablehook = again
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        sys.unraisablehook = hook
        if ours:
            signal.signal(signal.SIGINT, before)


def _finished_units(outputs: Sequence[Path]) -> list[Path]:
    """The hidden folders with finished units beside the outputs of a command."""
    return [work_path(path) for path in outputs if path.name and are_left(path)]


def _stamp(path: Path) -> tuple[int, int] | None:
    """What differs when an output is replaced."""
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None
