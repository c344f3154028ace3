"""`refimpl prune`: from a model, and an allocation, to a pruned model that any other tool loads."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from refimpl.allocation.allocate import allocate, base_only
from refimpl.allocation.request import Request
from refimpl.allocation.targets import Targets, allocation_targets, pattern_targets, read_targets
from refimpl.cli import options as opt
from refimpl.cli.groups import Source, names_of, with_groups
from refimpl.cli.running import LongRun, Running
from refimpl.cli.score import refuse_noise
from refimpl.cli.terminal import progress_bar
from refimpl.errors import RefimplError
from refimpl.loading.checkpoint import read_model
from refimpl.method.perturbation import Perturbation
from refimpl.model.model import Model
from refimpl.pruners.decision import Method, Pruner
from refimpl.pruners.pattern import parse_pattern
from refimpl.pruners.sparsegpt import DAMPING
from refimpl.pruning.calibration import CALIBRATED
from refimpl.pruning.prune import check_prune, prune, record
from refimpl.running.settings import Settings
from refimpl.scoring.base_signals import ACTIVATIONS, signals
from refimpl.scoring.score import score
from refimpl.show.pruning import pruning_table
from refimpl.storage.folder import partial_results_folder
from refimpl.tokens import Tokens
from refimpl.tokens.model_tokens import model_tokens

PRUNING = "Pruning"  # heading in --help


@with_groups
def command(
    context: typer.Context,
    model: opt.ModelPath,
    *,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER",
            readable=False,
            help="The new model's folder; it appears whole or not at all.",
        ),
    ],
    config: opt.Config = None,
    method: Annotated[
        Method,
        opt.option("How weights are chosen; random is a control.", panel=PRUNING),
    ] = "wanda",
    allocation: Annotated[
        Path | None,
        opt.option(
            "Allocation that refimpl allocate -o (or score -o) wrote, in place of --sparsity.",
            "FILE",
            PRUNING,
        ),
    ] = None,
    nm: Annotated[
        str | None,
        opt.option(
            "Pattern N:M in place of --sparsity: N zeros in each M consecutive inputs, such as "
            "2:4.",
            "N:M",
            PRUNING,
        ),
    ] = None,
    damping: Annotated[
        float,
        opt.option("Of SparseGPT's Hessian, as a fraction of its mean diagonal.", "X", PRUNING),
    ] = DAMPING,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            rich_help_panel=PRUNING,
            help="Replace an existing model: it is moved aside, the new one renamed in, the old "
            "one deleted.",
        ),
    ] = False,
    source: Source,
    plan: Perturbation,
    wanted: Request,
    running: Running,
    long: LongRun,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the content of pruning.json in place of the table."),
    ] = False,
) -> None:
    """Prune a model: all of it to one sparsity, as an allocation says, or to a pattern N:M.

    With --sparsity the model is scored and its sparsity allocated first, as by refimpl score.
    """
    opened = read_model(model, config)
    inputs = {
        "--text": source.text,
        "--tokens": source.ids,
        "--config": config,
        "--allocation": allocation,
        "--base": opt.base_file(wanted),
    }
    check_prune(opened, output, inputs, force, long.resume)
    pruner = Pruner(method, damping, plan.seed)
    _one_target(context, allocation, nm)
    if method != "sparsegpt":
        opt.refuse(context, ("damping",), f"--method {method}", "--method sparsegpt")
    options: dict[str, Any] = asdict(running) | {"executor": long.executor}
    tokens, resume = None, long.resume
    if nm is not None:
        linears, blocks = opened.config.linear_shapes, opened.config.num_blocks
        targets = pattern_targets(parse_pattern(nm), linears, blocks, wanted.compat)
    elif allocation is not None:
        targets = read_targets(allocation, opened.config.linear_shapes, opened.config.num_blocks)
    else:
        with partial_results_folder(output, resume) as kept:
            options_of_scoring = options | {"part": kept / "scores", "resume": True}
            targets, tokens = _scored(context, opened, source, plan, wanted, options_of_scoring)
        resume = True  # what is in that folder now
    if method in CALIBRATED and tokens is None:
        tokens = _tokens(opened, source, plan.seed)
    elif tokens is None:
        opt.refuse(context, names_of(Source), f"--method {method}", "none: it looks at weights")
    with progress_bar("pruning") as progress:
        pruned = prune(
            opened,
            output,
            targets,
            pruner,
            tokens,
            force=force,
            resume=resume,
            keep=long.resume,
            **options,
            progress=progress,
        )
    text = json.dumps(record(pruned), indent=1) + "\n" if as_json else ""
    print(text or pruning_table(pruned, output), end="", flush=True)


def _one_target(context: typer.Context, allocation: Path | None, nm: str | None) -> None:
    """Refuse several ways to say how much goes, or none."""
    scoring = names_of(Perturbation, Request)
    if allocation is not None and nm is not None:
        raise RefimplError("--allocation and --nm", "one of them", "leave one of them away")
    if allocation is not None:
        fixed = tuple(name for name in scoring if name != "seed")
        opt.refuse(context, fixed, "--allocation", "options of the allocation in its own command")
    if nm is not None:
        fixed = tuple(name for name in scoring if name not in ("seed", "compat"))
        why = "no other target: a pattern fixes what every linear loses (so no mixed N:M as OWL's)"
        opt.refuse(context, fixed, "--nm", why)
    given = context.get_parameter_source("sparsity")
    if allocation is None and nm is None and (given is None or given.name == "DEFAULT"):
        raise RefimplError(
            "nothing says how much to prune",
            "--sparsity FRACTION, --allocation FILE or --nm N:M",
            "add for example --sparsity 0.5",
        )


def _scored(
    context: typer.Context,
    model: Model,
    source: Source,
    plan: Perturbation,
    wanted: Request,
    options: Mapping[str, Any],
) -> tuple[Targets, Tokens | None]:
    """Targets from scoring and allocating; without a correction the experiment is left out."""
    if wanted.correct is None:
        opt.refuse(
            context,
            [name for name in names_of(Perturbation) if name != "seed"],
            "no correction",
            "no options of the perturbation: nothing is perturbed",
        )
        tokens = _tokens(model, source, plan.seed) if wanted.base in ACTIVATIONS else None
        with progress_bar("signals") as progress:
            found = signals(model, wanted, tokens, Settings(**options, progress=progress))
        config = model.config
        allocation = base_only(found, wanted, config.linear_shapes, config.num_blocks)
        return allocation_targets(allocation, None, tokens), tokens
    if plan.kind == "pruning":
        refuse_noise(context)
    tokens = _tokens(model, source, plan.seed)
    with progress_bar("scoring") as progress:
        scores = score(model, tokens, plan, wanted, **options, progress=progress)
    return allocation_targets(allocate(scores, wanted), scores), tokens


def _tokens(model: Model, source: Source, seed: int) -> Tokens:
    """The calibration tokens that the options ask for."""
    return model_tokens(model, source.text, source.ids, source.samples, source.seq_len, seed)
