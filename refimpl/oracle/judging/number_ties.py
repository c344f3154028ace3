"""Near ties of counts, outliers and stored weights, which rounding may turn either way."""

from collections.abc import Iterator

import numpy as np

from refimpl.model.ops import Array
from refimpl.oracle.judging.measures import Positions
from refimpl.pruners.counts import split_count, total_count


def count_ties(
    counts: Array, truth: Array, sparsity: Array, sizes: Array, target: float, relative: float
) -> Positions:
    """Where counts [L, linears] differ, if sparsities [L] that are off by `relative` explain it.

    The largest remainder rounds quotas q to n if and only if n sums to the budget and
    ``max(q - n) - min(q - n) <= 1`` (docs/explanation/method.md, section 5).
    """
    per_block, whole = [int(n) for n in counts.sum(axis=1)], int(sizes.sum())
    if (
        sum(per_block) != total_count(target, whole * len(truth))
        or not all(0 <= n <= whole for n in per_block)
        or any((split_count(n, sizes) != x).any() for n, x in zip(per_block, counts, strict=True))
    ):
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
    share: float,
) -> Positions:
    """Blocks where OWL's outliers differ, if the scores that make the difference are near ties.

    Percentages are [L], and need no tie if their relative error is `allowed`. Scores are off by
    `relative`, and so is their mean, which an outlier exceeds m times. At most a `share` of a
    block's scores, and always two, may be near ties.
    """
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
    rest, size = (np.linalg.norm(x, axis=1) for x in (np.where(turned, 0.0, missed), truth))
    return positions(np.argwhere(turned)) if (rest <= allowed * size).all() else ()


def positions(indices: Array) -> Positions:
    """Indices [n, dimensions] as tuples."""
    return tuple(map(tuple, indices.tolist()))
