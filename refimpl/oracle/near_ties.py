"""Near ties: where a candidate's choices differ from the truth, if rounding explains that."""

import fnmatch
from collections.abc import Iterator, Mapping
from math import inf

import numpy as np

from refimpl.model.experts import ROUTER, preferences, route
from refimpl.model.ops import Array
from refimpl.oracle import measures
from refimpl.oracle.case import FACTOR
from refimpl.oracle.dense_steps import RATIO, Keep, linear_of, sums_behind, unpacked
from refimpl.oracle.measures import EPS, ERROR_FACTOR, FLOOR_16, Positions, error_of, tolerance_of
from refimpl.oracle.truth import Start, Truth, moved_by_rounding
from refimpl.pruners.counts import parse_pattern, pattern_keep, split_count, total_count

TIE_SHARE = 1e-3  # largest share of a linear's decisions that may be near ties, and two more
BIAS = "router.correction"


def ties_of(truth: Truth, step: str, array: Array) -> Positions:
    """Where a discrete step differs; none if rounding does not explain all of them."""
    right, recipe = truth.values[step], truth.recipe
    first, last = step.split(".")[0], step.rsplit(".", 1)[-1]
    if last == "counts":
        name, sizes = shares_behind(truth, step), truth.model.config.linear_sizes
        shares = truth.value(name)
        return count_ties(array, right, shares, sizes, recipe.sparsity, truth.tolerance(name))
    if step == "owl.signal":  # a score on the line may fall on either side
        off = np.abs(array - right) / 100 * truth.model.config.block_sizes
        return positions(np.argwhere(off > 0.5)) if (off < 1.5).all() else ()
    if step.endswith(ROUTER):
        router = _Router(truth, step, truth.start_of(step))
        mine = unpacked(array, router.experts.num_experts)
        turned = (mine != router.truth).any(axis=-1)
        explained = router.chosen(np.where(mine, 1, -1) * router.slack) == mine
        most = 2 + ERROR_FACTOR * truth.own_error(step)
        rounding = explained[turned].all() and turned.sum() <= most
        return positions(np.argwhere(turned)) if rounding else ()
    if last == "keep":
        if first == "sparsegpt_pattern":  # later groups were decided after the candidate's choice
            score, group, slack = score_behind(truth, step, array)
            rule = pattern_keep(score, parse_pattern(recipe.pattern))
            right = np.packbits(rule, axis=1)
        else:
            score, group, slack = score_behind(truth, step)
        found = keep_ties(array, right, score, group, np.minimum(slack, 1.0))
        most = 2 + max(TIE_SHARE * score.size, ERROR_FACTOR * truth.own_error(step))
        return found if len(found) <= most else ()
    if first == "sparsegpt" and last == "weight":
        stored = truth.model.weights[step.removeprefix("sparsegpt.")].stored.numpy_dtype
        if EPS[stored.name] > EPS[truth.computed_in]:
            found = rounding_ties(array, right, stored, truth.tolerance(step))
            slack = score_behind(truth, step.replace(".weight", ".keep"))[2]
            share = min(slack.max(), 1.0) / EPS[stored.name]
            most = max(2, TIE_SHARE * right.size, right.size * share)
            return found if len(found) <= most else ()
    return ()


def shares_behind(truth: Truth, step: str) -> str:
    """The step with the sparsities that counts are made of."""
    name = step.removesuffix(".counts")
    return f"{truth.recipe.bases[0]}.base" if name == "pruned" else f"{name}.corrected"


def without_rounding(truth: Truth) -> Mapping[str, Array]:
    """The arrays, with the right drift and coefficient where both drifts are 0 but for rounding."""
    expected, values, arrays = truth.case.expected, truth.values, dict(truth.actual)
    states = [k for k in expected if k.endswith(".resid_post")]  # of two right passes
    own, dtype, ratio = truth.own_errors() if states else {}, truth.computed_in, f"pruned.{RATIO}"
    floor = 2 * max((tolerance_of(k, expected[k], own[k], dtype) for k in states), default=0.0)
    for name in fnmatch.filter(values.keys() & arrays.keys(), "pruned.*.drift"):
        right, found = values[name], arrays[name]
        if not right.max() <= floor or right.shape != found.shape or not (found >= 0).all():
            continue
        if not found.max() <= floor or expected[name].max() > measures.UNCHANGED:
            continue
        other, block = name.replace("drift", "alignment"), int(name.split(".")[1])
        if other in arrays and other in values:
            lost, unit = measures.lost(arrays[other].astype(np.float64)).max(), arrays[other].dtype
            kept = lost <= floor**2 + 4 * EPS.get(unit.name, 0.0)
            arrays[other] = values[other] if kept else arrays[other]
        arrays[name], some = right, arrays.get(ratio)
        if some is not None and found.any() and some.shape == values[ratio].shape:
            arrays[ratio] = np.where(np.arange(len(some)) == block, values[ratio], some)
    return arrays


