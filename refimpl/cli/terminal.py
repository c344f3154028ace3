"""The terminal: results to stdout, progress to stderr; and Ctrl-C: what is kept, how to go on."""

import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from refimpl.errors import Interrupted, RefimplError
from refimpl.running.file_system import work_path
from refimpl.running.files import json_text, write_json
from refimpl.running.finished_units import are_left
from refimpl.running.threads import Progress
from refimpl.show.header import NARROWEST, fitting

NO_READER = 74  # exit code if nobody reads stdout: EX_IOERR of sysexits.h
STEPS = 1000  # of the progress bar
BAR, BESIDE = 36, 27  # its columns, and those of what stands beside bar and label


def deliver(
    document: Mapping[str, Any], table: str, as_json: bool, output: Path | None = None
) -> None:
    """Write a document to the output, if there is one, and print its JSON or its table."""
    if output is not None:
        write_json(output, document)
    if not (sys.stdout.encoding or "").lower().startswith("utf"):
        table = table.replace(" ± ", " +-").replace("±", "+-")
    say(json_text(document) if as_json else table)


def say(text: str) -> None:
    """Print to stdout; a reader that has left ends the program with a code of its own."""
    try:
        print(text, end="", flush=True)  # typer.echo would print UTF-8 where stdout takes ASCII
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed again at the end
        raise typer.Exit(NO_READER) from None
    except OSError as error:
        raise RefimplError(
            f"stdout takes no more ({error.strerror})",
            "a terminal, a pipe or a file with room for what is printed",
            "make room, or print to another file",
        ) from error


def command_line(*more: str) -> str:
    """The command that runs, with more words, as a shell reads it."""
    return shlex.join(["refimpl", *sys.argv[1:], *more])


def complain(text: str) -> None:
    """Print a message to stderr; on a terminal its lines fit, and a command stays one command."""
    if sys.stderr.isatty():
        width = max(shutil.get_terminal_size().columns, NARROWEST)
        lines = text.split("\n")
        text = "\n".join(part for line in lines for part in fitting(line, width))
    print(text, file=sys.stderr)


def shows_progress() -> bool:
    """Whether stderr is a terminal that can show progress."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A bar on stderr with the time left, on a terminal that can show it; yields its update."""
    if not shows_progress():
        yield lambda done, total: None
        return
    room = shutil.get_terminal_size().columns - len(label) - BESIDE
    width = max(1, min(room, BAR))
    with typer.progressbar(length=STEPS, label=label, width=width, file=sys.stderr) as bar:
        yield lambda done, total: bar.update(int(STEPS * done / total) - bar.pos)
        bar.update(STEPS - bar.pos)  # costs are sums of floats; and nothing may be left to do


@contextmanager
def interruptible(outputs: Sequence[Path]) -> Iterator[None]:
    """Turn Ctrl-C into a message about the outputs of a command; and say what is continued."""
    started = time.time_ns()
    try:
        with _raising_interrupts():
            yield
    except KeyboardInterrupt:
        for path in outputs:
            if path.exists() and path.stat().st_mtime_ns >= started:
                raise Interrupted(f"{path} is whole", "use it") from None
            if path.name and are_left(path):
                kept = f"finished units are kept in {work_path(path)}"
                raise Interrupted(kept, command_line()) from None
        raise Interrupted("nothing was written") from None


@contextmanager
def _raising_interrupts() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt; around a command it ends the program at once."""
    before = signal.getsignal(signal.SIGINT)
    ours = callable(before) and before is not signal.default_int_handler
    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
