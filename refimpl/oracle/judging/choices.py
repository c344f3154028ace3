"""Discrete steps: which of them may go either way, because rounding cannot tell.

A decision, a count or an outlier is a comparison. Where what is compared lies within rounding, a
candidate may see it the other way round, and both are right.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import second_moments
from refimpl.pruners.compensation import compensated, inverse_factor
from refimpl.pruners.counts import split_count, total_count
from refimpl.pruners.scores import wanda_score
from refimpl.pruners.sparsegpt import WIDTH, hessian
from refimpl.running.memory import parse_memory
from refimpl.running.threads import Workers
from refimpl.scoring.dense_statistics import dense_squares

Bools = npt.NDArray[np.bool_]
Ties = tuple[tuple[int, ...], ...]
"""Places of near ties; none if a difference is more than that."""


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
    return positions(np.argwhere(counts != truth)) if explained else ()


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
        if abs(found - right) < 0.5:
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
    return positions(np.argwhere(turned)) if (rest <= allowed * size).all() else ()


def positions(found: Array) -> Ties:
    """Places, [n, dimensions], as tuples."""
    return tuple(map(tuple, found.tolist()))
