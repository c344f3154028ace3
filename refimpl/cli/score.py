"""`refimpl score`: from a model to absorption coefficients and an allocation."""

from typing import Annotated, Literal

import typer

from refimpl.cli import options as opt
from refimpl.cli.groups import RUNNING, Running, Source, with_groups
from refimpl.cli.options import option
from refimpl.cli.terminal import deliver, progress_bar
from refimpl.jobs.experiment import experiment
from refimpl.jobs.measurements import Experiment
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
    runtime: Annotated[
        Literal["numpy", "onnxruntime"],
        option(
            "What runs the experiment; onnxruntime: the same from a recorded graph, Gaussian noise "
            "only. Needs pip install 'refimpl[onnx]'.",
            panel=RUNNING,
        ),
    ] = "numpy",
    device: Annotated[
        Literal["auto", "cuda", "cpu"],
        option("Of onnxruntime. auto: a GPU where one works, else the CPU.", panel=RUNNING),
    ] = "auto",
    as_json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Measure how far later blocks absorb or amplify each block's damage, and allocate sparsity.

    The absorption coefficient r is the share of a block's relative drift that is left after the
    last block: above 1 the blocks after it amplify, below 1 they absorb.
    """
    if plan.kind == "pruning":
        refuse_noise(context)
    run: Experiment = experiment
    if runtime == "onnxruntime":
        from refimpl.onnx.runtime import on_onnxruntime

        run = on_onnxruntime(plan, device)
    else:
        opt.refuse(context, ("device",), "--runtime numpy", "onnxruntime, which has devices")
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
            runtime=run,
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
