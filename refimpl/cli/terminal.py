"""What goes to the terminal: results to stdout, progress and errors to stderr."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from refimpl.jobs.execution import Progress
from refimpl.show.table import Style


def style() -> Style:
    """What stdout can show: colour only on a terminal and without NO_COLOR, blocks in UTF-8."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    color = (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )
    return Style(color, encoding.startswith("utf"))


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A bar on stderr with the time left; silent where stderr is no terminal.

    Args:
        label: What is being done.

    Yields:
        A function to call with the work done and in all.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with typer.progressbar(length=1000, label=label, file=sys.stderr) as shown:

        def report(done: float, total: float) -> None:
            shown.update(int(1000 * done / total) - shown.pos)

        yield report