def score_behind(truth: Truth, step: str, decided: Array | None = None) -> tuple[Array, int, Array]:
    """Scores [out, in] behind a decision, their group, and relative errors, [in] or of all.

    An input that carries less than most is off by as much more of itself: the rounding of what it
    is made of is of the size of the others.
    """
    sums, (pruner, block, _) = sums_behind(step), linear_of(step)
    score, group = truth.scores(step, decided)
    sequential = pruner.startswith("sparsegpt")
    if pruner == "magnitude" or (sums in truth.given and not sequential):
        return score, group, np.array([_of_scores(truth)])
    if not sequential:
        total = truth.value(sums)
        slack, size = _of_scores(truth, truth.own_errors()[sums]), np.sqrt(total)
        typical = np.sqrt(total.mean())
    else:
        own = truth.own_errors(truth.start_of(step))[f"{FACTOR}{block}"]
        slack = tolerance_of(f"{step}score", np.zeros(1), own, truth.computed_in)
        slack += moved_by_rounding(truth.case, step, truth.computed_in)
        if group < 0:
            return score, group, np.array([slack])
        # A weight is off by what those before it in the row left of themselves: small ones by more.
        size, typical = np.sqrt(score), np.sqrt(score.mean(axis=1, keepdims=True))
    small = np.divide(typical, size, out=np.full(size.shape, inf), where=size > 0)
    return score, group, slack * np.maximum(small, 1.0)


def _of_scores(truth: Truth, own: float = 0.0) -> float:
    """The tolerance of scores whose statistics have this error of refimpl's own."""
    return tolerance_of("score", np.zeros(1), own, truth.computed_in)


class _Router:
    """How far logits ``z = w x`` of a router may be off, as x [D] is by t, in any direction.

    ``t ||w|| ||x|| / sqrt(D) + 4 eps |z| + 4 eps |s + b| / (ds / dz)``: scores s are rounded, too.
    """

    def __init__(self, truth: Truth, step: str, start: Start = "chained") -> None:
        experts, dtype = truth.model.config.experts, truth.computed_in
        assert experts is not None
        self.experts = experts
        norm, self.logits, self.truth, self.weights = truth.router(step)
        x, own = truth.value(norm), 0.0 if start == "stepwise" else truth.own_errors(start)[norm]
        w = np.linalg.norm(self.weights["router.weight"], axis=1)
        sizes = w * np.linalg.norm(x, axis=-1, keepdims=True)
        rounding = FLOOR_16 * EPS[dtype] * np.abs(self.logits)
        self.slack = tolerance_of(norm, x, own, dtype) / x.shape[-1] ** 0.5 * sizes + rounding
        if experts.scoring != "sparsemixer":
            score, correction = preferences(self.logits, experts, None)[1], self.weights.get(BIAS)
            slope = score * (1 - score) if experts.scoring == "sigmoid" else score
            compared = score if correction is None else np.abs(score + correction)
            steps = compared / np.maximum(slope, EPS["float64"] * compared)
            self.slack += FLOOR_16 * EPS[dtype] * steps

    def chosen(self, change: Array) -> Keep:
        """The experts that are chosen if the logits change by so much."""
        chosen: Keep = route(self.logits + change, self.experts, self.weights)[0]
        return chosen


def follows_a_choice(truth: Truth, step: str) -> bool:
    """Whether a step in 16 bits follows from experts that were not written, and may be others."""
    names = list(truth.case.expected)
    before = [x for x in names[: names.index(step)] if x.endswith(ROUTER)]
    mixed = truth.model.config.experts
    unsure = mixed is not None and mixed.scoring == "sparsemixer"  # whose shares have edges, too
    lacks = any(unsure or x not in truth.given for x in before)
    return lacks and EPS[truth.computed_in] > EPS["float32"]


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
