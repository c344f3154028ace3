"""The algorithm as it runs on one model, step by step, with the numbers of that run."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refimpl.allocation.request import Perturbation, Request, require_resolved
from refimpl.arguments import integer, require
from refimpl.errors import RefimplError
from refimpl.explanation.forward_steps import forward_steps
from refimpl.explanation.method_steps import method_steps
from refimpl.explanation.shown_values import Figure, Step, Values
from refimpl.loading.samples import TokenFacts, Tokens
from refimpl.model.model import Model
from refimpl.model.ops import within_range
from refimpl.running.settings import Settings
from refimpl.running.threads import Workers

FEW = 2, 32  # samples, and their length: enough to see every step, and a standard error


@dataclass(frozen=True)
class Explanation:
    """The steps of the algorithm on one model, with their values.

    Args:
        model: The model's name.
        family: Its family.
        num_blocks: L.
        block: The block that is shown, from 0.
        tokens: The source of the tokens.
        dtype: Dtype of the computation.
        steps: Each step with its number among all steps of this model, from 1, and its figures.
        num_steps: Number of all steps.
    """

    model: str
    family: str
    num_blocks: int
    block: int
    tokens: TokenFacts
    dtype: str
    steps: tuple[tuple[int, Step, tuple[Figure, ...]], ...]
    num_steps: int

    def figure(self, step: str, name: str) -> Any:
        """The whole value of one figure, by the names of its step and itself."""
        (figures,) = (figures for _, one, figures in self.steps if one.name == step)
        return next(figure.value for figure in figures if figure.name == name)


def explain(
    model: Model,
    tokens: Tokens,
    block: int = 0,
    step: str | None = None,
    plan: Perturbation | None = None,
    request: Request | None = None,
    settings: Settings | None = None,
    **changes: Any,
) -> Explanation:
    """Take one model through the algorithm and show each step.

    Args:
        model: From `read_model`.
        tokens: Its tokens; a few are enough.
        block: The block to show, from 0.
        step: The only step to show; all if None.
        plan: The perturbation, as for `score`.
        request: The allocation, as for `score` and `allocate`; if None, the paper's.
        settings: How it runs.
        **changes: Fields of the settings to change, such as `dtype="float64"`.

    Returns:
        The steps with their values; only what they show is computed.

    Raises:
        RefimplError: A block or a step that this model does not have; several eta; what `score`
            refuses.

    Example:
        >>> from refimpl import read_model
        >>> from refimpl.loading.samples import random_tokens
        >>> steps = explain(read_model("fixtures/llama"), random_tokens(264, 2, 8), block=3)
        >>> steps.figure("ratio", "r_l")
        1.0
    """
    request = request or Request(correct="absorption")
    plan = request.perturbation(plan)
    settings = replace(settings or Settings(), **changes)
    require_resolved(plan, settings.dtype)
    require(block, integer(0, model.config.num_blocks - 1), "block")
    if len(plan.etas) > 1:
        raise RefimplError(
            f"{len(plan.etas)} values of eta",
            "one value, which all steps use",
            "use for example `eta=0.01`",
        )
    steps = steps_of(model, block, plan, request)
    names = [one.name for one in steps]
    if step is not None and step not in names:
        raise RefimplError(
            f"no step {step!r} in {model.name}",
            f"one of {', '.join(names)}",
            "change `step`",
        )
    values = Values(model, tokens, block, plan, request, settings)
    model.check_finite(settings.dtype)
    chosen = [
        (number, x) for number, x in enumerate(steps, 1) if step in (None, x.name)
    ]
    with (
        within_range(settings.dtype),
        Workers(settings.threads),
    ):  # one thread of BLAS, as in score
        shown = tuple((number, x, tuple(x.figures(values))) for number, x in chosen)
    facts = (
        model.name,
        model.config.family,
        model.config.num_blocks,
        block,
        tokens.facts,
    )
    return Explanation(*facts, np.dtype(settings.dtype).name, shown, len(steps))


def steps_of(
    model: Model, block: int, plan: Perturbation, request: Request
) -> list[Step]:
    """All steps of a model, in order, before anything is computed."""
    prefix = f"blocks.{block}."
    names = frozenset(
        n.removeprefix(prefix) for n in model.weights if n.startswith(prefix)
    )
    return [*forward_steps(model.config, names, block), *method_steps(plan, request)]
