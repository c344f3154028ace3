"""`refimpl eval`, `generate` and `bench`: what models are worth, in numbers and in words."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from msgspec import Meta

from refimpl.arguments import Checked, Count, common_option, option, same_option
from refimpl.bench.cells import BENCH, TABLE, BenchSettings, Grid
from refimpl.cli import groups, terminal
from refimpl.cli.options import Group, argument, refuse, with_groups
from refimpl.cli.outputs import OutputKind, output_option
from refimpl.cli.terminal import deliver, progress_bar
from refimpl.errors import printable
from refimpl.evaluation.evaluate import evaluate, evaluation_document
from refimpl.evaluation.generation import TOKENS, generate
from refimpl.evaluation.measures import read_questions
from refimpl.loading.files.file_reading import WHOLE
from refimpl.running.settings import Settings
from refimpl.running.threads import Progress
from refimpl.show.evaluation import continuations_text, evaluation_table
from refimpl.show.header import joined
from refimpl.storage.file_system import work_path
from refimpl.storage.files import write_text
from refimpl.tokens import SAMPLES, SEQ_LEN, id_windows
from refimpl.tokens.model_tokens import CALIBRATION, EVALUATION, model_windows


@dataclass(frozen=True)
class InputOptions:
    """The text of the perplexity, and the questions of the accuracy."""

    text: Path | None = common_option(
        None,
        "UTF-8 text, cut into consecutive windows, with the tokenizer.json in the model's folder.",
        "FILE",
    )
    tokens: Path | None = option(
        None,
        "Token ids (.npy or .jsonl) instead of a text, used unchanged: rows are windows.",
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
    choices: Path | None = common_option(
        None,
        "JSON lines with question, choices and answer, the index of the right choice from 0.",
        "FILE",
    )


@with_groups
def command(
    context: typer.Context,
    model: groups.ModelPath,
    *,
    where: groups.Where,
    on: Annotated[InputOptions, Group("Input")],
    settings: groups.Running,
    to: groups.Outputs,
) -> None:
    """The model reads each window on its own.

    acc picks the choice with the largest log likelihood. acc_norm first divides by the characters
    of the choice. lm-evaluation-harness defines both in this way.
    """
    opened, windows = where.read(model), None
    if on.tokens is not None:
        refuse(context, ("text",), "--tokens", "one of them")
        windows = id_windows(on.tokens, on.window, on.windows)
    elif on.text is not None:
        windows = model_windows(opened, on.text, on.window, on.windows)
    else:
        needed = "--text FILE or --tokens FILE"
        refuse(context, ("window", "windows"), "neither --text nor --tokens", needed)
    questions = None if on.choices is None else read_questions(on.choices)
    with progress_bar("evaluating") as progress:
        finished = None if to.output is None else work_path(to.output)
        settings = replace(settings, progress=progress, finished=finished)
        evaluation = evaluate(opened, windows, questions, settings)
    to.deliver(evaluation_document(evaluation), evaluation_table(evaluation))


@dataclass(frozen=True)
class GenerateOptions(Checked):
    """The text, and how it continues."""

    prompt: str = common_option(..., "The text to continue.", "TEXT")
    tokens: Annotated[int, Meta(ge=1, le=WHOLE)] = common_option(
        TOKENS, "Largest number of tokens to add. A model stops at an end of text.", "N"
    )
    temperature: Annotated[float, Meta(ge=0, le=100)] = common_option(
        0.0, "Sample from softmax(logits / T); 0 takes the most likely token.", "T"
    )
    seed: Count = common_option(0, "Seed of the samples, the same for every model.", "N")
    dtype: npt.DTypeLike = same_option(Settings, "dtype")


@with_groups
def generate_command(
    models: Annotated[list[Path], argument("MODEL", "Models with the same tokenizer.json.")],
    *,
    where: Annotated[groups.ModelOptions, Group("Model", ("download",))],
    asked: Annotated[GenerateOptions, Group("Running")],
    to: groups.JsonFlag,
) -> None:
    """There is no cache: every token costs a forward pass over all tokens before it.

    So N tokens after a prompt of P tokens cost as much as reading about N (P + N / 2) tokens.
    """
    opened = [where.read(path) for path in models]
    with progress_bar("generating") as progress:
        found = generate(opened, **vars(asked), progress=progress)
    document = {**vars(asked), "dtype": np.dtype(asked.dtype).name}
    document["continuations"] = [asdict(x) for x in found]
    deliver(document, continuations_text(map(str, models), found), to.json)


BENCH_SOURCE = Group(
    "Tokens",
    only=("text", "samples", "seq_len"),
    says={
        "text": "Default: a text that comes with refimpl.",
        "samples": f"They are those of one seed. Default: {SAMPLES}.",
        "seq_len": f"Default: {SEQ_LEN}, or the model's longest sequence if that is shorter.",
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
        f"Folder of the results: {BENCH}, the table in Markdown. If it "
        "contains a comparison with the same settings, cells are added.",
        "FOLDER",
        OutputKind.FOLDER,
    )
    keep_models: Path | None = option(
        None,
        "Keep the pruned models in this folder. Default: delete each after its evaluation.",
        "FOLDER",
        kind=OutputKind.FOLDER,
    )
    force: bool = option(False, "Replace the comparison in the folder, whatever its settings.")


@with_groups
def bench_command(
    models: Annotated[
        list[Path], argument("MODEL", "Models, as for refimpl prune: files, folders or ids.")
    ],
    *,
    grid: Annotated[Grid, Group("Comparison")],
    where: Annotated[groups.ModelOptions, Group("Model", ("download",))],
    source: Annotated[groups.Source, BENCH_SOURCE],
    how: Annotated[BenchOptions, Group("Output")],
    settings: groups.Running,
) -> None:
    """Each cell has the results of refimpl score, allocate, prune and eval, run one after another.

    If you stop the run, finished cells are kept; the same command continues it.
    """
    from refimpl.bench.measured_cells import measured_cells, text_named  # not for --help
    from refimpl.bench.tables import markdown, terminal_table

    texts = how.measure_on or (None,)
    shared = BenchSettings(
        text=text_named(source.text, CALIBRATION),
        samples=SAMPLES if source.samples is None else source.samples,
        seq_len=source.seq_len,
        seeds=grid.seeds,
        measured_on=tuple(text_named(path, EVALUATION) for path in texts),
        window=how.window,
        windows=how.windows,
        dtype=np.dtype(settings.dtype).name,
    )
    document, count = measured_cells(
        [where.read(model) for model in models],
        grid,
        (source.text, *texts),
        shared,
        how.output,
        running=settings,
        stage=_stages(),
        force=how.force,
        models_folder=how.keep_models,
    )
    write_text(how.output / TABLE, markdown(document))
    ran = f"{count} of {len(document.rows)} cells ran in this run; the others are on file"
    if not count:
        ran = f"all {len(document.rows)} cells are on file: nothing to run"
    written = f"written:    {how.output}: {BENCH}, {TABLE}"
    terminal.say(joined([ran, "", *terminal_table(document), written]))


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
