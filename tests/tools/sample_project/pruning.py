"""Which weights stay: magnitude, Wanda, SparseGPT and n:m patterns."""

from dataclasses import dataclass
from typing import Any

import torch
from allocation import shares
from forward import LINEARS, READS, Model, Weights, passed
from torch import Tensor

WIDTH = 128  # columns that SparseGPT decides on at once


@dataclass(frozen=True)
class Pruned:
    """A block, pruned."""

    sums: dict[
        str, Tensor
    ]  # by trace point: squares [in], or products [in, in] for SparseGPT
    scores: dict[str, Tensor]  # by linear; none for SparseGPT
    keep: dict[str, Tensor]
    weights: Weights


def linears(weights: Weights) -> list[str]:
    """The linears of a block, in order."""
    return [name for name in LINEARS if f"{name}.weight" in weights]


def squares(x: Tensor) -> Tensor:
    """Sums over the tokens of the squared inputs, [in], float64."""
    return x.double().square().sum((0, 1))


def products(x: Tensor) -> Tensor:
    """Sums over the tokens of outer products of the inputs, [in, in], float64."""
    rows = x.double().flatten(0, 1)
    return rows.T @ rows


def wanda_score(weight: Tensor, total: Tensor, sequences: int) -> Tensor:
    """``|W| sqrt(c)``, c the sum of squared inputs per sequence, [out, in]."""
    return weight.double().abs() * (total / sequences).sqrt()


def pruned_block(
    model: Model,
    method: str,
    stored: Weights,
    counts: list[Any],
    x: Tensor,
    damping: float = 0,
) -> Pruned:
    """Prune a block whose inputs are x; a count is of a linear, or the n and m of a pattern."""
    by_products, seen, scores, keep = (
        method.startswith("sparsegpt"),
        Weights(),
        Weights(),
        Weights(),
    )
    passed(model, model.cast(stored), x, seen)
    add, weights = products if by_products else squares, dict(stored)
    sums = {point: add(seen[point]) for point in dict.fromkeys(READS.values())}
    for name, count in zip(linears(stored), counts, strict=True):
        weight, total = stored[f"{name}.weight"], sums[READS[name]]
        if by_products:
            keep[name], new = sparsegpt(
                weight.double(), total * 2 / len(x), count, damping
            )
        else:
            score = weight.double().abs()
            if method == "magnitude":
                keep[name] = ~lowest(score.flatten(), count).reshape(score.shape)
            else:
                score = scores[name] = wanda_score(weight, total, len(x))
                as_pattern = isinstance(count, tuple)
                keep[name] = (
                    pattern_keep(score, *count)
                    if as_pattern
                    else wanda_keep(score, count)
                )
            new = weight * keep[name]
        weights[f"{name}.weight"] = rounded(
            new, weight.dtype
        )  # as a file would hold it
    return Pruned(sums, scores, keep, weights)


def packed(keep: Tensor) -> Tensor:
    """Eight decisions in a byte, the first in its highest bit, rows filled up with zeros."""
    filled = torch.nn.functional.pad(keep.to(torch.uint8), (0, -keep.shape[1] % 8))
    places = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=keep.device)
    return (filled.unflatten(1, (-1, 8)) * places).sum(-1, dtype=torch.uint8)


def lowest(score: Tensor, count: int) -> Tensor:
    """True at the lowest scores of a flat tensor, the first of equal ones."""
    chosen = torch.zeros_like(score, dtype=torch.bool)
    chosen[score.argsort(stable=True)[:count]] = True
    return chosen


def wanda_keep(score: Tensor, count: int) -> Tensor:
    """Prune the same number in each row; the remainder in the rows whose next score is lowest."""
    rows = len(score)
    each, more = divmod(max(0, min(count, score.numel())), rows)
    order = score.argsort(dim=1, stable=True)
    if more:
        following = score.gather(1, order[:, each : each + 1])[:, 0]
        takes = each + lowest(following, more).long()
    else:
        takes = torch.full((rows,), each, device=score.device)
    rank = torch.empty_like(order)
    rank.scatter_(
        1, order, torch.arange(score.shape[1], device=score.device).expand_as(order)
    )
    return rank >= takes[:, None]


def pattern_keep(score: Tensor, zeros: int, group: int) -> Tensor:
    """The lowest ``zeros`` of every ``group`` inputs go, the lowest column of equal ones."""
    groups = score.reshape(-1, group)
    order = groups.argsort(dim=1, stable=True)[:, :zeros]
    return (
        torch.ones_like(groups, dtype=torch.bool)
        .scatter_(1, order, False)
        .reshape(score.shape)
    )


def sparsegpt(
    weight: Tensor, hessian: Tensor, count: int | tuple[int, int], damping: float
) -> tuple[Tensor, Tensor]:
    """What stays, and weights that make up for the rest, [out, in], float64.

    A count is of the whole matrix; n and m are zeros in each m inputs, decided on in order.
    """
    pattern = count if isinstance(count, tuple) else None
    whole = 0 if isinstance(count, tuple) else count
    w, h = weight.clone(), hessian.clone()
    keep = torch.ones_like(w, dtype=torch.bool)
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1
    h.diagonal().add_(damping * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    u = torch.linalg.cholesky(inverse, upper=True)
    columns = w.shape[1]
    starts = range(0, columns, WIDTH)
    widths = [min(WIDTH, columns - start) for start in starts]
    for start, width, taken in zip(starts, widths, shares(whole, widths), strict=True):
        end = start + width
        score = (w[:, start:end] / u.diagonal()[start:end]).square()
        score[:, dead[start:end]] = 0
        keep[:, start:end] = ~lowest(score.flatten(), taken).reshape(score.shape)
        for i in range(start, end):
            if pattern is not None and i % pattern[1] == 0:
                group = slice(i, i + pattern[1])
                near = (w[:, group] / u.diagonal()[group]).square()
                near[:, dead[group]] = 0
                keep[:, group] = pattern_keep(near, *pattern)
            error = w[:, i] * ~keep[:, i] / u[i, i]
            w[:, i + 1 :] -= error[:, None] * u[i, i + 1 :]
            w[:, i] *= keep[:, i]
    return keep, w


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """To the nearest; torch goes to 16 bits by way of float32, here float16 is rounded once."""
    if dtype != torch.float16 or x.dtype != torch.float64:
        return x.to(dtype)
    single = x.float()
    missed = x - single.double()
    odd = torch.nextafter(single, torch.where(missed > 0, torch.inf, -torch.inf))
    even = single.view(torch.int32) % 2 == 0
    return torch.where((missed != 0) & even, odd, single).to(
        dtype
    )  # no tie is made on the way
