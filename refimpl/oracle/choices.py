"""Discrete steps: which of them may go either way, because rounding cannot tell.

A decision, a count or an outlier is a comparison. Where what is compared lies within rounding, a
candidate may see it the other way round, and both are right.
"""

from collections.abc import Iterator
from math import inf

import numpy as np
import numpy.typing as npt

from refimpl.jobs.execution import Workers, parse_memory
from refimpl.jobs.profile import dense_squares
from refimpl.model.checkpoint import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import second_moments
from refimpl.pruning.compensation import compensated, inverse_factor
from refimpl.pruning.counts import split_count, total_count
from refimpl.pruning.scores import wanda_score
from refimpl.pruning.sparsegpt import WIDTH, hessian

Bools = npt.NDArray[np.bool_]
Ties = tuple[tuple[int, ...], ...]
"""Places of near ties; none if a difference is more than that."""


def near_ties(keep: Bools, truth: Bools, score: Array, relative: float) -> Bools:
    """Which decisions may go either way: their score lies within rounding of the row's threshold.

    A weight that should go may stay if its score is within ``relative`` of the lowest that stays in
    its row, and one that should stay may go if it is as near to the highest that goes; as many of
    a row have to stay as should. Where some rows lose one weight more than others, those whose
    next candidate scores lowest, two rows may change places whose candidates are as near.

    Args:
        keep: The candidate's decision, [rows, n].
        truth: The right one, [rows, n].
        score: Scores that are compared with each other, row by row, [rows, n], at least 0.
        relative: How far scores may be off.

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
    near = 1 - relative
    lowest = np.min(np.where(truth, score, inf), axis=1, keepdims=True)
    highest = np.max(np.where(truth, 0.0, score), axis=1, keepdims=True)
    could_stay = ~truth & (score >= near * lowest)
    could_go = truth & (highest >= near * score)
    more = keep.sum(axis=1, keepdims=True) - truth.sum(axis=1, keepdims=True)

    stay = truth.sum(axis=1, keepdims=True)
    favoured = stay < stay.max()  # these lose one more
    last = np.max(np.where(favoured, highest, 0.0))  # of their candidates
    next_one = np.min(np.where(favoured, inf, lowest))
    spared = favoured & (more == 1) & (highest >= near * next_one)
    instead = ~favoured & favoured.any() & (more == -1) & (last >= near * lowest)
    could_stay |= spared & ~truth & (score >= near * highest)
    could_go |= instead & truth & (lowest >= near * score)
    rows = (more == 0) | ((spared | instead) & (more.sum() == 0))
    return (keep != truth) & (could_stay | could_go) & rows


def keep_ties(keep: Array, truth: Array, score: Array, group: int, relative: float) -> Ties:
    """Where two decisions differ, if all of these places are near ties.

    Args:
        keep: The candidate's decision, bits, [out, in / 8].
        truth: The right one, bits.
        score: Scores, [out, in].
        group: How many consecutive inputs are compared with each other; a row if 0; of all rows
            together, as in SparseGPT, if negative.
        relative: How far scores may be off.

    Returns:
        Places, [out, in]. In SparseGPT decisions on later columns follow from earlier ones, and
        are not looked at from the first near tie on.
    """
    out, width = score.shape
    bits, right_bits = (np.unpackbits(x.astype(np.uint8), axis=1) for x in (keep, truth))
    if (bits[:, width:] != right_bits[:, width:]).any():  # what fills a byte up
        return ()
    found, right = (x[:, :width].astype(np.bool_) for x in (bits, right_bits))
    if group >= 0:
        rows = (-1, group or width)
        a, b, by = (x.reshape(rows) for x in (found, right, score))
        tied = near_ties(a, b, by, relative).reshape(out, width)
        return _places(np.argwhere(tied)) if (tied == (found != right)).all() else ()
    start = int(np.argmax((found != right).any(axis=0))) // -group * -group
    some = slice(start, start - group)
    a, b, by = (x[:, some].reshape(1, -1) for x in (found, right, score))
    tied = near_ties(a, b, by, relative)
    places = np.argwhere(tied.reshape(out, -1)) + np.array([0, start])
    return _places(places) if (tied == (a != b)).all() else ()


def count_ties(
    counts: Array, truth: Array, sparsity: Array, sizes: Array, target: float, relative: float
) -> Ties:
    """Where two counts differ, if rounding of the sparsities explains it.

    Quotas q within ``relative`` of the right ones are rounded to n by the largest remainder if and
    only if n sums to the budget and ``max(q - n) - min(q - n) <= 1`` for some of them.

    Args:
        counts: The candidate's, [L, linears].
        truth: The right ones, [L, linears].
        sparsity: The right sparsities, [L].
        sizes: Weights of each linear of a block, [linears].
        target: Sparsity over all weights.
        relative: How far sparsities may be off.

    Returns:
        Blocks and linears.

    Source:
        ours, from docs/explanation/method.md, section 5.

    Example:
        >>> truth, other = np.array([[1], [0]]), np.array([[0], [1]])
        >>> near, far = np.array([0.10001, 0.1]), np.array([0.11, 0.09])
        >>> [count_ties(other, truth, x, np.array([5]), 0.1, 1e-3) for x in (near, far)]
        [((0, 0), (1, 0)), ()]
    """
    per_block = [int(n) for n in counts.sum(axis=1)]
    whole = int(sizes.sum())
    if sum(per_block) != total_count(target, whole * len(truth)):
        return ()
    if not all(0 <= n <= whole for n in per_block):
        return ()
    if any((split_count(n, sizes) != row).any() for n, row in zip(per_block, counts, strict=True)):
        return ()
    quotas = sparsity * whole
    slack, missed = relative * quotas, quotas - np.array(per_block)
    explained = np.max(missed - slack) - np.min(missed + slack) <= 1
    return _places(np.argwhere(counts != truth)) if explained else ()


def outlier_ties(
    percent: Array,
    truth: Array,
    scores: Iterator[Array],
    m: float,
    allowed: float,
    relative: float,
    most: float,
) -> Ties:
    """Blocks where OWL's outliers differ, if the scores that make the difference are near ties.

    Args:
        percent: The candidate's, [L].
        truth: The right ones, [L].
        scores: Scores of each block.
        m: How many times their mean an outlier exceeds.
        allowed: Relative error of a percentage that needs no tie.
        relative: How far scores, and so their mean, may be off.
        most: Largest share of scores that may be near ties; always two.

    Returns:
        Blocks.
    """
    ties = []
    for i, score in enumerate(scores):
        size, line = score.size, m * score.mean()
        found, right = (x[i].astype(np.float64) * size / 100 for x in (percent, truth))
        slack = allowed * right  # of the quotient
        if abs(found - right) <= slack:
            continue
        fewest, largest = (np.sum(score > line * (1 + x)) for x in (2 * relative, -2 * relative))
        if not fewest - slack <= found <= largest + slack:
            return ()
        if abs(found - right) > max(2, most * size) + slack:
            return ()
        ties.append((i,))
    return tuple(ties)


def dense_scores(model: Model, ids: npt.NDArray[np.int64]) -> Iterator[Array]:
    """Wanda's scores of the dense model in float64, all linears of a block in one row.

    Args:
        model: From `read_model`.
        ids: Token ids, [N, S].

    Yields:
        Of each block.
    """
    with Workers() as workers:
        squares = dense_squares(model, ids, workers, parse_memory(None), np.float64)
    for i, sums in enumerate(squares):
        weights = model.block(i, np.float64)
        moments = second_moments(sums, len(ids), model.config)
        found = [wanda_score(weights[f"{name}.weight"], x) for name, x in moments.items()]
        yield np.concatenate([score.ravel() for score in found])


def sparsegpt_scores(
    weight: Array, products: Array, sequences: int, keep: Bools, damping: float
) -> Array:
    """SparseGPT's scores at the time of each decision, the decisions before it being these.

    Args:
        weight: Dense, [out, in].
        products: Sums of outer products, [in, in].
        sequences: Number of sequences they were summed over.
        keep: Decisions, [out, in].
        damping: Of the Hessian.

    Returns:
        Scores, [out, in].
    """
    score = np.empty(weight.shape)

    def decide(found: Array, start: int) -> Bools:
        some = slice(start, start + found.shape[1])
        score[:, some] = found
        return keep[:, some]

    compensated(weight, hessian(products, sequences), decide, WIDTH, damping, WIDTH)
    return score


def sparsegpt_error(products: Array, truth: Array, sequences: int, damping: float) -> float:
    """How far SparseGPT's scores are off through the Hessian: the worst of its factor's diagonal.

    Args:
        products: Sums of outer products, [in, in].
        truth: The right ones.
        sequences: Number of sequences they were summed over.
        damping: Of the Hessian.

    Returns:
        The relative error of ``diag(U)^2``.
    """
    scale, right = (
        np.square(np.diag(inverse_factor(hessian(x, sequences), damping)))
        for x in (products, truth)
    )
    return float(np.max(np.abs(scale / right - 1)))


def rounding_ties(
    weight: Array, truth: Array, stored: np.dtype[np.generic], allowed: float
) -> Ties:
    """Where weights differ, if each was rounded to a stored dtype the other way.

    Args:
        weight: The candidate's, [out, in].
        truth: The right ones, numbers of `stored`.
        stored: The file's dtype.
        allowed: Relative error of a row that needs no tie.

    Returns:
        Places of weights that are one unit in the last place off.

    Example:
        >>> truth, half = np.array([[1.0, 2.0]]), np.dtype(np.float16)
        >>> rounding_ties(truth + [0, 2**-9], truth, half, 1e-6)
        ((0, 1),)
        >>> rounding_ties(truth + [0, 2**-8], truth, half, 1e-6)
        ()
    """
    unit = np.abs(np.spacing(truth.astype(stored)).astype(np.float64))
    missed = np.abs(weight.astype(np.float64) - truth)
    turned = (missed > unit / 2) & (missed <= unit * 1.01)
    rest, size = (np.linalg.norm(x, axis=1) for x in (np.where(turned, 0.0, missed), truth))
    return _places(np.argwhere(turned)) if (rest <= allowed * size).all() else ()


def _places(found: Array) -> Ties:
    return tuple(map(tuple, found.tolist()))
