"""`refimpl plot` and `report`: results in figures, or on a page."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from refimpl.arguments import common_option
from refimpl.cli.groups import ForceOptions
from refimpl.cli.options import Group, OutputKind, argument, output_option, with_groups
from refimpl.cli.terminal import say
from refimpl.errors import printable
from refimpl.running.files import write_text

Runs = Annotated[
    list[Path],
    argument(
        "FILE",
        "Files that refimpl score or eval wrote with -o, and folders of prune and bench, in any "
        "order.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class FigureOptions(ForceOptions):
    """What is drawn, and written."""

    output: Path = output_option(..., "The figure: .svg, .png or .pdf.", "FIGURE", OutputKind.FILE)
    figure: Literal["drift", "coefficients", "divergence", "allocation", "comparison"] | None = (
        common_option(None, "Draw only the figures of this name. Default: all.", "NAME")
    )


@dataclass(frozen=True)
class PageOptions(ForceOptions):
    """What is written."""

    output: Path = output_option(Path("report.html"), "The page.", "FILE", OutputKind.FILE)


@contextmanager
def _without_cache() -> Iterator[None]:
    """Matplotlib's list of fonts in a folder that is deleted: commands write their output alone."""
    if "MPLCONFIGDIR" in os.environ or "matplotlib" in sys.modules:
        yield
        return
    with TemporaryDirectory() as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            yield
        finally:
            del os.environ["MPLCONFIGDIR"]


@with_groups
def plot_command(files: Runs, *, to: Annotated[FigureOptions, Group("Output")]) -> None:
    """Scores have a drift, coefficients, a divergence and an allocation; others a comparison.

    Several figures become panels of one. This needs pip install 'refimpl[plot]'.
    """
    with _without_cache():
        from refimpl.plot.page import panels, read_result  # not for --help
        from refimpl.plot.style import drawn, save

        shown = panels([read_result(path) for path in files], to.figure)
        save(drawn([draw for _, draw in shown]), to.output)
    say(printable(f"written: {to.output} ({to.output.stat().st_size:,} bytes)") + "\n")


@with_groups
def command(files: Runs, *, to: Annotated[PageOptions, Group("Output")]) -> None:
    """The page is one HTML file that loads nothing from the network.

    This needs pip install 'refimpl[plot]'.
    """
    with _without_cache():
        from refimpl.plot.page import report  # not for --help

        text = report(files)
    write_text(to.output, text)
    say(printable(f"written: {to.output} ({len(text.encode()):,} bytes)") + "\n")
