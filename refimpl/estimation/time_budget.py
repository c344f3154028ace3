"""The largest experiment that fits into a time."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from math import ceil, floor, log10

from refimpl.errors import RefimplError
from refimpl.estimation.estimate import Estimate
from refimpl.method.perturbation import Perturbation

FEW = 2  # samples, below which there is no standard error


def fitting(
    estimate: Callable[[int, Perturbation], Estimate],
    samples: int,
    plan: Perturbation,
    minutes: float,
) -> Estimate:
    """Choose the largest experiment, at most these samples and this plan, that should fit.

    It first takes fewer draws, because they add less than samples; then fewer samples, down to
    two; then fewer blocks per sample, as long as each block is perturbed once.
    """
    if not 0 < minutes < float("inf"):
        raise RefimplError(
            f"a budget of {minutes:g} minutes", "more than 0 minutes", "use for example --budget 10"
        )
    choices = _choices(estimate(samples, plan).num_blocks, samples, plan)

    def seconds(choice: tuple[int, Perturbation]) -> float:
        return estimate(*choice).seconds.total

    fits = bisect_right(choices, 60 * minutes, key=seconds)
    if fits == 0:
        least = seconds(choices[0]) / 60
        digit = 10.0 ** (1 - floor(log10(least)))  # rounds up to two digits
        enough = f"{ceil(least * digit) / digit:g}"
        raise RefimplError(
            f"a budget of {minutes:g} minutes",
            f"at least {enough} minutes, which the smallest experiment is expected to take",
            f"use --budget {enough} or more, or a shorter --seq-len",
        )
    return estimate(*choices[fits - 1])


def _choices(blocks: int, samples: int, plan: Perturbation) -> list[tuple[int, Perturbation]]:
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
