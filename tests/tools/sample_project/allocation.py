"""How much each block loses: base allocations, the correction, the budget, whole numbers."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from math import exp, inf, isnan
from math import log as positive_log

OWL_LAMBDA, DLP_ALPHA, ALPHA_EPSILON = 0.08, 0.15, 0.3
CLIP = positive_log(3)
LEAST = 1e-12  # of the largest error: below it is rounding
Numbers = Sequence[float]


def mean(x: Numbers) -> float:
    return sum(x) / len(x)


def log(x: float) -> float:
    return positive_log(x) if x > 0 else -inf


def clipped(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def unit_interval(x: Numbers) -> list[float] | None:
    """Stretched onto [0, 1]; None where all are the same."""
    low, high = min(x), max(x)
    return None if low == high else [(v - low) / (high - low) for v in x]


def owl(outliers: Numbers, sizes: Sequence[int], sparsity: float) -> list[float]:
    d = [2 * OWL_LAMBDA * v for v in unit_interval(outliers) or [0.0] * len(sizes)]
    return [sparsity - v + mean(d) for v in d]


def dlp(typical: Numbers, sizes: Sequence[int], sparsity: float) -> list[float]:
    importance = [1 - u / sum(typical) for u in typical]
    d = [2 * DLP_ALPHA * v for v in unit_interval(importance) or [0.0] * len(sizes)]
    return [sparsity - v + mean(d) for v in d]


def alphapruning(alphas: Sequence[Numbers], sizes: Sequence[int], sparsity: float) -> list[float]:
    phi = unit_interval([mean(x) for x in alphas])
    if phi is None:
        return uniform(alphas, sizes, sparsity)
    phi = [v * 2 * ALPHA_EPSILON + 1 - ALPHA_EPSILON for v in phi]
    spent = sum(n * v for n, v in zip(sizes, phi, strict=True))
    return [v * sparsity * sum(sizes) / spent for v in phi]


def uniform(_: object, sizes: Sequence[int], sparsity: float) -> list[float]:
    return [sparsity] * len(sizes)


def atp(_: object, sizes: Sequence[int], sparsity: float, beta: float) -> list[float]:
    return [sparsity + beta * (i - (len(sizes) - 1) / 2) for i in range(len(sizes))]


BASES: dict[str, Callable[..., list[float]]] = {
    "owl": owl,
    "dlp": dlp,
    "alphapruning": alphapruning,
    "uniform": uniform,
    "atp": atp,
    "dlp_median": dlp,
    "alphapruning_mid": alphapruning,
}


def correction(coefficients: Numbers, strength: float, most: float) -> list[float]:
    """What is added to a base: less is taken where damage grows."""
    u = [0.0 if isnan(r) else clipped(log(r), -CLIP, CLIP) for r in coefficients]
    centre = mean(u)
    delta = [centre - v for v in u]
    return [clipped(strength * v, -most, most) for v in delta]


def correction_by_error(errors: Numbers, strength: float, most: float) -> list[float]:
    """The same by errors relative to their geometric mean; those of rounding are left out."""
    known = [log(a) for a in errors if a > LEAST * max(errors)]
    middle = mean(known) if known else 0.0
    ratios = [exp(log(a) - middle) if a > LEAST * max(errors) else 1.0 for a in errors]
    return correction(ratios, strength, most)


def project(x: Numbers, sizes: Sequence[int], sparsity: float) -> list[float]:
    """The nearest allocation within [0, 1] that spends the budget: one shift for all, clipped."""

    def spent(shift: float) -> float:
        return sum(n * clipped(v + shift, 0, 1) for n, v in zip(sizes, x, strict=True))

    budget = sparsity * sum(sizes)
    bends = sorted({-v for v in x} | {1 - v for v in x})
    for low, high in pairwise(bends):
        if spent(high) >= budget:
            slope = (spent(high) - spent(low)) / (high - low)
            shift = low if slope == 0 else low + (budget - spent(low)) / slope
            return [clipped(v + shift, 0, 1) for v in x]
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


def counts(s: Numbers, sizes: Sequence[Sequence[int]], sparsity: float) -> list[list[int]]:
    """How many weights of every linear go, [L][linears]."""
    blocks = [sum(x) for x in sizes]
    total = round(Fraction(str(sparsity)) * sum(blocks))  # 0.7 is 7/10; half to even
    quotas = [Fraction(v) * n for v, n in zip(s, blocks, strict=True)]
    return [shares(n, x) for n, x in zip(apportioned(quotas, total), sizes, strict=True)]
