"""How much each block loses: signals, bases, correction, budget, whole numbers."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import exp, inf, log
from typing import Any

import torch
from torch import Tensor

Numbers = Sequence[float]
OWL_M, OWL_LAMBDA, DLP_ALPHA, ALPHA_EPSILON = 5.0, 0.08, 0.15, 0.3
BINS = 100
LEAST = 1e-12  # of the largest error: below it is rounding


def signals(scores: list[Tensor], weights: list[list[Tensor]]) -> dict[str, Tensor]:
    """Signals by base, of each block's Wanda scores in a row, and of its linears."""
    spectra = [[eigenvalues(w) for w in block] for block in weights]
    tails = {
        fit: [[alpha(x, fit) for x in block] for block in spectra]
        for fit in ("peak", "mid")
    }
    return {
        "owl": torch.stack(
            [100 * (x > OWL_M * x.mean()).double().mean() for x in scores]
        ),
        "dlp": torch.stack([x.mean() for x in scores]),
        "dlp_median": torch.stack([x.quantile(0.5) for x in scores]),
        "alphapruning": torch.tensor(tails["peak"], dtype=torch.float64),
        "alphapruning_mid": torch.tensor(tails["mid"], dtype=torch.float64),
    }


def eigenvalues(weight: Tensor) -> Tensor:
    """AlphaPruning's spectrum, ascending, without zeros."""
    values = torch.linalg.svdvals(weight.double()).flip(0)
    floor = values[-1] * max(weight.shape) * torch.finfo(torch.float64).eps
    return values[values > floor].square()


def alpha(spectrum: Tensor, fit: str) -> float:
    """AlphaPruning: exponent of a power law's tail, from the peak or the middle."""
    count = len(spectrum)
    if fit == "mid":
        upper = spectrum[count // 2 :].log()
        return float(1 + len(upper) / (upper - upper[0]).sum())
    logs = spectrum.log10()
    place = ((logs - logs[0]) / (logs[-1] - logs[0]) * BINS).long().clamp(max=BINS - 1)
    peak = int(
        torch.bincount(place, minlength=BINS).argmax()
    )  # the first of equal ones
    left = 10 ** (logs[0] + (logs[-1] - logs[0]) * peak / BINS)
    low = torch.log10(0.95 * left)  # as shipped: a logarithm, held against values
    best, found = inf, torch.nan
    for i in range(count - 1):
        if not low <= spectrum[i] <= 1.5 * left:
            continue
        tail, n = spectrum[i:], count - i
        exponent = 1 + n / (tail.log().sum() - n * tail[0].log())
        steps = torch.arange(n, dtype=torch.float64) / n
        distance = float((1 - (tail / tail[0]) ** (1 - exponent) - steps).abs().max())
        if exponent > 1 and distance < best:
            best, found = distance, float(exponent)
    return found


def base(
    name: str, signal: Any, sizes: Sequence[int], recipe: dict[str, Any]
) -> list[float]:
    """A base allocation before its projection onto the budget."""
    sparsity, blocks = recipe["sparsity"], len(sizes)
    if name == "atp":
        return [
            sparsity + recipe["beta"] * (i - (blocks - 1) / 2) for i in range(blocks)
        ]
    if name.startswith("alphapruning"):
        phi = unit_interval([mean(x) for x in signal])
        phi = (
            [v * 2 * ALPHA_EPSILON + 1 - ALPHA_EPSILON for v in phi]
            if any(phi)
            else [1.0] * blocks
        )
        spent = sum(n * v for n, v in zip(sizes, phi, strict=True))
        return [v * sparsity * sum(sizes) / spent for v in phi]
    if name == "uniform":
        return [sparsity] * blocks
    half = OWL_LAMBDA if name == "owl" else DLP_ALPHA
    kept = unit_interval(signal if name == "owl" else [-u for u in signal])
    d = [2 * half * v for v in kept]
    return [sparsity - v + mean(d) for v in d]


def mean(x: Numbers) -> float:
    return sum(x) / len(x)


def unit_interval(x: Numbers) -> list[float]:
    """Stretched onto [0, 1]; zeros where all are the same."""
    low, high = min(x), max(x)
    return [0.0 if low == high else (v - low) / (high - low) for v in x]


def correction(growth: Numbers, recipe: dict[str, Any]) -> list[float]:
    """What is added to a base: less is taken where damage grows."""
    logs = [-inf if r <= 0 else 0.0 if r != r else log(r) for r in growth]
    u = [min(max(x, -log(3)), log(3)) for x in logs]
    most = recipe["max_correction"]
    return [min(max(recipe["strength"] * (mean(u) - v), -most), most) for v in u]


def relative(errors: Numbers) -> list[float]:
    """Errors by their geometric mean; those of rounding are left out."""
    known = [a > LEAST * max(errors) for a in errors]
    logs = [log(a) for a, use in zip(errors, known, strict=True) if use]
    return [
        exp(log(a) - mean(logs)) if use else 1.0
        for a, use in zip(errors, known, strict=True)
    ]


def project(x: Numbers, sizes: Sequence[int], sparsity: float) -> list[float]:
    """The nearest allocation within [0, 1] that spends the budget: one shift for all, clipped."""

    def shifted(shift: float) -> list[float]:
        return [min(max(v + shift, 0), 1) for v in x]

    def spent(shift: float) -> float:
        return sum(n * v for n, v in zip(sizes, shifted(shift), strict=True))

    budget = sparsity * sum(sizes)
    for low, high in pairwise(sorted({-v for v in x} | {1 - v for v in x})):
        if spent(high) >= budget:
            slope = (spent(high) - spent(low)) / (high - low)
            return shifted(low if slope == 0 else low + (budget - spent(low)) / slope)
    raise ValueError(f"no allocation spends {sparsity} of the weights")


def apportioned(quotas: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers that sum to a total: largest remainders up, ties to the lower index."""
    whole = [int(q) for q in quotas]
    order = sorted(range(len(quotas)), key=lambda i: (whole[i] - quotas[i], i))
    for i in order[: total - sum(whole)]:
        whole[i] += 1
    return whole


def shares(total: int, sizes: Sequence[int]) -> list[int]:
    """A whole number split in proportion to sizes."""
    return apportioned([Fraction(total * n, sum(sizes)) for n in sizes], total)


def counts(s: Numbers, sizes: Sequence[Sequence[int]], sparsity: float) -> Tensor:
    """How many weights of every linear go, [L, linears]."""
    blocks = [sum(x) for x in sizes]
    total = round(Fraction(str(sparsity)) * sum(blocks))  # 0.7 is 7/10; half to even
    quotas = [Fraction(v) * n for v, n in zip(s, blocks, strict=True)]
    taken = apportioned(quotas, total)
    return torch.tensor([shares(n, x) for n, x in zip(taken, sizes, strict=True)])
