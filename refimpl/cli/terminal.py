"""What goes to the terminal and to a file: results to stdout, progress to stderr."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from refimpl.allocation.allocate import allocate
from refimpl.allocation.request import Request
from refimpl.allocation.scores import Scores
from refimpl.allocation.scores_json import document
from refimpl.running.threads import Progress
from refimpl.show.table import Style, table
from refimpl.storage.files import write_json
from refimpl.storage.partial_results import until_written

STEPS = 1000  # of the progress bar


def deliver(
    scores: Scores,
    wanted: Request,
    as_json: bool,
    output: Path | None,
    part: Path | None = None,
    resume: bool = False,
) -> None:
    """Allocate at every eta, write the JSON if asked to, and print the table or the JSON.

    Args:
        scores: What was found.
        wanted: The allocation to make of it.
        as_json: Whether JSON is printed in place of the table.
        output: Where the JSON goes, or None.
        part: What was kept for the case of a kill; removed when the JSON is written.
        resume: Whether it outlives an error.
    """
    with until_written(part, resume):
        allocations = tuple(allocate(scores, wanted, which) for which in range(len(scores.sweep)))
        result = document(scores, allocations)
        if output is not None:
            write_json(output, result)
    if as_json:
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    else:
        text = table(scores, allocations, style())
    print(text, end="", flush=True)  # typer.echo would print UTF-8 where stdout takes ASCII


def style() -> Style:
    """What stdout can show: colour only on a terminal and without NO_COLOR, blocks in UTF-8."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and not _dumb()
    return Style(color, encoding.startswith("utf"))


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A bar on stderr with the time left; silent where stderr is no terminal that can show it.

    Args:
        label: What is being done.

    Yields:
        A function to call with the work done and in all.
    """
    if not sys.stderr.isatty() or _dumb():
        yield lambda done, total: None
        return
    with typer.progressbar(length=STEPS, label=label, file=sys.stderr) as shown:

        def report(done: float, total: float) -> None:
            shown.update(int(STEPS * done / total) - shown.pos)

        yield report


def _dumb() -> bool:
    """Whether the terminal cannot move its cursor nor change colours."""
    return os.environ.get("TERM") == "dumb"
