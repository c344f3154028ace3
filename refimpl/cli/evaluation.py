"""`refimpl eval`, `bench` and `plot`: what a model is worth, allocations compared, and figures."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import numpy as np
import typer

from refimpl.arguments import common_option, option, same_option
from refimpl.bench.cells import BENCH, TABLE_FILE, BenchSettings, BenchText, Grid
from refimpl.cli import groups, terminal
from refimpl.cli.options import (
    Group,
    OutputKind,
    argument,
    output_option,
    refuse,
    with_groups,
)
from refimpl.errors import Interrupted, printable
from refimpl.evaluation.evaluate import evaluate, evaluation_document
from refimpl.loading.files.documents import filled, reading_document
from refimpl.loading.samples import SAMPLES, SCORED, SEQ_LEN, id_windows
from refimpl.loading.text import CALIBRATION, EVALUATION, model_windows
from refimpl.running.file_system import file_digest
from refimpl.running.outputs import write_text
from refimpl.running.settings import Settings
from refimpl.show.models import evaluation_table
from refimpl.show.table import page_text


@dataclass(frozen=True)
class InputOptions:
    """The text of the perplexity."""

    text: Path | None = common_option(
        None,
        "UTF-8 text, tokenised with the tokenizer.json in the model's folder, and cut into "
        "consecutive windows. Default: a text that comes with refimpl.",
        "FILE",
    )
    tokens: Path | None = option(
        None,
        "Token ids (.npy) instead of a text, used unchanged: rows are windows.",
        "FILE",
    )
    window: int | None = option(
        None,
        "Tokens per window, including BOS. Default: 512, or the model's longest sequence if that "
        "is shorter; for rows of ids, their width.",
        "N",
    )
    windows: int | None = common_option(
        None, "Number of windows. Default: all, including a shorter last one.", "N"
    )


@with_groups
def eval_command(
    context: typer.Context,
    model: groups.ModelPath,
    *,
    where: groups.Where,
    on: Annotated[InputOptions, Group("Input")],
    settings: Annotated[Settings, Group("Running", ("dtype", "threads"))],
    to: groups.Outputs,
) -> None:
    """The model reads each window without the text before it."""
    opened = where.read(model)
    if on.tokens is not None:
        refuse(context, ("text",), "--tokens", "one of them")
        windows = id_windows(on.tokens, on.window, on.windows)
    else:
        windows = model_windows(opened, on.text, on.window, on.windows)
    with terminal.progress_bar("evaluating") as progress:
        evaluation = evaluate(opened, windows, replace(settings, progress=progress))
    to.deliver(evaluation_document(evaluation), evaluation_table(evaluation))


SOURCE = Group(
    "Tokens",
    only=("text", "samples", "seq_len"),
    says={
        "text": "Default: a text that comes with refimpl.",
        "samples": f"Each seed has as many. Default: {SCORED[0]} to score, {SAMPLES} to prune.",
        "seq_len": f"Default: {SCORED[1]} to score, {SEQ_LEN} to prune, or the model's longest.",
    },
)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What the models are measured on, and what is written."""

    measure_on: tuple[Path, ...] = common_option(
        (),
        "UTF-8 text on which perplexity is measured, but not calibrated; may be repeated. "
        "Default: a text that comes with refimpl.",
        "FILE",
    )
    window: int | None = same_option(InputOptions, "window")
    windows: int | None = same_option(InputOptions, "windows")
    output: Path = output_option(
        ...,
        f"Folder of the results: {BENCH} and {TABLE_FILE}. If it contains a comparison with the "
        "same settings, cells are added.",
        "FOLDER",
        OutputKind.FOLDER,
    )


@with_groups
def bench_command(
    models: Annotated[
        list[Path],
        argument("MODEL", "Models, as for refimpl prune: files, folders or ids."),
    ],
    *,
    grid: Annotated[Grid, Group("Comparison")],
    where: Annotated[groups.ModelOptions, Group("Model", ("download",))],
    source: Annotated[groups.Source, SOURCE],
    how: Annotated[BenchOptions, Group("Output")],
    settings: Annotated[Settings, Group("Running", ("dtype", "threads"))],
) -> None:
    """Each cell has the results of refimpl score, allocate, prune and eval, run one after another.

    If you stop the run, finished cells are kept; the same command continues it.
    """
    from refimpl.bench.measured_cells import measured_cells  # not for --help
    from refimpl.bench.tables import LEGEND, bench_table

    texts: tuple[Path | None, ...] = how.measure_on or (None,)
    shared = filled(
        BenchSettings,
        *(source, grid, how),
        text=_named(source.text, CALIBRATION),
        measured_on=tuple(_named(text, EVALUATION) for text in texts),
        dtype=np.dtype(settings.dtype).name,
    )
    opened, texts = [where.read(model) for model in models], (source.text, *texts)
    try:
        more = how.output, settings, terminal.progress_bar
        result, count = measured_cells(opened, grid, texts, shared, *more)
    except KeyboardInterrupt:
        outcome = f"finished cells are kept in {how.output}"
        raise Interrupted(outcome, terminal.command_line()) from None
    table = bench_table(result)
    write_text(how.output / TABLE_FILE, f"{table.markdown()}\n\n{LEGEND}\n")
    others = "; the others are on file" * (count < len(result.rows))
    ran = f"{count} of {len(result.rows)} cells ran in this run{others}"
    notes = {"note:": [LEGEND], "written:": [f"{how.output}: {BENCH}, {TABLE_FILE}"]}
    terminal.say(page_text([ran], table.lines(), notes))


def _named(path: Path | None, otherwise: str) -> BenchText:
    """A text by its name and digest; without a path, that of refimpl."""
    if path is None:
        return BenchText(name=Path(otherwise).stem, sha256=None)
    with reading_document(path, ("a text", "a text in UTF-8", "check the path")):
        return BenchText(name=printable(path.stem), sha256=file_digest(path))


Runs = Annotated[
    list[Path],
    argument(
        "FILE", "What score -o and eval -o wrote, and folders of prune and bench."
    ),
]


@dataclass(frozen=True, kw_only=True)
class FigureOptions(groups.ForceOptions):
    """What is drawn, and written."""

    output: Path = output_option(
        ...,
        "The figure: .svg, .png or .pdf; or .html, a page of all figures and tables.",
        "FILE",
        OutputKind.FILE,
    )
    figure: (
        Literal["drift", "coefficients", "divergence", "allocation", "comparison"]
        | None
    ) = common_option(None, "Draw only the figures of this name. Default: all.", "NAME")


@with_groups
def plot_command(
    context: typer.Context,
    files: Runs,
    *,
    to: Annotated[FigureOptions, Group("Output")],
) -> None:
    """Scores have a drift, coefficients, a divergence and an allocation; others a comparison.

    Several figures become panels of one. A page is one file that loads nothing from the network.
    The command needs the extra [plot].
    """
    with (
        TemporaryDirectory() as fonts
    ):  # matplotlib's list: commands write their output alone
        os.environ.setdefault("MPLCONFIGDIR", fonts)
        from refimpl.plot.report_page import (
            panels,
            read_result,
            report,
        )  # not for --help
        from refimpl.plot.style import drawn, save

        if to.output.suffix == ".html":
            refuse(
                context,
                ("figure",),
                "a page",
                "all figures; or a file .svg, .png or .pdf",
            )
            write_text(to.output, report(files))
        else:
            shown = panels([read_result(path) for path in files], to.figure)
            save(drawn([draw for _, draw in shown]), to.output)
    terminal.say(
        printable(f"written: {to.output} ({to.output.stat().st_size:,} bytes)") + "\n"
    )
