"""`refimpl explain`: the algorithm, step by step, on one model."""

from dataclasses import replace
from typing import Annotated

import typer

from refimpl.allocation.request import Request
from refimpl.cli import options as opt
from refimpl.cli.groups import (
    IN_PROCESS,
    PERTURBATION,
    REQUEST,
    Source,
    checked_plan,
    source_options,
)
from refimpl.cli.terminal import deliver, progress_bar
from refimpl.explanation.document import explanation_document
from refimpl.explanation.explain import SAMPLES, SEQ_LEN, explain
from refimpl.loading.checkpoint import read_model
from refimpl.method.perturbation import Perturbation
from refimpl.running.settings import Settings
from refimpl.show.explain import explanation_text
from refimpl.tokens.model_tokens import model_tokens

EXPLANATION_SOURCE = source_options(
    f"{SAMPLES}; with --tokens, as for refimpl score",
    f"{SEQ_LEN}; with --tokens, as for refimpl score",
)


@opt.with_groups
def command(
    context: typer.Context,
    model: opt.ModelPath,
    *,
    config: opt.ConfigOption = None,
    download: opt.DownloadOption = False,
    block: Annotated[int, opt.option("The block to show and to perturb, from 0.", "K")] = 0,
    step: Annotated[
        str | None, opt.option("The only step to show. Default: all steps.", "NAME")
    ] = None,
    code: Annotated[
        bool, opt.flag("Also show the code of each step's functions.", None, "--source")
    ] = False,
    source: Annotated[Source, EXPLANATION_SOURCE],
    plan: Annotated[Perturbation, PERTURBATION],
    wanted: Annotated[Request, REQUEST],
    settings: Annotated[Settings, IN_PROCESS],
    as_json: opt.JsonOption = False,
    output: opt.OutputOption = None,
) -> None:
    """Show the algorithm as it runs on this model: each step's formula, shapes and numbers.

    The numbers are those of refimpl score on the same tokens. With --step, only what that step
    needs is computed.
    """
    plan = checked_plan(context, plan, wanted)
    opened = read_model(model, config, download=download)
    if source.ids is None:
        length = min(SEQ_LEN, opened.config.max_position_embeddings)
        samples = SAMPLES if source.samples is None else source.samples
        seq_len = length if source.seq_len is None else source.seq_len
        source = replace(source, samples=samples, seq_len=seq_len)
    tokens = model_tokens(opened, **vars(source), seed=plan.seed)
    chosen = {name: getattr(settings, name) for name in IN_PROCESS.options}
    with progress_bar("explaining") as progress:
        steps = explain(opened, tokens, block, step, plan, wanted, progress=progress, **chosen)
    shown = explanation_document(steps, code), explanation_text(steps, code)
    deliver(*shown, as_json, output)
