"""The scores that decisions compare, and near ties: what rounding may turn."""

from collections.abc import Iterator
from math import inf

import numpy as np
import numpy.typing as npt

from refimpl.model.ops import Array
from refimpl.oracle.judging.measures import Positions, error_of
from refimpl.pruners.counts import split_count, total_count
from refimpl.pruners.pruner import SharedFactor, inverse_of_upper
from refimpl.pruners.sparsegpt import WIDTH, compensated, hessian

Keep = npt.NDArray[np.bool_]
"""Decisions on weights, True = stays."""


def unpacked(bits: Array, width: int) -> Keep:
    """Decisions [..., width] from packed bits."""
    return np.unpackbits(bits.astype(np.uint8), axis=-1, count=width).astype(np.bool_)


def sparsegpt_scores(
    weight: Array, products: Array, sequences: int, keep: Keep, damping: float, group: int = WIDTH
) -> tuple[Array, Array]:
    """SparseGPT's scores when `group` columns were decided on, and new weights, both [out, in]."""
    score = np.empty(weight.shape)

    def decide(piece: Array, start: int) -> Keep:
        columns = slice(start, start + piece.shape[1])
        score[:, columns] = piece
        return keep[:, columns]

    new = compensated(weight, hessian(products, sequences), decide, group, damping, WIDTH)
    return score, new.weight


def sparsegpt_error(products: Array, truth: Array, sequences: int, damping: float) -> float:
    """The largest relative error of the factor's ``diag(U)^2``, by which scores are divided."""
    factors = (SharedFactor(hessian(x, sequences)).factored(damping)[0] for x in (products, truth))
    scale, right = (np.square(np.diag(inverse_of_upper(x))) for x in factors)
    return float(np.max(np.abs(scale / right - 1)))


def near_ties(keep: Keep, truth: Keep, score: Array, relative: float | Array) -> Keep:
    """Which decisions [rows, n] differ as their scores, off by `relative`, are near the threshold.

    Rows that lose one weight more than others are those whose next candidate scores lowest: two may
    change places whose candidates are as near.
    """
    low, high = reach(score, relative)
    lowest, highest = edges(truth, low, high)
    could_stay = ~truth & (high >= lowest)
    could_go = truth & (highest >= low)
    more = keep.sum(axis=1, keepdims=True) - truth.sum(axis=1, keepdims=True)

    favoured, last, following = between_rows(truth, lowest, highest)
    spared = favoured & (more == 1) & (highest >= following)
    instead = ~favoured & favoured.any() & (more == -1) & (last >= lowest)
    could_stay |= spared & ~truth & (high >= np.max(np.where(truth, 0.0, low), 1, keepdims=True))
    could_go |= instead & truth & (np.min(np.where(truth, high, inf), 1, keepdims=True) >= low)
    rows = (more == 0) | ((spared | instead) & (more.sum() == 0))
    return (keep != truth) & (could_stay | could_go) & rows


def edges(keep: Keep, low: Array, high: Array) -> tuple[Array, Array]:
    """The lowest score of those that stay, and the highest of those that go, [rows, 1]."""
    lowest = np.min(np.where(keep, low, inf), axis=1, keepdims=True)
    return lowest, np.max(np.where(keep, 0.0, high), axis=1, keepdims=True)


def between_rows(keep: Keep, lowest: Array, highest: Array) -> tuple[Keep, Array, Array]:
    """Which rows lose one weight more, [rows, 1], the highest they lose, the lowest others keep."""
    stay = keep.sum(axis=1, keepdims=True)
    more = stay < stay.max()
    return more, np.max(np.where(more, highest, 0.0)), np.min(np.where(more, inf, lowest))


def reach(score: Array, relative: float | Array) -> tuple[Array, Array]:
    """``score sqrt(1 - relative)`` and ``score / sqrt(1 - relative)``: tied scores overlap."""
    half = np.broadcast_to(np.sqrt(1 - np.asarray(relative)), score.shape)
    most = np.divide(score, half, out=np.full(score.shape, inf), where=half > 0)
    return score * half, most


