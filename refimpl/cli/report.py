"""`refimpl report`: one page about scores, prunings and evaluations."""

from pathlib import Path
from typing import Annotated

import typer

from refimpl.storage.files import checked_output, write_text


def command(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            readable=False,
            help="A file that refimpl score -o wrote; with it, in any order, more of them, "
            "the pruning.json of pruned models, and files that refimpl eval -o wrote.",
        ),
    ],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            readable=False,
            help="Where the page goes, whole or not at all; an old one is replaced.",
        ),
    ],
) -> None:
    """Write a page with pictures and tables of scores, prunings and evaluations.

    It is one HTML file that loads nothing from elsewhere.
    """
    from refimpl.report.page import report  # not for --help

    checked_output(output, {str(path): path for path in files})
    page = report(files)
    write_text(output, page)
    print(f"written: {output} ({len(page.encode()):,} bytes)", flush=True)
