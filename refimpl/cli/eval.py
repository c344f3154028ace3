"""`refimpl eval`: perplexity on a text, accuracy on questions."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from refimpl.cli import options as opt
from refimpl.cli.groups import with_groups
from refimpl.cli.options import option
from refimpl.cli.running import LongRun, Running
from refimpl.cli.terminal import progress_bar
from refimpl.errors import RefimplError
from refimpl.evaluation.choices import read_questions
from refimpl.evaluation.document import evaluation_document
from refimpl.evaluation.evaluate import evaluate
from refimpl.loading.checkpoint import read_model
from refimpl.model.model import Model
from refimpl.show.evaluation import evaluation_table
from refimpl.storage.files import checked_output, write_json
from refimpl.storage.partial_results import until_written
from refimpl.tokens import SEQ_LEN, Windows, id_windows, text_windows

TEXT, CHOICES = "Perplexity", "Multiple choice"  # headings in --help


@with_groups
def command(
    model: opt.ModelPath,
    *,
    config: opt.Config = None,
    text: Annotated[
        Path | None,
        option(
            "Text (UTF-8) to cut into consecutive windows from its start, by the tokenizer.json "
            "in the model's folder.",
            "FILE",
            TEXT,
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        option(
            "Token ids in place of a text, .npy or .jsonl, used as they are: rows are windows.",
            "FILE",
            TEXT,
        ),
    ] = None,
    window: Annotated[
        int | None,
        option(
            "Tokens per window, BOS included. Default: 512, or the model's longest if that is "
            "less; of rows of ids, their width.",
            "N",
            TEXT,
        ),
    ] = None,
    windows: Annotated[
        int | None,
        option("Number of windows. Default: all; a last shorter one counts.", "N", TEXT),
    ] = None,
    choices: Annotated[
        Path | None,
        option(
            "Questions, JSON lines with question, choices and answer (the place of the right one, "
            "from 0).",
            "FILE",
            CHOICES,
        ),
    ] = None,
    questions: Annotated[
        int | None, option("Number of questions, from the first. Default: all.", "N", CHOICES)
    ] = None,
    running: Running,
    long: LongRun,
    as_json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Measure perplexity and bits per byte on a text, accuracy on multiple-choice questions.

    Windows are read each on its own. acc picks the choice with the greatest log likelihood,
    acc_norm the one with the greatest per character, as lm-evaluation-harness defines them.
    """
    for name, given, needs, other in (
        ("--windows", windows, "--text or --tokens", text or tokens),
        ("--window", window, "--text or --tokens", text or tokens),
        ("--questions", questions, "--choices", choices),
    ):
        if given is not None and other is None:
            raise RefimplError(
                f"{name} without {needs}", f"{needs} beside it", f"add {needs}, or leave it away"
            )
    opened = read_model(model, config)
    inputs = {"--text": text, "--tokens": tokens, "--choices": choices, "--config": config}
    part = opt.checked_part(output, long.resume)
    for path in (output, part):
        checked_output(path, opt.model_files(opened) | inputs)
    cut = _windows(opened, text, tokens, window, windows)
    asked = None if choices is None else read_questions(choices, questions)
    with progress_bar("evaluating") as progress:
        found = evaluate(
            opened,
            cut,
            asked,
            progress=progress,
            part=part,
            **asdict(running),
            **asdict(long),
        )
    document = evaluation_document(found)
    if output is not None:
        with until_written(part, long.resume):
            write_json(output, document)
    printed = json.dumps(document, indent=1, allow_nan=False) + "\n"
    print(printed if as_json else evaluation_table(found), end="", flush=True)


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
        raise RefimplError("both --text and --tokens", "one of them", "remove the other")
    if tokens is not None:
        return id_windows(tokens, window, count)
    if text is None:
        return None
    size = min(SEQ_LEN, longest) if window is None else window
    bos = model.config_file.get("bos_token_id")
    return text_windows(text, model.folder / "tokenizer.json", size, count, bos_id=bos)
