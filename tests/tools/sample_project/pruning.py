"""Which weights stay: Wanda, SparseGPT and n:m patterns, through the pruned blocks before."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from allocation import shares
from families import READS
from forward import Model, Weights, passed
from signals import linears, squares, wanda_score
from torch import Tensor

WIDTH = 128  # columns that SparseGPT decides on at once


@dataclass(frozen=True)
class Pruned:
    """A block, pruned."""

    sums: dict[str, Tensor]  # by trace point: squares [in], or products [in, in] for SparseGPT
    scores: dict[str, Tensor]  # by linear; none for SparseGPT
    keep: dict[str, Tensor]
    weights: Weights
    after: Tensor  # states behind it


def pruned_blocks(
    model: Model,
    method: str,
    counts: list[list[int]],
    pattern: tuple[int, int] | None,
    damping: float,
    x: Tensor,
) -> Iterator[Pruned]:
    """Prune block by block; what linears read has passed the pruned blocks before."""
    by_products = method.startswith("sparsegpt")
    add = products if by_products else squares
    for index in range(model.layers):
        stored = model.stored(index)
        seen: Weights = {}
        passed(model, index, model.cast(stored), x, seen)
        sums = {point: add(seen[point]) for point in dict.fromkeys(READS.values())}
        scores: dict[str, Tensor] = {}
        keep: dict[str, Tensor] = {}
        for name, count in zip(linears(stored), counts[index], strict=True):
            weight, point = stored[f"{name}.weight"], READS[name]
            total = sums[point]
            if by_products:
                wide, hessian = weight.double(), total * 2 / len(x)
                count = pattern or count
                keep[name], new = sparsegpt(wide, hessian, count, damping)
            elif method == "magnitude":
                score = weight.double().abs()
                keep[name] = ~lowest(score.flatten(), count).reshape(score.shape)
            else:
                score = scores[name] = wanda_score(weight, total, len(x))
                keep[name] = pattern_keep(score, *pattern) if pattern else wanda_keep(score, count)
            if not by_products:
                new = weight * keep[name]
            stored[f"{name}.weight"] = rounded(new, weight.dtype)  # as a file would hold it
        x = passed(model, index, model.cast(stored), x)
        yield Pruned(sums, scores, keep, model.cast(stored), x)


def packed(keep: Tensor) -> Tensor:
    """Eight decisions in a byte, the first in its highest bit, rows filled up with zeros."""
    filled = torch.nn.functional.pad(keep.to(torch.uint8), (0, -keep.shape[1] % 8))
    places = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=keep.device)
    return (filled.unflatten(1, (-1, 8)) * places).sum(-1, dtype=torch.uint8)


def unpacked(bits: Tensor, width: int) -> Tensor:
    """Decisions out of bytes, the first in the highest bit, [out, in]."""
    places = torch.arange(7, -1, -1, device=bits.device)
    return (bits[..., None].int() >> places & 1).flatten(1)[:, :width].bool()


def products(x: Tensor) -> Tensor:
    """Sums over the tokens of outer products of the inputs, [in, in], float64."""
    rows = x.double().flatten(0, 1)
    return rows.T @ rows


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
    rank.scatter_(1, order, torch.arange(score.shape[1], device=score.device).expand_as(order))
    return rank >= takes[:, None]


def pattern_keep(score: Tensor, zeros: int, group: int) -> Tensor:
    """The lowest ``zeros`` of every ``group`` inputs go, the lowest column of equal ones."""
    groups = score.reshape(-1, group)
    order = groups.argsort(dim=1, stable=True)[:, :zeros]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(1, order, False).reshape(score.shape)


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    count: int | tuple[int, int],
    damping: float,
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
    return torch.where((missed != 0) & even, odd, single).to(dtype)  # no tie is made on the way
