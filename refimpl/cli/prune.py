"""`refimpl prune` writes a pruned model that any other tool loads; `refimpl inspect` shows one."""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from refimpl.allocation.allocate import allocate, base_only
from refimpl.allocation.request import Request
from refimpl.allocation.targets import Targets, allocation_targets, pattern_targets, read_targets
from refimpl.bases.base import bases
from refimpl.cli import options as opt
from refimpl.cli.groups import CALIBRATION, PERTURBATION, REQUEST, SETTINGS, Source, checked_plan
from refimpl.cli.terminal import command_line, deliver, progress_bar
from refimpl.errors import RefimplError
from refimpl.evaluation.document import evaluation_document
from refimpl.evaluation.evaluate import evaluate
from refimpl.loading.checkpoint import read_model
from refimpl.method.perturbation import Perturbation
from refimpl.model.model import Model
from refimpl.model.statistics import SUMS
from refimpl.pruners.compensation import DAMPING
from refimpl.pruners.decision import Pruner
from refimpl.pruners.method import method_named, methods
from refimpl.pruners.pattern import parse_pattern
from refimpl.pruners.wanda import WANDA
from refimpl.pruning.inspection import inspect, inspection_document
from refimpl.pruning.prune import check_prune, prune, record
from refimpl.running.settings import Settings
from refimpl.scoring.score import score
from refimpl.scoring.signals import signals
from refimpl.show.pruning import inspection_table, pruning_table
from refimpl.storage.target_checks import real_path
from refimpl.storage.work_folder import work_path
from refimpl.tokens import Tokens, Windows
from refimpl.tokens.imatrix import Imatrix, read_imatrix
from refimpl.tokens.model_tokens import model_tokens, model_windows

DEFAULT = (
    "corrected by divergence (the default: it helped in docs/study.md); the paper's: --correct "
    "absorption"
)


@dataclass(frozen=True)
class PruningOptions:
    """How weights are chosen, and how many."""

    method: str = opt.field_option(
        WANDA.name,
        f"The pruner: {', '.join(methods())}; random is a control.",
        "NAME",
    )
    allocation: Path | None = opt.field_option(
        None,
        "Allocation that refimpl allocate -o or score -o wrote, instead of --sparsity.",
        "FILE",
    )
    nm: str | None = opt.field_option(
        None,
        "Pattern instead of --sparsity: N zeros in each M consecutive inputs, such as 2:4.",
        "N:M",
    )
    damping: float = opt.field_option(
        DAMPING, "Damping of the pruner's Hessian, as a fraction of its mean diagonal.", "X"
    )
    imatrix: Path | None = opt.field_option(
        None,
        "Importance matrix of the dense model (llama-imatrix, in GGUF) instead of calibration "
        "tokens, for pruners, and bases without a correction, that read nothing but squares of "
        "inputs.",
        "FILE.gguf",
    )
    measure: bool = opt.field_option(
        False,
        "Measure the perplexity before and after, on a text that comes with refimpl and that no "
        "calibration reads.",
    )
    measure_on: Path | None = opt.field_option(
        None, "The same on this UTF-8 text: use one that is not in --text.", "FILE"
    )
    per_linear: bool = opt.field_option(
        False,
        "Print the counts of every block and linear, which pruning.json holds, too.",
        aliases=("-v", "--verbose"),
    )
    force: bool = opt.field_option(
        False, "Replace an existing model, which is deleted after the new one is in its place."
    )

    def __post_init__(self) -> None:
        """Refuse an unknown pruner before anything is read."""
        method_named(self.method)


