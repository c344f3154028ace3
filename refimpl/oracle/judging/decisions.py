"""Which decisions on weights may go either way, because rounding cannot tell."""

from math import inf

import numpy as np

from refimpl.model.ops import Array
from refimpl.oracle.judging.choices import Bools, Ties, positions


def near_ties(keep: Bools, truth: Bools, score: Array, relative: float | Array) -> Bools:
    """Which decisions may go either way: their score lies within rounding of the row's threshold.

    A weight that should go may stay if its score is within ``relative`` of the lowest that stays in
    its row, and one that should stay may go if it is as near to the highest that goes; as many of
    a row have to stay as should. Where some rows lose one weight more than others, those whose
    next candidate scores lowest, two rows may change places whose candidates are as near.

    Args:
        keep: The candidate's decision, [rows, n].
        truth: The right one, [rows, n].
        score: Scores that are compared with each other, row by row, [rows, n], at least 0.
        relative: How far two scores may be off together, at most 1; one number, or of each.

    Returns:
        True where the decisions differ within rounding, [rows, n].

    Source:
        ours.

    Example:
        >>> truth = np.array([[True, False, True]])
        >>> other = np.array([[False, True, True]])
        >>> near_ties(other, truth, np.array([[1.0, 0.9999999, 5.0]]), 1e-6).tolist()
        [[True, True, False]]
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
    next_one = np.min(np.where(favoured, inf, lowest))
    spared = favoured & (more == 1) & (highest >= next_one)
    instead = ~favoured & favoured.any() & (more == -1) & (last >= lowest)
    could_stay |= spared & ~truth & (high >= np.max(np.where(truth, 0.0, low), 1, keepdims=True))
    could_go |= instead & truth & (np.min(np.where(truth, high, inf), 1, keepdims=True) >= low)
    rows = (more == 0) | ((spared | instead) & (more.sum() == 0))
    return (keep != truth) & (could_stay | could_go) & rows


def reach(score: Array, relative: float | Array) -> tuple[Array, Array]:
    """The least and the most that scores may be: two that are compared are off by `relative`.

    Args:
        score: Scores, at least 0.
        relative: How far two of them may be off together, at most 1; one number, or of each.

    Returns:
        ``score sqrt(1 - relative)`` and ``score / sqrt(1 - relative)``.

    Source:
        ours.

    Example:
        >>> [x.tolist() for x in reach(np.array([3.0, 1.0]), np.array([0.75, 1.0]))]
        [[1.5, 0.0], [6.0, inf]]
    """
    half = np.broadcast_to(np.sqrt(1 - np.asarray(relative)), score.shape)
    most = np.divide(score, half, out=np.full(score.shape, inf), where=half > 0)
    return score * half, most


def keep_ties(keep: Array, truth: Array, score: Array, group: int, relative: float | Array) -> Ties:
    """Where two decisions differ, if all of these places are near ties.

    Args:
        keep: The candidate's decision, bits, [out, in / 8].
        truth: The right one, bits.
        score: Scores, [out, in].
        group: How many consecutive inputs are compared with each other; a row if 0; of all rows
            together, as in SparseGPT, if negative.
        relative: How far two scores may be off together; one number, or of each input, [in].

    Returns:
        Places, [out, in]. In SparseGPT decisions on later columns follow from earlier ones, and
        are not looked at from the first near tie on.
    """
    out, width = score.shape
    bits, right_bits = (np.unpackbits(x.astype(np.uint8), axis=1) for x in (keep, truth))
    if (bits[:, width:] != right_bits[:, width:]).any():  # what fills a byte up
        return ()
    found, right = (x[:, :width].astype(np.bool_) for x in (bits, right_bits))
    slack = np.broadcast_to(np.asarray(relative), score.shape)
    if group >= 0:
        rows = (-1, group or width)
        a, b, by, off = (x.reshape(rows) for x in (found, right, score, slack))
        tied = near_ties(a, b, by, off).reshape(out, width)
        return positions(np.argwhere(tied)) if (tied == (found != right)).all() else ()
    start = int(np.argmax((found != right).any(axis=0))) // -group * -group
    some = slice(start, start - group)
    a, b, by, off = (x[:, some].reshape(1, -1) for x in (found, right, score, slack))
    tied = near_ties(a, b, by, off)
    places = np.argwhere(tied.reshape(out, -1)) + np.array([0, start])
    return positions(places) if (tied == (a != b)).all() else ()


def turnable(truth: Array, score: Array, group: int, relative: Array) -> int:
    """How many decisions lie within a relative error of going the other way, and are no equals.

    Args:
        truth: The right ones, packed bits of keep.
        score: Scores behind them, [out, in].
        group: Width of a group, 0 for rows, negative for columns of all rows.
        relative: How far two scores may be off together, at most 1; of each input, or of all.

    Returns:
        Their number.
    """
    width = score.shape[1]
    keep = np.unpackbits(truth.astype(np.uint8), axis=1, count=width).astype(np.bool_)
    every = (keep, score, *reach(score, relative))
    if group >= 0:
        parts = [[x.reshape(-1, group or width) for x in every]]
    else:
        starts = range(0, width, -group)
        parts = [[x[:, i : i - group].reshape(1, -1) for x in every] for i in starts]
    count = 0
    for stays, by, low, high in parts:
        lowest = np.min(np.where(stays, low, inf), axis=1, keepdims=True)
        highest = np.max(np.where(stays, 0.0, high), axis=1, keepdims=True)
        last = np.min(np.where(stays, by, inf), axis=1, keepdims=True)
        best = np.max(np.where(stays, 0.0, by), axis=1, keepdims=True)
        near = np.where(stays, low <= highest, high >= lowest)
        near &= np.where(stays, by != best, by != last)  # equal ones are told apart by place
        count += int(near.sum())
    return count
