"""`refimpl prune` writes a pruned model that any other tool loads; `refimpl inspect` shows one."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from refimpl.allocation import scores_json
from refimpl.allocation.allocate import Allocation, base_only
from refimpl.allocation.request import Request, own_budget
from refimpl.allocation.scores import Scores
from refimpl.arguments import Compat, Fraction, common_option, option, same_option
from refimpl.bases.base import base_named
from refimpl.bases.uniform import UNIFORM
from refimpl.cli import groups
from refimpl.cli.options import Group, OutputKind, output_option, refuse, with_groups
from refimpl.cli.terminal import command_line, deliver, progress_bar
from refimpl.errors import RefimplError
from refimpl.loading.files.documents import plain
from refimpl.loading.samples import SAMPLES, SCORED, SEQ_LEN, Tokens
from refimpl.loading.text import model_tokens
from refimpl.model.config import Linears
from refimpl.model.model import Model
from refimpl.model.stream import SUMS
from refimpl.pruners.counts import parse_pattern
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.pruner import pruners
from refimpl.pruning.block import calibration_memory
from refimpl.pruning.prune import check_prune, prune
from refimpl.pruning.record import inspect, inspection_document
from refimpl.running.file_system import work_path
from refimpl.running.outputs import real_path
from refimpl.running.settings import Settings
from refimpl.scoring.base_signals import signals_of
from refimpl.scoring.score import recommended
from refimpl.show.blocks import blocks_table
from refimpl.show.models import inspection_table, pruning_table
from refimpl.version import __version__

_TOKENS = ("text", "tokens", "samples", "seq_len")


@dataclass(frozen=True, kw_only=True)
class PruneOptions(groups.ForceOptions, groups.JsonOptions):
    """How much is pruned, and what is written."""

    sparsity: Fraction | None = same_option(Request, "sparsity", default=None)
    allocation: str | None = common_option(
        None,
        "Without --sparsity: a file that refimpl score -o or allocate -o wrote, or a JSON file "
        "with a sparsity per block or linear. With --sparsity: a base allocation, by its name or "
        "such a JSON file. Default: the recommended allocation.",
        "FILE|BASE",
    )
    nm: str | None = common_option(
        None,
        "Pattern instead of --sparsity: N zeros in each M consecutive inputs, such as 2:4.",
        "N:M",
    )
    compat: Compat = option(
        "exact", "peer prunes as the published code of the pruner and of the base does."
    )
    output: Path = output_option(
        ..., "The new model's folder.", "FOLDER", OutputKind.FOLDER
    )


@with_groups
def prune_command(
    context: typer.Context,
    model: groups.ModelPath,
    *,
    how: Annotated[PruneOptions, Group("Pruning")],
    where: groups.Where,
    pruner: Annotated[
        PrunerOptions,
        Group(
            "Pruning", ("pruner", "damping", "refit"), says={"pruner": groups.PRUNERS}
        ),
    ],
    source: Annotated[
        groups.Source, groups.source_group(SAMPLES, SEQ_LEN, groups.OWN_TEXT)
    ],
    settings: Annotated[
        Settings, Group("Running", ("dtype", "threads", "memory"), groups.MATRICES)
    ],
) -> None:
    """With --sparsity alone, refimpl measures the model and allocates as docs/study.md recommends.

    To prune by another allocation, measure it with refimpl score -o FILE, and pass --allocation
    FILE.
    """
    opened, output = where.read(model), how.output
    check_prune(opened, output, how.force)
    request = _request(context, how, opened.config.linears)
    if isinstance(request, scores_json.Targets):
        probed = request.probed_by(pruner)
        others = [
            x for x in ("pruner", "damping") if getattr(pruner, x) != getattr(probed, x)
        ]
        file = f"{how.allocation}, which was measured with {probed.record.name}"
        refuse(context, others, file, "the pruner by which the blocks were probed")
        pruner = probed
    if how.compat == "peer":
        refuse(
            context,
            ("refit",),
            "--compat peer",
            "no refit: the published code has none",
        )
    if "damping" not in pruner.options:
        damped = [
            f"--pruner {name}"
            for name, x in pruners().items()
            if "damping" in x.options
        ]
        other = " or ".join(("--refit", *damped))
        refuse(context, ("damping",), f"--pruner {pruner.record.name}", other)
    read_tokens = partial(
        model_tokens, opened, **vars(source), seed=pruner.seed, calibration=True
    )
    calibrated = None if pruner.needs is None else read_tokens()
    scored, measured = None, None
    calibration_memory(
        opened, pruner, 0 if calibrated is None else calibrated.ids.size, settings
    )
    if isinstance(request, scores_json.Targets):
        targets = request
    else:
        if request.correct == "divergence" or request.record.needs in SUMS:
            scored = read_tokens(default=SCORED)  # as refimpl score
        scoring = replace(settings, finished=work_path(real_path(output)))
        targets, measured = _scored(opened, scored, request, scoring, pruner)
    if calibrated is None and scored is None:
        unused = "no tokens: the weights alone decide"
        refuse(context, _TOKENS, f"--pruner {pruner.record.name}", unused)
    with progress_bar("pruning") as bar:
        more: Any = {"settings": replace(settings, progress=bar), "force": how.force}
        more["scored"] = measured and scores_json.scores_document(
            measured[0], measured[1:]
        )
        pruned = prune(opened, output, targets, pruner, calibrated, **more)
    table = pruning_table(pruned, output, blocks_table(*measured) if measured else ())
    deliver(plain(pruned), table, how.json)


@with_groups
def inspect_command(
    model: groups.ModelPath, *, where: groups.Where, to: groups.Outputs
) -> None:
    """The zeros are those in the file, which may include zeros of the model before pruning."""
    inspection = inspect(where.read(model))
    named = {"refimpl": __version__} | inspection_document(inspection)
    to.deliver(named, inspection_table(inspection))


def _request(
    context: typer.Context, how: PruneOptions, linears: Linears
) -> Request | scores_json.Targets:
    """What --sparsity asks for; or a file or a pattern, which say how much every linear loses."""
    sparsity, name = how.sparsity, how.allocation
    if how.nm is not None:
        sets = "no other target: the pattern sets every linear's sparsity (no mixed N:M as OWL's)"
        refuse(context, ("sparsity", "allocation"), "--nm", sets)
        return scores_json.pattern_targets(parse_pattern(how.nm), linears, how.compat)
    if sparsity is None:
        if name is None or base_named(name) is not None:
            base = "" if name is None else f"--allocation {name} alone: "
            raise RefimplError(
                f"{base}no option says how much to prune",
                "--sparsity FRACTION, --allocation FILE or --nm N:M",
                command_line("--sparsity", "0.5"),
            )
        file = Path(name)
        sparsity = own_budget(file, linears) if file.is_file() else None
        if sparsity is None:
            refuse(
                context,
                ("compat",),
                "--allocation",
                "that of the command that wrote the file",
            )
            return scores_json.read_targets(file, linears)
    if name is not None:
        return Request(name, sparsity=sparsity, correct=None, compat=how.compat)
    if how.compat == "peer":
        published = f"a base allocation, which peers have published: --allocation {UNIFORM.name}"
        refuse(context, ("compat",), "the recommended allocation", published)
    return Request(sparsity=sparsity)


def _scored(
    model: Model,
    tokens: Tokens | None,
    wanted: Request,
    settings: Settings,
    pruner: PrunerOptions,
) -> tuple[scores_json.Targets, tuple[Scores, Allocation] | None]:
    """Targets from scoring and allocating, and these; most bases alone need no experiment."""
    if wanted.correct != "divergence":
        with progress_bar("signals") as progress:
            base = signals_of(
                model, wanted, tokens, replace(settings, progress=progress)
            )
        allocation = base_only(base, wanted, model.config.linears)
        return scores_json.allocation_targets(allocation, None, tokens), None
    assert isinstance(tokens, Tokens)
    with progress_bar("scoring") as progress:
        settings = replace(settings, progress=progress)
        scores, allocation = recommended(
            model, tokens, wanted.sparsity, pruner, settings
        )
    return scores_json.allocation_targets(allocation, scores), (scores, allocation)
