"""`refimpl eval`: what a model is worth, in numbers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from refimpl.arguments import common_option, option
from refimpl.cli import groups
from refimpl.cli.options import Group, refuse, with_groups
from refimpl.cli.terminal import progress_bar
from refimpl.evaluation.evaluate import evaluate, evaluation_document
from refimpl.loading.samples import id_windows
from refimpl.loading.text import model_windows
from refimpl.running.settings import Settings
from refimpl.show.evaluation import evaluation_table


@dataclass(frozen=True)
class InputOptions:
    """The text of the perplexity."""

    text: Path | None = common_option(
        None,
        "UTF-8 text, cut into consecutive windows, with the tokenizer.json in the model's folder. "
        "Default: a text that comes with refimpl.",
        "FILE",
    )
    tokens: Path | None = option(
        None, "Token ids (.npy) instead of a text, used unchanged: rows are windows.", "FILE"
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
def command(
    context: typer.Context,
    model: groups.ModelPath,
    *,
    where: groups.Where,
    on: Annotated[InputOptions, Group("Input")],
    settings: Annotated[Settings, Group("Running", ("dtype", "threads"))],
    to: groups.Outputs,
) -> None:
    """The model reads each window on its own."""
    opened = where.read(model)
    if on.tokens is not None:
        refuse(context, ("text",), "--tokens", "one of them")
        windows = id_windows(on.tokens, on.window, on.windows)
    else:
        windows = model_windows(opened, on.text, on.window, on.windows)
    with progress_bar("evaluating") as progress:
        evaluation = evaluate(opened, windows, replace(settings, progress=progress))
    to.deliver(evaluation_document(evaluation), evaluation_table(evaluation))
