"""Near ties of decisions on weights, which rounding may turn either way."""

from math import inf

import numpy as np

from refimpl.model.ops import Array
from refimpl.oracle.judging.measures import Positions
from refimpl.oracle.judging.number_ties import positions
from refimpl.oracle.judging.pruner_scores import Keep, unpacked


def near_ties(keep: Keep, truth: Keep, score: Array, relative: float | Array) -> Keep:
    """Which decisions differ within rounding: their score is near the row's threshold.

    A weight that should go may stay if its score is within ``relative`` of the lowest that stays in
    its row, and one that should stay may go if it is as near to the highest that goes; as many of
    a row have to stay as should. Where some rows lose one weight more than others, those whose
    next candidate scores lowest, two rows may change places whose candidates are as near.

    Decisions and scores, which are at least 0, are [rows, n] and compared within a row; `relative`
    is the error of two scores together, at most 1, one number or of each.
    """
    low, high = reach(score, relative)
    lowest = np.min(np.where(truth, low, inf), axis=1, keepdims=True)  # of those that stay
    highest = np.max(np.where(truth, 0.0, high), axis=1, keepdims=True)  # of those that go
    could_stay = ~truth & (high >= lowest)
    could_go = truth & (highest >= low)
    more = keep.sum(axis=1, keepdims=True) - truth.sum(axis=1, keepdims=True)

    stay = truth.sum(axis=1, keepdims=True)
    favoured = stay < stay.max()  # these lose one more
    last = np.max(np.where(favoured, highest, 0.0))  # of their candidates
    following = np.min(np.where(favoured, inf, lowest))
    spared = favoured & (more == 1) & (highest >= following)
    instead = ~favoured & favoured.any() & (more == -1) & (last >= lowest)
    could_stay |= spared & ~truth & (high >= np.max(np.where(truth, 0.0, low), 1, keepdims=True))
    could_go |= instead & truth & (np.min(np.where(truth, high, inf), 1, keepdims=True) >= low)
    rows = (more == 0) | ((spared | instead) & (more.sum() == 0))
    return (keep != truth) & (could_stay | could_go) & rows


def reach(score: Array, relative: float | Array) -> tuple[Array, Array]:
    """``score sqrt(1 - relative)`` and ``score / sqrt(1 - relative)``: tied scores overlap."""
    half = np.broadcast_to(np.sqrt(1 - np.asarray(relative)), score.shape)
    most = np.divide(score, half, out=np.full(score.shape, inf), where=half > 0)
    return score * half, most


def keep_ties(
    keep: Array, truth: Array, score: Array, group: int, relative: float | Array
) -> Positions:
    """Where two decisions differ, if all of these positions are near ties.

    In SparseGPT decisions on later columns follow from earlier ones, and are not looked at from the
    first near tie on.

    Decisions are bits, [out, in / 8], scores [out, in]. `group` is how many consecutive inputs are
    compared with each other: a row if 0, and if negative those of all rows, as in SparseGPT.
    """
    out, width = score.shape
    bits, right_bits = (np.unpackbits(x.astype(np.uint8), axis=1) for x in (keep, truth))
    if (bits[:, width:] != right_bits[:, width:]).any():  # what fills a byte up
        return ()
    decided, right = (x[:, :width].astype(np.bool_) for x in (bits, right_bits))
    differ, slack = decided != right, np.broadcast_to(np.asarray(relative), score.shape)
    every = (decided, right, score, slack)
    if group >= 0:
        tied = near_ties(*(x.reshape(-1, group or width) for x in every)).reshape(out, width)
        return positions(np.argwhere(tied)) if (tied == differ).all() else ()
    start = int(np.argmax(differ.any(axis=0))) // -group * -group
    columns = slice(start, start - group)
    tied = near_ties(*(x[:, columns].reshape(1, -1) for x in every)).reshape(out, -1)
    places = np.argwhere(tied) + np.array([0, start])
    return positions(places) if (tied == differ[:, columns]).all() else ()


def turnable(truth: Array, score: Array, group: int, relative: Array) -> int:
    """How many decisions, not of equal scores, a relative error may turn (as `keep_ties`)."""
    width = score.shape[1]
    every = (unpacked(truth, width), score, *reach(score, relative))
    if group >= 0:
        pieces = [[x.reshape(-1, group or width) for x in every]]
    else:
        starts = range(0, width, -group)
        pieces = [[x[:, i : i - group].reshape(1, -1) for x in every] for i in starts]
    count = 0
    for stays, by, low, high in pieces:
        lowest = np.min(np.where(stays, low, inf), axis=1, keepdims=True)
        highest = np.max(np.where(stays, 0.0, high), axis=1, keepdims=True)
        last = np.min(np.where(stays, by, inf), axis=1, keepdims=True)
        best = np.max(np.where(stays, 0.0, by), axis=1, keepdims=True)
        near = np.where(stays, low <= highest, high >= lowest)
        near &= np.where(stays, by != best, by != last)  # equal ones are told apart by place
        count += int(near.sum())
    return count
