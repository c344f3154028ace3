"""The terminal: results to stdout, progress to stderr; and Ctrl-C: what is kept, how to go on."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from refimpl.errors import Interrupted
from refimpl.running.file_system import is_folder, work_path
from refimpl.running.outputs import json_text, write_text
from refimpl.running.threads import Progress

NO_READER = 74  # exit code if nobody reads stdout: EX_IOERR of sysexits.h
STEPS = 1000  # of the progress bar


def deliver(
    document: Mapping[str, Any], table: str, as_json: bool, output: Path | None = None
) -> None:
    """Write a document to the output, if there is one, and print its JSON or its table."""
    if output is not None:
        write_text(output, json_text(document))
    if not (sys.stdout.encoding or "").lower().startswith("utf"):
        table = table.replace(" ± ", " +-").replace("±", "+-")
    say(json_text(document) if as_json else table)


def say(text: str) -> None:
    """Print to stdout; a reader that has left ends the program with a code of its own."""
    try:
        print(
            text, end="", flush=True
        )  # typer.echo would print UTF-8 where stdout takes ASCII
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # flushed again at the end
        raise typer.Exit(NO_READER) from None


def command_line(*more: str) -> str:
    """The command that runs, with more words, as a shell reads it."""
    return shlex.join(["refimpl", *sys.argv[1:], *more])


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A bar on stderr with the time left, on a terminal that can show it; yields its update."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda done, total: None
        return
    with typer.progressbar(length=STEPS, label=label, width=0, file=sys.stderr) as bar:
        yield lambda done, total: bar.update(int(STEPS * done / total) - bar.pos)
        bar.update(
            STEPS - bar.pos
        )  # costs are sums of floats; and nothing may be left to do


@contextmanager
def interruptible(output: Path | None) -> Iterator[None]:
    """Let Ctrl-C raise in a command, and turn it into a message about the command's output."""
    started, before = time.time_ns(), signal.getsignal(signal.SIGINT)
    if callable(before):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        if output and output.exists() and output.stat().st_mtime_ns >= started:
            raise Interrupted(f"{output} is whole", "use it") from None
        if output and output.name and is_folder(work_path(output)):
            outcome = f"finished units are kept in {work_path(output)}"
            raise Interrupted(outcome, command_line()) from None
        raise Interrupted("nothing was written") from None
    finally:
        if callable(before):
            signal.signal(signal.SIGINT, before)
