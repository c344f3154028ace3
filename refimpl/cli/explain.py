"""`refimpl explain`: the algorithm, step by step, on one model."""

import json
from typing import Annotated

import typer

from refimpl.allocation.request import Request
from refimpl.cli import options as opt
from refimpl.cli.groups import TOKENS, Running, TextOption, TokensOption, with_groups
from refimpl.cli.options import option
from refimpl.cli.score import refuse_noise
from refimpl.cli.terminal import progress_bar
from refimpl.explanation.document import explanation_document
from refimpl.explanation.explain import SAMPLES, SEQ_LEN, explain
from refimpl.loading.checkpoint import read_model
from refimpl.method.perturbation import Perturbation
from refimpl.show.explain import explanation_text
from refimpl.storage.files import checked_output, write_json
from refimpl.tokens.model_tokens import model_tokens


@with_groups
def command(
    context: typer.Context,
    model: opt.ModelPath,
    *,
    config: opt.Config = None,
    block: Annotated[int, option("The block to look at and to push, from 0.", "K", panel=None)] = 0,
    step: Annotated[
        str | None, option("The only step to show. Default: all.", "NAME", panel=None)
    ] = None,
    source: Annotated[
        bool, typer.Option("--source", help="Show the code of each step's functions as well.")
    ] = False,
    text: TextOption = None,
    tokens: TokensOption = None,
    samples: Annotated[
        int | None,
        option(f"Number of samples. Default: {SAMPLES}; of a file of ids, as score.", "N", TOKENS),
    ] = None,
    seq_len: Annotated[
        int | None,
        option(f"Tokens per sample. Default: {SEQ_LEN}; of a file of ids, as score.", "N", TOKENS),
    ] = None,
    plan: Perturbation,
    wanted: Request,
    running: Running,
    as_json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Show the algorithm as it runs on this model: each step's formula, shapes and numbers.

    The numbers are those that score finds on the same tokens. With --step, only what that step
    needs is computed.
    """
    if plan.kind == "pruning":
        refuse_noise(context)
    opened = read_model(model, config)
    beside = {"--text": text, "--tokens": tokens, "--config": config}
    checked_output(output, opt.model_files(opened) | beside | {"--base": opt.base_file(wanted)})
    if tokens is None:
        longest = opened.config.max_position_embeddings
        samples = SAMPLES if samples is None else samples
        seq_len = min(SEQ_LEN, longest) if seq_len is None else seq_len
    ids = model_tokens(opened, text, tokens, samples, seq_len, plan.seed)
    with progress_bar("explaining") as progress:
        found = explain(
            opened,
            ids,
            block,
            step,
            plan,
            wanted,
            dtype=running.dtype,
            threads=running.threads,
            memory=running.memory,
            progress=progress,
        )
    document = explanation_document(found, source)
    if output is not None:
        write_json(output, document)
    printed = json.dumps(document, indent=1, allow_nan=False) + "\n"
    print(printed if as_json else explanation_text(found, source), end="", flush=True)