def together(group: int, *arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Arrays [out, in], in parts that are decided on in turn, as rows of what is compared.

    `group` inputs are compared: a row if 0; if negative those of all rows, as in SparseGPT.
    """
    width, shape = arrays[0].shape[1], (1, -1) if group < 0 else (-1, group or arrays[0].shape[1])
    for start in range(0, width, -group) if group < 0 else (0,):
        columns = slice(start, start - group if group < 0 else width)
        yield tuple(x[:, columns].reshape(shape) for x in arrays)


def keep_ties(
    keep: Array, truth: Array, score: Array, group: int, relative: float | Array
) -> Positions:
    """Where decisions, bits [out, in / 8], differ, if near ties explain all of a first part."""
    decided, right = (unpacked(x, score.shape[1]) for x in (keep, truth))
    if not np.array_equal(np.packbits(decided, axis=1), keep):  # what fills a byte up
        return ()
    slack = np.broadcast_to(np.asarray(relative), score.shape)
    places = np.arange(score.size).reshape(score.shape)
    for *every, at in together(group, decided, right, score, slack, places):
        tied = near_ties(*every)
        if (tied != (every[0] != every[1])).any():
            return ()
        if tied.any():
            return positions(np.transpose(np.unravel_index(np.sort(at[tied]), score.shape)))
    return ()


def sequential_ties(
    keep: Array, truth: Array, score: Array, group: int, relative: float | Array
) -> Positions:
    """As `keep_ties`, where what follows a near tie in a row was decided on other weights."""
    width = score.shape[1]
    decided, right = unpacked(keep, width), unpacked(truth, width)
    differ = (decided != right).reshape(len(score), -1, group)
    rows = np.flatnonzero(differ.any(axis=(1, 2)))
    first = differ.any(axis=2).argmax(axis=1)[rows]
    slack = np.broadcast_to(np.asarray(relative), score.shape)
    every = (decided, right, score, slack)
    tied = near_ties(*(x.reshape(len(score), -1, group)[rows, first] for x in every))
    if not (tied == differ[rows, first]).all():
        return ()
    return positions(np.argwhere(decided != right))


def turnable(truth: Array, score: Array, group: int, relative: Array) -> int:
    """How many decisions, not of equal scores, a relative error may turn (as `near_ties`)."""
    every = (unpacked(truth, score.shape[1]), score, *reach(score, relative))
    count = 0
    for stays, by, low, high in together(group, *every):
        (lowest, highest), (last, best) = edges(stays, low, high), edges(stays, by, by)
        near = np.where(stays, low <= highest, high >= lowest)
        near &= np.where(stays, by != best, by != last)  # of equal scores the position decides
        more, top, line = between_rows(stays, lowest, highest)
        _, best_top, last_line = between_rows(stays, last, best)
        spared = more & (highest >= line) & (best != last_line)
        instead = ~more & (lowest <= top) & (last != best_top)
        count += int(near.sum() + spared.sum() + instead.sum())
    return count


def count_ties(
    counts: Array, truth: Array, sparsity: Array, sizes: Array, target: float, relative: float
) -> Positions:
    """Where counts [L, linears] differ, if sparsities off by a share of the largest explain it.

    Quotas q are rounded to n if the budget is met and ``max(q - n) - min(q - n) <= 1``
    (docs/explanation/method.md, section 5).
    """
    per_block, whole = [int(n) for n in counts.sum(axis=1)], sizes.sum(axis=1)
    rows = list(zip(per_block, counts, sizes, strict=True))
    if (
        sum(per_block) != total_count(target, int(whole.sum()))
        or not all(0 <= n <= size.sum() for n, _, size in rows)
        or any((split_count(n, size[size > 0]) != x[size > 0]).any() for n, x, size in rows)
    ):
        return ()
    slack, missed = relative * sparsity.max() * whole, sparsity * whole - np.array(per_block)
    explained = np.max(missed - slack) - np.min(missed + slack) <= 1
    return positions(np.argwhere(counts != truth)) if explained else ()


def outlier_ties(
    percent: Array,
    truth: Array,
    scores: Iterator[Array],
    m: float,
    allowed: float,
    relative: float,
    share: float,
) -> Positions:
    """Blocks where OWL's percentages [L] differ by more than is `allowed`, if ties explain it."""
    ties = []
    for i, score in enumerate(scores):
        line = m * score.mean()
        outliers, right = (x[i].astype(np.float64) * score.size / 100 for x in (percent, truth))
        slack = allowed * right
        if abs(outliers - right) < 0.5:
            continue
        fewest, most = (np.sum(score > line * (1 + x)) for x in (2 * relative, -2 * relative))
        if not fewest - slack <= outliers <= most + slack:
            return ()
        if abs(outliers - right) > max(2, share * score.size) + slack:
            return ()
        ties.append((i,))
    return tuple(ties)


def rounding_ties(
    weight: Array, truth: Array, stored: np.dtype[np.generic], allowed: float
) -> Positions:
    """Where weights [out, in] are one unit of the file's dtype off, if the rest is as allowed."""
    unit = np.abs(np.spacing(truth.astype(stored)).astype(np.float64))
    missed = np.abs(weight.astype(np.float64) - truth)
    turned = (missed > unit / 2) & (missed <= unit * 1.01)
    rest, _, _ = error_of("sparsegpt.weight", np.where(turned, truth, weight), truth)
    return positions(np.argwhere(turned)) if rest <= allowed else ()


def positions(indices: Array) -> Positions:
    """Indices [n, dimensions] as tuples."""
    return tuple(map(tuple, indices.tolist()))
