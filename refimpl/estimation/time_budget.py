"""Samples, draws and blocks that fit into a time."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor, log10

from refimpl.errors import RefimplError
from refimpl.estimation.estimate import Estimate, Estimator
from refimpl.method.perturbation import Perturbation

FEW = 2  # samples, below which there is no standard error


def fitting(estimator: Estimator, samples: int, plan: Perturbation, minutes: float) -> Estimate:
    """Choose the largest experiment that is expected to fit into a time.

    Fewer draws come first, which tell less than samples; then fewer samples, down to two; then
    fewer blocks per sample, as long as each is perturbed once.

    Args:
        estimator: From `estimation.estimate.estimator`.
        samples: Samples at most.
        plan: Draws and blocks at most.
        minutes: The time.

    Returns:
        The estimate of what was chosen; its `tokens.samples` and `plan` say what that is.

    Raises:
        RefimplError: Not a time; one that even the smallest experiment exceeds.

    Source:
        Ours; docs/how-to/time-budget.md.
    """
    if not 0 < minutes < float("inf"):
        raise RefimplError(f"a budget of {minutes:g} minutes", "more than 0", "use --budget 10")
    choices = _choices(estimator(samples, plan).num_blocks, samples, plan)

    def seconds(choice: tuple[int, Perturbation]) -> float:
        return estimator(*choice).seconds.total

    fits = bisect_right(choices, 60 * minutes, key=seconds)
    if fits == 0:
        least = seconds(choices[0]) / 60
        digit = 10.0 ** (1 - floor(log10(least)))  # rounds up to two digits
        raise RefimplError(
            f"a budget of {minutes:g} minutes",
            f"at least {ceil(least * digit) / digit:g} minutes, which the smallest experiment "
            "is expected to take",
            "use a larger --budget, or a shorter --seq-len",
        )
    return estimator(*choices[fits - 1])


def _choices(blocks: int, samples: int, plan: Perturbation) -> Sequence[tuple[int, Perturbation]]:
    """Samples and plans from the smallest experiment to the largest."""
    few, once = min(FEW, samples), replace(plan, draws=1)
    most = blocks if plan.subset is None else plan.subset
    least = -(-blocks // few)
    return [
        *((few, replace(once, subset=k)) for k in range(least, most)),
        *((n, once) for n in range(few, samples + 1) if n * most >= blocks),
        *(
            (samples, replace(plan, draws=r))
            for r in range(2, plan.draws + 1)
            if samples * r * most >= blocks
        ),
    ]
