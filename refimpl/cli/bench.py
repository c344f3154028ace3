"""`refimpl bench`: which allocation prunes a model best."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Annotated

import numpy as np

from refimpl.arguments import common_option, same_option
from refimpl.bench.cells import BENCH, TABLE, BenchSettings, Grid
from refimpl.cli import groups, terminal
from refimpl.cli.eval import InputOptions
from refimpl.cli.options import Group, argument, with_groups
from refimpl.cli.outputs import OutputKind, output_option
from refimpl.errors import Interrupted, printable
from refimpl.loading.model_tokens import CALIBRATION, EVALUATION
from refimpl.running.files import write_text
from refimpl.running.settings import Settings
from refimpl.running.threads import Progress
from refimpl.show.header import joined, terminal_width

SOURCE = Group(
    "Tokens",
    only=("text", "samples", "seq_len"),
    says={
        "text": "Default: a text that comes with refimpl.",
        "samples": "They are those of one seed. Default: as refimpl score and prune have.",
        "seq_len": "Default: as refimpl score and prune have.",
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
        f"Folder of the results: {BENCH} and {TABLE}. If it contains a comparison with the same "
        "settings, cells are added.",
        "FOLDER",
        OutputKind.FOLDER,
    )


@with_groups
def command(
    models: Annotated[
        list[Path], argument("MODEL", "Models, as for refimpl prune: files, folders or ids.")
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
    from refimpl.bench.measured_cells import measured_cells, texts_named  # not for --help
    from refimpl.bench.tables import bench_table, markdown, notes

    texts: tuple[Path | None, ...] = how.measure_on or (None,)
    shared = BenchSettings(
        text=texts_named([source.text], CALIBRATION)[0],
        samples=source.samples,
        seq_len=source.seq_len,
        seeds=grid.seeds,
        measured_on=texts_named(texts, EVALUATION),
        window=how.window,
        windows=how.windows,
        dtype=np.dtype(settings.dtype).name,
    )
    opened, texts = [where.read(model) for model in models], (source.text, *texts)
    try:
        found, count = measured_cells(opened, grid, texts, shared, how.output, settings, _stages())
    except KeyboardInterrupt:
        kept = f"finished cells are kept in {how.output}"
        raise Interrupted(kept, terminal.command_line()) from None
    write_text(how.output / TABLE, markdown(found))
    ran = f"{count} of {len(found.rows)} cells ran in this run; the others are on file"
    if not count:
        ran = f"all {len(found.rows)} cells are on file: nothing to run"
    said = [x for note in notes(found) for x in wrap(note, terminal_width())]
    written = f"written:    {how.output}: {BENCH}, {TABLE}"
    terminal.say(joined([ran, "", *bench_table(found).lines(), "", *said, written]))


def _stages() -> Callable[[str, int, int], AbstractContextManager[Progress]]:
    """What shows the progress of every cell, and how long the others will take."""
    seconds = list[float]()

    @contextmanager
    def stage(words: str, number: int, count: int) -> Iterator[Progress]:
        begun, left = time.monotonic(), count - number + 1
        label = f"cell {number} of {count}"
        if seconds:
            label += f", {sum(seconds) / len(seconds) * left / 60:.0f} min left"
        with terminal.progress_bar(label) as progress:
            yield progress
        seconds.append(time.monotonic() - begun)
        if terminal.shows_progress():
            terminal.complain(printable(f"{label}: {words}, {seconds[-1]:.0f} s"))

    return stage
