"""`refimpl explain`: the algorithm, step by step, on one model."""

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from refimpl.arguments import common_option, option
from refimpl.cli import groups
from refimpl.cli.options import Group, is_given, with_groups
from refimpl.cli.terminal import progress_bar
from refimpl.explanation.document import explanation_document
from refimpl.explanation.explain import SAMPLES, SEQ_LEN, explain
from refimpl.running.settings import Settings
from refimpl.show.explain import explanation_text
from refimpl.tokens.model_tokens import model_tokens


@dataclass(frozen=True)
class StepOptions:
    """What is shown."""

    block: int = common_option(0, "The block to show and to perturb, from 0.", "K")
    step: str | None = common_option(None, "The only step to show. Default: all steps.", "NAME")
    source: bool = option(False, "Also show the code of each step's functions.")


@with_groups
def command(
    context: typer.Context,
    model: groups.ModelPath,
    *,
    where: groups.Where,
    shown: Annotated[StepOptions, Group("Steps")],
    source: Annotated[groups.Source, groups.source_group(SAMPLES, SEQ_LEN)],
    perturbed: groups.Plan,
    wanted: groups.Shown,
    settings: Annotated[Settings, Group("Running", groups.IN_PROCESS)],
    to: groups.Outputs,
) -> None:
    """The numbers are those of refimpl score on the same tokens.

    With --step, only what that step needs is computed.
    """
    if wanted.correct is not None and not is_given(context, "correct"):  # the paper's
        strength = wanted.strength if is_given(context, "strength") else "default"
        wanted = replace(wanted, correct="absorption", strength=strength)
    plan, wanted = groups.checked_plan(context, perturbed, wanted)
    opened = where.read(model)
    tokens = model_tokens(opened, **vars(source), seed=plan.seed, default=(SAMPLES, SEQ_LEN))
    block, step = shown.block, shown.step
    with progress_bar("explaining") as progress:
        steps = explain(opened, tokens, block, step, plan, wanted, settings, progress=progress)
    to.deliver(explanation_document(steps, shown.source), explanation_text(steps, shown.source))
