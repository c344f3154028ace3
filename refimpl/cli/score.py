"""`refimpl score`, `allocate` and `explain`: absorption coefficients, and allocations of them."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from refimpl.allocation.allocate import allocate, request_for
from refimpl.allocation.request import Request
from refimpl.allocation.scores import Scores
from refimpl.allocation.scores_json import read_scores, scores_document
from refimpl.arguments import common_option, option
from refimpl.cli import groups
from refimpl.cli.options import Group, argument, is_given, refuse, with_groups
from refimpl.cli.terminal import deliver, progress_bar
from refimpl.explanation.explain import FEW, explain
from refimpl.loading.samples import SCORED
from refimpl.loading.text import model_tokens
from refimpl.running.file_system import work_path
from refimpl.running.settings import Settings
from refimpl.scoring.score import score
from refimpl.show.blocks import scores_table
from refimpl.show.explain import explanation_document, explanation_text
from refimpl.show.table import joined, wrapped

# The rest of an allocation is `refimpl allocate`'s: nothing that is measured depends on it.
MEASURED = ("base", "options", "sparsity", "correct")
_EXPLAINED = ("kind", "eta", "sink", "seed", "pruner")  # of one perturbation
PAPERS = {"correct": "Default: absorption."}


@with_groups
def score_command(
    context: typer.Context,
    model: groups.ModelPath,
    *,
    where: groups.Where,
    source: Annotated[groups.Source, groups.source_group(*SCORED, groups.OWN_TEXT)],
    perturbed: groups.Plan,
    wanted: Annotated[Request, Group("Allocation", MEASURED, groups.BASE_NAMES)],
    settings: Annotated[
        Settings, Group("Running", ("dtype", "threads", "memory"), groups.MATRICES)
    ],
    to: groups.Outputs,
) -> None:
    """Refimpl prunes each block alone. Blocks whose pruning changes the predictions less lose more.

    The paper's experiment (--correct absorption) adds noise to a block's output instead. Its
    absorption coefficient r is the share of this drift that is left after the last block. Later
    blocks amplify the drift if r is above 1, and absorb it if r is below 1.
    """
    plan, wanted = perturbed.plan(context, wanted, is_given(context, "correct"))
    opened = where.read(model)
    tokens = model_tokens(
        opened, **vars(source), seed=plan.seed, calibration=True, default=SCORED
    )
    finished = None if to.output is None else work_path(to.output)
    others = None if to.json or to.output else ()  # no other allocation is made
    with progress_bar("scoring") as progress:
        settings = replace(settings, progress=progress, finished=finished)
        scores = score(opened, tokens, plan, wanted, settings, bases=others)
    to.deliver(*_allocated(scores, wanted, to, str(model)))


@with_groups
def allocate_command(
    context: typer.Context,
    scores: Annotated[Path, argument("SCORES", "A file that refimpl score -o wrote.")],
    *,
    changes: Annotated[Request, groups.CHANGES],
    to: groups.Outputs,
) -> None:
    """Settings that you do not pass stay as in SCORES: base, sparsity, correction, strength.

    A new base resets its options and the correction, a new correction resets the strength, and
    --compat peer removes the correction.
    """
    read = read_scores(scores)
    wanted = request_for(read, **cast("dict[str, Any]", changes))
    if wanted.measured:
        fixed = "no limit: the probes set the size of the correction"
        refuse(context, ("max_correction",), "--strength measured", fixed)
    to.deliver(*_allocated(read, wanted, to))


def _allocated(
    scores: Scores, wanted: Request, to: groups.OutputOptions, model: str = "MODEL"
) -> tuple[Mapping[str, Any], str]:
    """The document and the table of scores, allocated at every eta; what to do next."""
    allocations = tuple(
        allocate(scores, wanted, which) for which in range(len(scores.sweep))
    )
    if to.output is None:
        said = "add -o FILE, and then refimpl prune MODEL -o OUT --allocation FILE"
        after = wrapped({"next:": [said]})
    else:
        prune = f"refimpl prune {shlex.quote(model)} -o OUT --allocation"
        after = [
            f"written:    {to.output}",
            f"next:       {prune} {shlex.quote(str(to.output))}",
        ]
    text = scores_table(scores, allocations[0]) + joined(after)
    return scores_document(scores, allocations), text


@dataclass(frozen=True)
class StepOptions:
    """What is shown."""

    block: int = common_option(0, "The block to show and to perturb, from 0.", "K")
    step: str | None = common_option(
        None, "Show this step alone. Default: all steps.", "NAME"
    )
    source: bool = option(False, "Also show the code of each step's functions.")


@with_groups
def explain_command(
    context: typer.Context,
    model: groups.ModelPath,
    *,
    where: groups.Where,
    shown: Annotated[StepOptions, Group("Steps")],
    source: Annotated[
        groups.Source,
        groups.source_group(
            *FEW, f"{groups.OWN_TEXT}, or without tokenizer.json, random ids"
        ),
    ],
    perturbed: Annotated[
        groups.PerturbationOptions,
        Group("Perturbation", _EXPLAINED, {"pruner": groups.PRUNERS}),
    ],
    wanted: Annotated[
        Request, Group("Allocation", MEASURED, groups.BASE_NAMES | PAPERS)
    ],
    settings: Annotated[Settings, Group("Running", ("dtype",))],
    to: groups.JsonFlag,
) -> None:
    """The numbers equal those of refimpl score on the same tokens."""
    if not is_given(context, "correct"):  # the paper's
        wanted = replace(wanted, correct="absorption", strength="default")
    plan, wanted = perturbed.plan(context, wanted, correct=True)
    opened = where.read(model)
    text = opened.tokenizer_json.exists()
    tokens = model_tokens(
        opened, **vars(source), seed=plan.seed, calibration=text, default=FEW
    )
    block, step = shown.block, shown.step
    with progress_bar("explaining") as progress:
        steps = explain(
            opened, tokens, block, step, plan, wanted, settings, progress=progress
        )
    said = explanation_text(steps, shown.source)
    deliver(explanation_document(steps, shown.source), said, to.json)
