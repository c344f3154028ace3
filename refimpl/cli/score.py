"""`refimpl score`: from a model to absorption coefficients and an allocation."""

import typer

from refimpl.cli import options as opt
from refimpl.cli.groups import Running, Source, with_groups
from refimpl.cli.terminal import deliver, progress_bar
from refimpl.jobs.output import checked_output
from refimpl.jobs.request import Request
from refimpl.jobs.score import score
from refimpl.jobs.tokens import model_tokens
from refimpl.method.perturbation import Perturbation
from refimpl.model.checkpoint import read_model

NOISE = ("eta", "noise_scale", "noise_shape")


@with_groups
def command(
    context: typer.Context,
    model: opt.ModelPath,
    *,
    config: opt.Config = None,
    source: Source,
    plan: Perturbation,
    wanted: Request,
    running: Running,
    as_json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Measure how far later blocks absorb or amplify each block's damage, and allocate sparsity.

    The absorption coefficient r is the share of a block's relative drift that is left after the
    last block: above 1 the blocks after it amplify, below 1 they absorb.
    """
    if plan.kind == "pruning":
        refuse_noise(context)
    opened = read_model(model, config)
    options = {"--text": source.text, "--tokens": source.ids, "--config": config}
    checked_output(output, opt.model_files(opened) | options | {"--base": opt.base_file(wanted)})
    ids = model_tokens(opened, source.text, source.ids, source.samples, source.seq_len, plan.seed)
    with progress_bar("scoring") as progress:
        found = score(
            opened,
            ids,
            plan,
            wanted,
            dtype=running.dtype,
            threads=running.threads,
            memory=running.memory,
            progress=progress,
        )
    deliver(found, wanted, as_json, output)


def refuse_noise(context: typer.Context) -> None:
    """Refuse options of the noise where there is none."""
    opt.refuse(
        context,
        NOISE,
        "--perturbation pruning",
        "no options of the noise: the size of the error is what pruning makes it",
    )