@opt.with_groups
def command(
    context: typer.Context,
    model: opt.ModelPath,
    *,
    output: Annotated[
        Path,
        opt.output("FOLDER", "The new model's folder, which appears whole or not at all."),
        opt.OutputKind.FOLDER,
    ],
    config: opt.ConfigOption = None,
    download: opt.DownloadOption = False,
    how: Annotated[PruningOptions, opt.OptionGroup.of(PruningOptions, "Pruning")],
    source: Annotated[Source, CALIBRATION],
    plan: Annotated[Perturbation, PERTURBATION],
    wanted: Annotated[Request, REQUEST],
    settings: Annotated[Settings, SETTINGS],
    as_json: Annotated[
        bool,
        opt.flag("Print the content of pruning.json instead of the table.", opt.OUTPUT, "--json"),
    ] = False,
) -> None:
    """Prune a model to one sparsity, as an allocation says, or to a pattern N:M.

    With --sparsity, refimpl first scores the model and allocates its sparsity, as refimpl score
    does; but the default of --correct is divergence with measured strength, which helped in
    docs/study.md.
    """
    lap, seconds = _stopwatch()
    opened = read_model(model, config, download=download)
    method, allocation, nm = how.method, how.allocation, how.nm
    check_prune(opened, output, {}, how.force)
    pruner = Pruner(method, how.damping, plan.seed)
    _check_target(context, allocation, nm)
    if "damping" not in pruner.options:
        damped = [f"--method {name}" for name, x in methods().items() if "damping" in x.options]
        opt.refuse(context, ("damping",), f"--method {method}", " or ".join(damped))
    imatrix = _means(context, opened, how, wanted)
    tokens: Tokens | Imatrix | None = imatrix
    applied = None
    windows = model_windows(opened, how.measure_on) if how.measure or how.measure_on else None
    lap("reading")
    if nm is not None:
        targets = pattern_targets(parse_pattern(nm), opened.config.linears, wanted.compat)
    elif allocation is not None:
        targets = read_targets(allocation, opened.config.linears)
    else:
        if not opt.is_given(context, "correct") and wanted.compat == "exact":
            strength = wanted.strength if opt.is_given(context, "strength") else "default"
            wanted, applied = replace(wanted, correct="divergence", strength=strength), DEFAULT
        scoring = replace(settings, finished=work_path(real_path(output)))
        chosen = imatrix or source
        targets, tokens = _scored(context, opened, chosen, plan, wanted, scoring, pruner)
    if tokens is None:
        if pruner.record.needs is not None:
            tokens = model_tokens(opened, **vars(source), seed=plan.seed, calibration=True)
        else:
            weights_only = f"no tokens: {method} uses the weights only"
            opt.refuse(context, CALIBRATION.names, f"--method {method}", weights_only)
    lap("scoring")
    options = {name: getattr(settings, name) for name in SETTINGS.options} | {"force": how.force}
    before = None if windows is None else _perplexity(opened, windows, settings)
    lap("measuring")

    def measure(new: Model) -> dict[str, Any]:
        """Perplexities, if they are asked for, and the seconds of every stage."""
        bar.close()
        lap("pruning")
        measured = {}
        if windows is not None:
            measured = {"before": before, "after": _perplexity(new, windows, settings)}
        lap("measuring")
        times = seconds | {"total": sum(seconds.values())}
        return {"seconds": times} | ({"measured": measured} if measured else {})

    with ExitStack() as bar:  # which ends before the next one begins
        options |= {"progress": bar.enter_context(progress_bar("pruning")), "measure": measure}
        pruned = prune(opened, output, targets, pruner, tokens, **options)
    document = record(pruned)
    deliver(document, pruning_table(pruned, document, output, applied, how.per_linear), as_json)


def _stopwatch() -> tuple[Callable[[str], None], dict[str, float]]:
    """A function that adds the time since its last call to a stage, and the stages' seconds."""
    seconds, laps = defaultdict[str, float](float), [time.perf_counter()]

    def lap(stage: str) -> None:
        laps.append(time.perf_counter())
        seconds[stage] += laps[-1] - laps[-2]

    return lap, seconds


def _perplexity(model: Model, windows: Windows, settings: Settings) -> dict[str, Any]:
    """The perplexity part of an evaluation, without that of every window; the model's digest."""
    with progress_bar("measuring") as progress:
        options = {name: getattr(settings, name) for name in SETTINGS.options} | {"resume": False}
        evaluation = evaluate(model, windows, progress=progress, **options)
    text = {k: v for k, v in evaluation_document(evaluation)["text"].items() if k != "windows"}
    return {"model_sha256": evaluation.model_sha256} | text


