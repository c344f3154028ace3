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
    for index in range(model.layers):
        stored = model.stored(index)
        seen: Weights = {}
        passed(model, index, model.cast(stored), x, seen)
        add = products if method == "sparsegpt" else squares
        sums = {point: add(seen[point]) for point in dict.fromkeys(READS.values())}
        scores: dict[str, Tensor] = {}
        keep: dict[str, Tensor] = {}
        for name, count in zip(linears(stored), counts[index], strict=True):
            weight, total = stored[f"{name}.weight"], sums[READS[name]]
            if method == "sparsegpt":
                keep[name], new = sparsegpt(weight.double(), total * 2 / len(x), count, damping)
            else:
                scores[name] = wanda_score(weight, total, len(x))
                keep[name] = (
                    wanda_keep(scores[name], count)
                    if pattern is None
                    else pattern_keep(scores[name], *pattern)
                )
                new = weight * keep[name]
            stored[f"{name}.weight"] = rounded(new, weight.dtype)  # as a file would hold it
        weights = model.cast(stored)
        x = passed(model, index, weights, x)
        yield Pruned(sums, scores, keep, weights, x)


def stepwise_blocks(
    model: Model,
    method: str,
    wanted: list[list[int]],
    pattern: tuple[int, int] | None,
    damping: float,
    before: Tensor,
    expected: Weights,
) -> Iterator[Pruned]:
    """The same from the expected values of a case, where it has them.

    Decisions come from its sums, weights from its decisions, and the inputs of linears have passed
    blocks with these weights.
    """
    sparse, state = method == "sparsegpt", before
    kind, add = ("products", products) if sparse else ("squares", squares)
    for index, wish in enumerate(wanted):
        prefix, dense = f"{method}.blocks.{index}", model.stored(index)
        seen: Weights = {}
        passed(model, index, model.cast(dense), state, seen)
        sums = {x: add(seen[x]) for x in dict.fromkeys(READS.values())}
        scores, keeps, ours, theirs = {}, {}, dict(dense), dict(dense)
        for name, some in zip(linears(dense), wish, strict=True):
            weight, place = dense[f"{name}.weight"], READS[name]
            total = expected.get(f"{prefix}.{place}.{kind}", sums[place])
            stays = unpacked(expected[f"{prefix}.{name}.keep"], weight.shape[1])
            if sparse:
                hessian, wide = 2 / len(state) * total, weight.double()
                keeps[name], _ = sparsegpt(wide, hessian, some, damping)
                new = rounded(compensated(wide, hessian, stays, damping), weight.dtype)
            else:
                score = scores[name] = wanda_score(weight, total, len(state))
                keeps[name] = pattern_keep(score, *pattern) if pattern else wanda_keep(score, some)
                new = torch.where(stays, weight, 0)
            ours[f"{name}.weight"] = new
            theirs[f"{name}.weight"] = expected.get(f"{prefix}.{name}.weight", new)
        state = passed(model, index, model.cast(theirs), state)
        yield Pruned(sums, scores, keeps, model.cast(ours), state)


def unpacked(bits: Tensor, width: int) -> Tensor:
    """Decisions out of bytes, the first in the highest bit, [out, in]."""
    places = torch.arange(7, -1, -1, device=bits.device)
    return (bits[..., None].int() >> places & 1).flatten(1)[:, :width].bool()


def compensated(weight: Tensor, hessian: Tensor, stays: Tensor, damping: float) -> Tensor:
    """SparseGPT's compensated weights for a given decision, [out, in], float64."""
    left, damped = weight.clone(), hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal.add_(diagonal.mean().item() * damping)
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    for j in range(left.shape[1]):
        lost = torch.where(stays[:, j], 0, left[:, j]) / u[j, j]
        left[:, j + 1 :].sub_(torch.outer(lost, u[j, j + 1 :]))
    return torch.where(stays, left, 0)


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
    each, more = divmod(count, rows)
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


def sparsegpt(weight: Tensor, hessian: Tensor, count: int, damping: float) -> tuple[Tensor, Tensor]:
    """What stays, and the weights that make up for the rest, [out, in], float64."""
    w, h = weight.clone(), hessian.clone()
    keep = torch.ones_like(w, dtype=torch.bool)
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1
    h.diagonal().add_(damping * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    u = torch.linalg.cholesky(inverse, upper=True)
    columns = w.shape[1]
    widths = [min(WIDTH, columns - start) for start in range(0, columns, WIDTH)]
    for block, (start, taken) in enumerate(
        zip(range(0, columns, WIDTH), shares(count, widths), strict=True)
    ):
        end = start + widths[block]
        score = (w[:, start:end] / u.diagonal()[start:end]).square()
        score[:, dead[start:end]] = 0
        keep[:, start:end] = ~lowest(score.flatten(), taken).reshape(score.shape)
        for i in range(start, end):
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
