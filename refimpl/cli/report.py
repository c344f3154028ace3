"""`refimpl report`: one page about scores, prunings and evaluations."""

from pathlib import Path
from typing import Annotated

from refimpl.cli import options as opt
from refimpl.storage.files import checked_output, write_text


def command(
    files: Annotated[
        list[Path],
        opt.argument(
            "FILE",
            "At least one file that refimpl score -o wrote. Add, in any order, more of them, the "
            "pruning.json of pruned models, and files that refimpl eval -o wrote.",
        ),
    ],
    *,
    output: Annotated[
        Path,
        opt.output(
            "FILE", "The page, which appears whole or not at all. An existing file is replaced."
        ),
    ],
) -> None:
    """Write a page with pictures and tables of scores, prunings and evaluations.

    The page is one HTML file that loads nothing from the network.
    """
    from refimpl.report.page import report  # not for --help

    checked_output(output, {str(path): path for path in files})
    page = report(files)
    write_text(output, page)
    print(f"written: {output} ({len(page.encode()):,} bytes)", flush=True)