@opt.with_groups
def inspect_command(
    model: opt.ModelPath,
    *,
    config: opt.ConfigOption = None,
    download: opt.DownloadOption = False,
    as_json: opt.JsonOption = False,
    output: opt.OutputOption = None,
) -> None:
    """Print the sparsity of every block and linear, N:M patterns, dtypes and sizes of a model.

    Zeros are counted in the file, so zeros of the original model count, too.
    """
    opened = read_model(model, config, download=download)
    inspection = inspect(opened)
    deliver(inspection_document(inspection), inspection_table(inspection), as_json, output)


def _means(
    context: typer.Context, model: Model, how: PruningOptions, wanted: Request
) -> Imatrix | None:
    """The importance matrix that replaces the calibration tokens, if there is one."""
    if how.imatrix is None:
        return None
    tokens = "no tokens: the importance matrix replaces them"
    opt.refuse(context, CALIBRATION.names, "--imatrix", tokens)
    if "squares" not in (method_named(how.method).needs, wanted.record.needs):
        of_squares = [f"--method {x.name}" for x in methods().values() if x.needs == "squares"]
        of_squares += [f"--base {x.name}" for x in bases().values() if x.needs == "squares"]
        raise RefimplError(
            f"--imatrix with --method {how.method}",
            f"{' or '.join(of_squares)}: what reads the squares of inputs",
            "omit --imatrix",
        )
    return read_imatrix(how.imatrix, model)


def _check_target(context: typer.Context, allocation: Path | None, nm: str | None) -> None:
    """Refuse several ways to say how much is pruned, or none."""
    scoring = [name for name in (*PERTURBATION.names, *REQUEST.names) if name != "seed"]
    if allocation is not None and nm is not None:
        raise RefimplError("--allocation and --nm", "one of them", "omit --allocation or --nm")
    if allocation is not None:
        expected = "the options of the allocation in the command that wrote it"
        opt.refuse(context, scoring, "--allocation", expected)
    if nm is not None:
        expected = (
            "no other target: the pattern sets every linear's sparsity (no mixed N:M as OWL's)"
        )
        opt.refuse(context, [name for name in scoring if name != "compat"], "--nm", expected)
    if allocation is None and nm is None and not opt.is_given(context, "sparsity"):
        raise RefimplError(
            "no option says how much to prune",
            "--sparsity FRACTION, --allocation FILE or --nm N:M",
            command_line("--sparsity", "0.5"),
        )


def _scored(
    context: typer.Context,
    model: Model,
    source: Source | Imatrix,
    plan: Perturbation,
    wanted: Request,
    settings: Settings,
    pruner: Pruner,
) -> tuple[Targets, Tokens | Imatrix | None]:
    """Targets from scoring and allocating; without a correction the experiment is skipped."""
    if wanted.correct is None and not wanted.needs_pruning:
        opt.refuse(
            context,
            [name for name in PERTURBATION.names if name != "seed"],
            "no correction",
            "no options of the perturbation: nothing is perturbed",
        )
        tokens: Tokens | Imatrix | None = source if isinstance(source, Imatrix) else None
        if isinstance(source, Source) and wanted.record.needs in SUMS:
            tokens = model_tokens(model, **vars(source), seed=plan.seed, calibration=True)
        with progress_bar("signals") as progress:
            base = signals(model, wanted, tokens, replace(settings, progress=progress))
        allocation = base_only(base, wanted, model.config.linears)
        return allocation_targets(allocation, None, tokens), tokens
    if isinstance(source, Imatrix):
        raise RefimplError(
            "--imatrix with a correction",
            "no correction: its experiment needs tokens",
            "add --correct none, or omit --imatrix",
        )
    plan = checked_plan(context, plan, wanted, pruner)
    tokens = model_tokens(model, **vars(source), seed=plan.seed, calibration=True)
    with progress_bar("scoring") as progress:
        settings = replace(settings, progress=progress)
        scores = score(model, tokens, plan, wanted, **vars(settings), bases=())
    return allocation_targets(allocate(scores, wanted), scores), tokens
