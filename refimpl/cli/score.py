"""`refimpl score` and `refimpl allocate`: absorption coefficients, and allocations made of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from refimpl.allocation.allocate import allocate, requested
from refimpl.allocation.request import Request
from refimpl.allocation.scores import Scores
from refimpl.allocation.scores_json import document, read_scores
from refimpl.cli import options as opt
from refimpl.cli.groups import (
    PERTURBATION,
    REQUEST,
    RUNNING,
    SCORING,
    SETTINGS,
    Source,
    checked_plan,
)
from refimpl.cli.terminal import deliver, progress_bar, style
from refimpl.errors import printable
from refimpl.loading.checkpoint import read_model
from refimpl.method.perturbation import Perturbation
from refimpl.running.settings import Settings
from refimpl.scoring.estimate import estimate
from refimpl.scoring.measurements import Experiment
from refimpl.scoring.score import checked_budget, score
from refimpl.show.estimate import estimate_document, estimate_text
from refimpl.show.header import command_lines, joined, wrapped
from refimpl.show.table import table
from refimpl.storage.work_folder import work_path
from refimpl.tokens.model_tokens import model_tokens
from refimpl.tokens.samples import SCORED

ESTIMATED = ("dtype", "threads", "memory", "executor")  # settings that change how long it takes


@dataclass(frozen=True)
class RunOptions:
    """What computes the experiment, and for how long."""

    runtime: Literal["numpy", "onnxruntime"] = opt.field_option(
        "numpy",
        "What computes the experiment. onnxruntime runs a recorded graph of it, for Gaussian noise "
        "only, and needs pip install 'refimpl[onnx]'.",
    )
    device: Literal["auto", "cuda", "cpu"] = opt.field_option(
        "auto", "Device of onnxruntime. auto: a GPU if one works, else the CPU."
    )
    budget: float | None = opt.field_option(
        None,
        "Perturb no further sample after this time. At least two are perturbed, and as many as "
        "it takes to perturb every block.",
        "MINUTES",
    )
    estimate: bool = opt.field_option(
        False,
        "Print the passes, time and memory that the run would take, and exit.",
        aliases=("--dry-run",),
    )


@opt.with_groups
def command(
    context: typer.Context,
    model: opt.ModelPath,
    *,
    config: opt.ConfigOption = None,
    download: opt.DownloadOption = False,
    source: Annotated[Source, SCORING],
    plan: Annotated[Perturbation, PERTURBATION],
    wanted: Annotated[Request, REQUEST],
    settings: Annotated[Settings, SETTINGS],
    run: Annotated[RunOptions, opt.OptionGroup.of(RunOptions, RUNNING)],
    verbose: opt.VerboseOption = False,
    as_json: opt.JsonOption = False,
    output: opt.OutputOption = None,
) -> None:
    """Measure how far later blocks absorb or amplify each block's damage, and allocate sparsity.

    The absorption coefficient r is the share of a block's relative drift that is left after the
    last block: above 1 the blocks after it amplify, below 1 they absorb.
    """
    plan = checked_plan(context, plan, wanted)
    checked_budget(run.budget)
    if run.estimate:
        whole = "--runtime numpy without --resume or --budget, which is what is estimated"
        opt.refuse(context, ("runtime", "resume", "budget"), "--estimate", whole)
    experiment: Experiment | None = None
    if run.runtime == "onnxruntime":
        from refimpl.onnx.runtime import on_onnxruntime

        units = "--runtime numpy, whose work consists of work units"
        opt.refuse(context, ("executor", "resume", "budget"), "--runtime onnxruntime", units)
        experiment = on_onnxruntime(plan, run.device)
    else:
        opt.refuse(context, ("device",), "--runtime numpy", "--runtime onnxruntime")
    finished = None if output is None or experiment is not None else work_path(output)
    opened = read_model(model, config, download=download)
    tokens = model_tokens(opened, **vars(source), seed=plan.seed, calibration=True, default=SCORED)
    if run.estimate:
        where = {name: getattr(settings, name) for name in ESTIMATED}
        expected = estimate(opened, tokens, plan, wanted, kept=finished is not None, **where)
        deliver(estimate_document(expected), estimate_text(expected), as_json)
        return
    with progress_bar("scoring") as progress:
        settings = replace(settings, progress=progress, finished=finished)
        others = None if as_json or output is not None else ()  # no other allocation is made
        scores = score(
            opened,
            tokens,
            plan,
            wanted,
            runtime=experiment,
            bases=others,
            budget=run.budget,
            **vars(settings),
        )
    deliver(*_allocated(scores, wanted, verbose, output), as_json, output)


@opt.with_groups
def allocate_command(
    scores: Annotated[Path, opt.argument("SCORES", "A file that refimpl score -o wrote.")],
    *,
    changes: Annotated[dict[str, Any], replace(REQUEST, changes=True)],
    verbose: opt.VerboseOption = False,
    as_json: opt.JsonOption = False,
    output: opt.OutputOption = None,
) -> None:
    """Make another allocation from scores, without running the model again.

    What no option says stays as in SCORES: its base with the base's options, its sparsity, its
    correction with the strength. But another base has its own default options, another correction
    its own default strength, and --compat peer has no correction.
    """
    read = read_scores(scores)
    wanted = requested(read, **changes)
    deliver(*_allocated(read, wanted, verbose, output), as_json, output)


def _allocated(
    scores: Scores, wanted: Request, verbose: bool, output: Path | None
) -> tuple[Mapping[str, Any], str]:
    """The document and the table of scores, allocated at every eta; what to do next."""
    allocations = tuple(allocate(scores, wanted, which) for which in range(len(scores.sweep)))
    text = table(scores, allocations, style(), verbose)
    if output is None:
        said = "add -o FILE, and then refimpl prune MODEL -o OUT --allocation FILE"
        after = wrapped({"next:": [said]})
    else:
        text += f"written:    {printable(output)}\n"
        after = command_lines(f"next:       refimpl prune MODEL -o OUT --allocation {output}")
    return document(scores, allocations), text + joined(after)
