"""`refimpl score`: from a model to absorption coefficients and an allocation."""

import json
import sys
from dataclasses import asdict, replace
from typing import Annotated, Literal

import typer

from refimpl.allocation.request import Request
from refimpl.cli import options as opt
from refimpl.cli.groups import Source, with_groups
from refimpl.cli.options import option
from refimpl.cli.running import RUNNING, LongRun, Running
from refimpl.cli.terminal import deliver, progress_bar
from refimpl.estimation.estimate import Estimator
from refimpl.estimation.time_budget import fitting
from refimpl.loading.checkpoint import read_model
from refimpl.method.perturbation import Perturbation
from refimpl.running.settings import Settings
from refimpl.scoring.measurements import Experiment
from refimpl.scoring.score import score
from refimpl.show.estimate import chosen_options, duration, estimate_document, estimate_text
from refimpl.storage.files import checked_output
from refimpl.tokens.model_tokens import model_tokens

RESUMED = "the samples, draws and subset of the run that is taken up, as that run printed them"
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
    long: LongRun,
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
    budget: Annotated[
        float | None,
        option(
            "Choose draws, samples and, if need be, a subset of the blocks so that it takes about "
            "this long; never more of them than without it.",
            "MINUTES",
            RUNNING,
        ),
    ] = None,
    only_estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            rich_help_panel=RUNNING,
            help="Print the passes, arithmetic, memory and time that it would take, and stop.",
        ),
    ] = False,
    as_json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Measure how far later blocks absorb or amplify each block's damage, and allocate sparsity.

    The absorption coefficient r is the share of a block's relative drift that is left after the
    last block: above 1 the blocks after it amplify, below 1 they absorb.
    """
    if plan.kind == "pruning":
        refuse_noise(context)
    ahead = "--estimate" if only_estimate else None if budget is None else "--budget"
    if ahead is not None:
        opt.refuse(context, ("runtime",), ahead, "--runtime numpy, which is what is measured")
        opt.refuse(context, ("resume",), ahead, RESUMED)
    run: Experiment | None = None
    if runtime == "onnxruntime":
        from refimpl.onnx.runtime import on_onnxruntime

        opt.refuse(
            context,
            ("executor", "resume"),
            "--runtime onnxruntime",
            "--runtime numpy, whose work is made of units",
        )
        run = on_onnxruntime(plan, device)
    else:
        opt.refuse(context, ("device",), "--runtime numpy", "onnxruntime, which has devices")
    part = opt.checked_part(output if run is None else None, long.resume)
    opened = read_model(model, config)
    options = {"--text": source.text, "--tokens": source.ids, "--config": config}
    for path in (output, part):
        checked_output(path, opt.model_files(opened) | options | {"--base": opt.base_file(wanted)})
    ids = model_tokens(opened, source.text, source.ids, source.samples, source.seq_len, plan.seed)
    if ahead is not None:
        settings = Settings(**asdict(running), executor=long.executor)
        expected = Estimator(opened, ids, plan, wanted, settings, kept=part is not None)
        if budget is None:
            made = expected(len(ids.ids), plan)
        else:
            made = fitting(expected, len(ids.ids), plan, budget)
        if only_estimate:
            shown = estimate_document(made, budget)
            text = json.dumps(shown, indent=1) + "\n" if as_json else estimate_text(made, budget)
            print(text, end="", flush=True)
            return
        chose = f"budget of {budget:g} min: {chosen_options(made)}"
        print(f"{chose}, about {duration(made.seconds.total)}", file=sys.stderr, flush=True)
        plan = made.plan
        ids = model_tokens(
            opened, source.text, source.ids, made.tokens.samples, source.seq_len, plan.seed
        )
    with progress_bar("scoring") as progress:
        found = score(
            opened,
            ids,
            plan,
            wanted,
            runtime=run,
            progress=progress,
            part=part,
            **asdict(running),
            **asdict(long),
        )
    deliver(replace(found, budget_minutes=budget), wanted, as_json, output, part, long.resume)


def refuse_noise(context: typer.Context) -> None:
    """Refuse options of the noise where there is none."""
    opt.refuse(
        context,
        NOISE,
        "--perturbation pruning",
        "no options of the noise: the size of the error is what pruning makes it",
    )
