"""What goes to the terminal and to a file: results to stdout, progress to stderr."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from refimpl.running.threads import Progress
from refimpl.show.header import NARROWEST, fitting
from refimpl.show.table import Style
from refimpl.storage.files import json_text, write_json

NO_READER = 74  # exit code if nobody reads stdout: EX_IOERR of sysexits.h
STEPS = 1000  # of the progress bar
BAR, BESIDE = 36, 27  # its columns, and those of what stands beside bar and label
quiet = False  # whether no progress is shown, as -q says


def deliver(
    document: Mapping[str, Any], table: str, as_json: bool, output: Path | None = None
) -> None:
    """Write a document to the output, if there is one, and print its JSON or its table."""
    if output is not None:
        write_json(output, document)
    table = table if style().blocks else table.replace("±", "+-")
    say(json_text(document) if as_json else table)


def say(text: str) -> None:
    """Print to stdout; a reader that has left ends the program with a code of its own."""
    try:
        print(text, end="", flush=True)  # typer.echo would print UTF-8 where stdout takes ASCII
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed again at the end
        raise typer.Exit(NO_READER) from None


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


def style() -> Style:
    """What stdout can show: colour only on a terminal and without NO_COLOR, blocks in UTF-8."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and not _dumb()
    return Style(color, encoding.startswith("utf"))


def shows_progress() -> bool:
    """Whether stderr is a terminal that can show progress, and nobody said -q."""
    return not quiet and sys.stderr.isatty() and not _dumb()


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


def _dumb() -> bool:
    """Whether the terminal cannot move its cursor nor change colours."""
    return os.environ.get("TERM") == "dumb"
