"""`refimpl report` and `refimpl compare`: runs on a page, or in a table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from refimpl.arguments import common_option
from refimpl.cli.groups import JsonOptions
from refimpl.cli.options import Group, argument, with_groups
from refimpl.cli.outputs import OutputKind, output_option
from refimpl.cli.terminal import deliver, say
from refimpl.errors import printable
from refimpl.storage.files import write_text

Runs = Annotated[
    list[Path],
    argument(
        "FILE",
        "Files that refimpl score, allocate or eval wrote with -o, and folders of pruned "
        "models (or their pruning.json), in any order.",
    ),
]


@dataclass(frozen=True)
class PageOptions:
    """What is written."""

    output: Path = output_option(
        Path("report.html"),
        "The page, which appears whole or not at all.",
        "FILE",
        OutputKind.FILE,
    )
    figures: Path | None = common_option(
        None,
        "Also write every picture (SVG) and its numbers (CSV) to a new folder.",
        "DIR",
        kind=OutputKind.FOLDER,
    )


@dataclass(frozen=True)
class CompareOptions(JsonOptions):
    """What is printed."""

    against: str | None = common_option(
        None,
        "The run that perplexities are compared with, window by window. Default: the first that "
        "was not pruned, or the first.",
        "RUN",
    )


@with_groups
def command(files: Runs, *, to: Annotated[PageOptions, Group("Output")]) -> None:
    """The page is one HTML file that loads nothing from the network."""
    from refimpl.report.inputs import read_inputs  # not for --help
    from refimpl.report.page import page, sections, write_figures

    inputs = read_inputs(files)
    text = page(inputs)
    if to.figures is not None:
        count = write_figures(to.figures, list(sections(inputs)))
        say(printable(f"written: {to.figures} ({count} files)") + "\n")
    write_text(to.output, text)
    say(printable(f"written: {to.output} ({len(text.encode()):,} bytes)") + "\n")


@with_groups
def compare_command(files: Runs, *, to: Annotated[CompareOptions, Group("Output")]) -> None:
    """A pruning and the evaluations of the model that it wrote share a row.

    Their files record a digest of its weights. An evaluation by an older version, without a digest,
    has its own row.
    """
    from refimpl.report.inputs import read_inputs  # not for --help
    from refimpl.report.runs import run_rows, runs_text

    rows = run_rows(read_inputs(files), to.against)
    deliver({"runs": rows}, runs_text(rows), to.json)
