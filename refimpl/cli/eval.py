"""`refimpl eval`: perplexity on a text, accuracy on questions."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from refimpl.cli import options as opt
from refimpl.cli.groups import SETTINGS
from refimpl.cli.terminal import deliver, progress_bar
from refimpl.errors import RefimplError
from refimpl.evaluation.choices import read_questions
from refimpl.evaluation.document import evaluation_document
from refimpl.evaluation.evaluate import evaluate
from refimpl.loading.checkpoint import read_model
from refimpl.model.model import Model
from refimpl.running.settings import Settings
from refimpl.show.evaluation import evaluation_table
from refimpl.storage.files import write_json
from refimpl.storage.partial_results import until_written
from refimpl.tokens import SEQ_LEN, Windows, id_windows, text_windows

TEXT, CHOICES = "Perplexity", "Multiple choice"  # headings in --help


@opt.with_groups
def command(
    model: opt.ModelPath,
    *,
    config: opt.Config = None,
    text: Annotated[
        Path | None,
        opt.option(
            "UTF-8 text to cut into consecutive windows from its start, with the tokenizer.json in "
            "the model's folder.",
            "FILE",
            TEXT,
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        opt.option(
            "Token ids (.npy or .jsonl) instead of a text, used unchanged: rows are windows.",
            "FILE",
            TEXT,
        ),
    ] = None,
    window: Annotated[
        int | None,
        opt.option(
            "Tokens per window, including BOS. Default: 512, or the model's longest sequence if "
            "that is shorter; for rows of ids, their width.",
            "N",
            TEXT,
        ),
    ] = None,
    windows: Annotated[
        int | None,
        opt.option("Number of windows. Default: all, including a shorter last one.", "N", TEXT),
    ] = None,
    choices: Annotated[
        Path | None,
        opt.option(
            "Questions as JSON lines with question, choices and answer (the index of the right "
            "choice, from 0).",
            "FILE",
            CHOICES,
        ),
    ] = None,
    questions: Annotated[
        int | None, opt.option("Number of questions, from the first. Default: all.", "N", CHOICES)
    ] = None,
    settings: Annotated[Settings, SETTINGS],
    as_json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Measure perplexity and bits per byte on a text, and accuracy on multiple-choice questions.

    The model reads each window on its own. acc picks the choice with the largest log likelihood,
    acc_norm the choice with the largest one per character, as lm-evaluation-harness defines them.
    """
    for name, value, needed, file in (
        ("--windows", windows, "--text or --tokens", text or tokens),
        ("--window", window, "--text or --tokens", text or tokens),
        ("--questions", questions, "--choices", choices),
    ):
        if value is not None and file is None:
            raise RefimplError(
                f"{name} without {needed}",
                f"{name} together with {needed}",
                f"add {needed}, or omit {name}",
            )
    opened = read_model(model, config)
    inputs = {"--text": text, "--tokens": tokens, "--choices": choices, "--config": config}
    part = opt.partial_path(output, settings.resume)
    opt.check_outputs(opened, inputs, output, part)
    cut = _windows(opened, text, tokens, window, windows)
    asked = None if choices is None else read_questions(choices, questions)
    with progress_bar("evaluating") as progress:
        settings = replace(settings, progress=progress, part=part)
        evaluation = evaluate(opened, cut, asked, **vars(settings))
    document = evaluation_document(evaluation)
    with until_written(part, settings.resume):
        if output is not None:
            write_json(output, document)
    deliver(document, evaluation_table(evaluation), as_json)


def _windows(
    model: Model, text: Path | None, tokens: Path | None, window: int | None, count: int | None
) -> Windows | None:
    """The windows that the options ask for, or None."""
    longest = model.config.max_position_embeddings
    if window is not None and window > longest:
        raise RefimplError(
            f"windows of {window} tokens",
            f"at most {longest}, the model's max_position_embeddings",
            f"use --window {longest} or less",
        )
    if text is not None and tokens is not None:
        raise RefimplError("both --text and --tokens", "one of them", "omit --text or --tokens")
    if tokens is not None:
        return id_windows(tokens, window, count)
    if text is None:
        return None
    size = min(SEQ_LEN, longest) if window is None else window
    bos = model.config_file.get("bos_token_id")
    return text_windows(text, model.folder / "tokenizer.json", size, count, bos_id=bos)
