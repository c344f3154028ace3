"""`refimpl report`: one page about scores, prunings and evaluations."""

from pathlib import Path
from typing import Annotated

from refimpl.cli import options as opt
from refimpl.cli.terminal import say
from refimpl.errors import printable
from refimpl.storage.files import write_text


@opt.with_groups
def command(
    files: Annotated[
        list[Path],
        opt.argument(
            "FILE",
            "Files that refimpl score, allocate or eval wrote with -o, and folders of pruned "
            "models (or their pruning.json), in any order.",
        ),
    ],
    *,
    output: Annotated[
        Path,
        opt.output("FILE", "The page, which appears whole or not at all."),
        opt.OutputKind.FILE,
    ] = Path("report.html"),
    figures: Annotated[
        Path | None,
        opt.option("Also write every picture (SVG) and its numbers (CSV) to a new folder.", "DIR"),
        opt.OutputKind.FOLDER,
    ] = None,
) -> None:
    """Write a page with pictures and tables of scores, prunings and evaluations.

    The page is one HTML file that loads nothing from the network. On it, a button below each
    picture saves it as SVG or PNG, and its numbers as CSV.
    """
    from refimpl.report.inputs import read_inputs  # not for --help
    from refimpl.report.page import page, sections
    from refimpl.report.standalone import write_figures

    inputs = read_inputs(files)
    text = page(inputs)
    if figures is not None:
        count = write_figures(figures, list(sections(inputs, len(text))))
        say(printable(f"written: {figures} ({count} files)") + "\n")
    write_text(output, text)
    say(printable(f"written: {output} ({len(text.encode()):,} bytes)") + "\n")
