"""`refimpl plot`: results in figures, or on a page."""

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer

from refimpl.arguments import common_option
from refimpl.cli.groups import ForceOptions
from refimpl.cli.options import Group, OutputKind, argument, output_option, refuse, with_groups
from refimpl.cli.terminal import say
from refimpl.errors import printable
from refimpl.running.outputs import write_text

Runs = Annotated[
    list[Path], argument("FILE", "What score -o and eval -o wrote, and folders of prune and bench.")
]


@dataclass(frozen=True, kw_only=True)
class FigureOptions(ForceOptions):
    """What is drawn, and written."""

    output: Path = output_option(
        ...,
        "The figure: .svg, .png or .pdf; or .html, a page of all figures and tables.",
        "FILE",
        OutputKind.FILE,
    )
    figure: Literal["drift", "coefficients", "divergence", "allocation", "comparison"] | None = (
        common_option(None, "Draw only the figures of this name. Default: all.", "NAME")
    )


@with_groups
def plot_command(
    context: typer.Context, files: Runs, *, to: Annotated[FigureOptions, Group("Output")]
) -> None:
    """Scores have a drift, coefficients, a divergence and an allocation; others a comparison.

    Several figures become panels of one. A page is one file that loads nothing from the network.
    The command needs the extra [plot].
    """
    with TemporaryDirectory() as fonts:  # matplotlib's list: commands write their output alone
        os.environ.setdefault("MPLCONFIGDIR", fonts)
        from refimpl.plot.report_page import panels, read_result, report  # not for --help
        from refimpl.plot.style import drawn, save

        if to.output.suffix == ".html":
            refuse(context, ("figure",), "a page", "all figures; or a file .svg, .png or .pdf")
            write_text(to.output, report(files))
        else:
            shown = panels([read_result(path) for path in files], to.figure)
            save(drawn([draw for _, draw in shown]), to.output)
    say(printable(f"written: {to.output} ({to.output.stat().st_size:,} bytes)") + "\n")
