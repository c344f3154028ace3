"""What bases are made from: outliers (OWL), typical scores (DLP), tails (AlphaPruning)."""

import torch
from families import LINEARS, READS
from forward import Model, Weights, passed
from torch import Tensor

OWL_M = 5.0
BINS = 100


def linears(weights: Weights) -> list[str]:
    """The linears of a block, in order."""
    return [name for name in LINEARS if f"{name}.weight" in weights]


def squares(x: Tensor) -> Tensor:
    """Sums over the tokens of the squared inputs, [in], float64."""
    return x.double().square().sum((0, 1))


def wanda_score(weight: Tensor, total: Tensor, sequences: int) -> Tensor:
    """``|W| sqrt(c)``, c the sum of squared inputs per sequence, [out, in]."""
    return weight.double().abs() * (total / sequences).sqrt()


def block_scores(model: Model, index: int, stored: Weights, x: Tensor) -> Tensor:
    """Wanda's scores of all linears of a dense block, in one row."""
    seen: Weights = {}
    passed(model, index, model.cast(stored), x, seen)
    return torch.cat(
        [
            wanda_score(stored[f"{name}.weight"], squares(seen[READS[name]]), len(x)).flatten()
            for name in linears(stored)
        ]
    )


def outlier_percent(scores: Tensor) -> Tensor:
    """OWL: how many scores are above m times their mean, in percent."""
    return 100 * (scores > OWL_M * scores.mean()).double().mean()


def eigenvalues(weight: Tensor) -> Tensor:
    """AlphaPruning's spectrum, ascending, without zeros; on the CPU in one transfer."""
    values = torch.linalg.svdvals(weight.double()).flip(0).cpu()
    floor = values[-1] * max(weight.shape) * torch.finfo(torch.float64).eps
    return values[values > floor].square()


def alpha(spectrum: Tensor, fit: str = "peak") -> float:
    """AlphaPruning: exponent of a power law's tail, `peak` (and `shipped`) or `mid`."""
    count = len(spectrum)
    if fit == "mid":
        upper = spectrum[count // 2 :].log()
        return float(1 + len(upper) / (upper - upper[0]).sum())
    logs = spectrum.log10()
    place = ((logs - logs[0]) / (logs[-1] - logs[0]) * BINS).long().clamp(max=BINS - 1)
    peak = int(torch.bincount(place, minlength=BINS).argmax())  # the first of equal ones
    left = 10 ** (logs[0] + (logs[-1] - logs[0]) * peak / BINS)
    low = torch.log10(0.95 * left)  # as shipped: a logarithm, held against values
    best, found = torch.inf, torch.nan
    for i in range(count - 1):
        if not low <= spectrum[i] <= 1.5 * left:
            continue
        tail, n = spectrum[i:], count - i
        exponent = 1 + n / (tail.log().sum() - n * tail[0].log())
        steps = torch.arange(n, dtype=torch.float64) / n
        distance = (1 - (tail / tail[0]) ** (1 - exponent) - steps).abs().max()
        if exponent > 1 and distance < best:
            best, found = float(distance), float(exponent)
    return found
