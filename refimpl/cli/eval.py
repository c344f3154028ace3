"""`refimpl eval`, `generate` and `bench`: what models are worth, in numbers and in words."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from msgspec import Meta

from refimpl.arguments import Checked, Count, common_option, option, same_option
from refimpl.cli import groups
from refimpl.cli.options import Group, argument, refuse, with_groups
from refimpl.cli.terminal import deliver, progress_bar
from refimpl.evaluation.evaluate import evaluate, evaluation_document
from refimpl.evaluation.generation import TOKENS, generate
from refimpl.evaluation.measures import read_questions
from refimpl.loading.files.file_reading import WHOLE
from refimpl.running.settings import Settings
from refimpl.show.evaluation import continuations_text, evaluation_table
from refimpl.storage.file_system import work_path
from refimpl.tokens import id_windows
from refimpl.tokens.model_tokens import model_windows


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
