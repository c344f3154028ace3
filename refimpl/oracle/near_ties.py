"""Near ties: where a candidate's choices differ from the truth, if rounding explains that."""

from collections.abc import Callable
from functools import partial
from math import inf

import numpy as np

from refimpl.model.experts import ROUTER, preferences, route
from refimpl.model.mixers.parts import affine
from refimpl.model.ops import Array
from refimpl.model.stream import input_of
from refimpl.oracle.case import FACTOR
from refimpl.oracle.dense_steps import Keep, sparsegpt_scores, unpacked
from refimpl.oracle.measures import EPS, ERROR_FACTOR, FLOOR_16, Positions, error_of, tolerance_of
from refimpl.oracle.truth import Truth, is_experiment, moved_by_rounding
from refimpl.pruners.counts import parse_pattern, pattern_keep
from refimpl.pruners.magnitude import magnitude_keep
from refimpl.pruners.sparsegpt import WIDTH
from refimpl.pruners.wanda import wanda_keep, wanda_score

TIE_SHARE = 1e-3  # largest share of a linear's decisions that may be near ties, and two more
BIAS = "router.correction"
Rule = Callable[[Array], Array]
"""A decision [out, in] on scores, or counts [L, linears] of sparsities."""


def ties_of(truth: Truth, step: str, array: Array) -> Positions:
    """Where a discrete step differs; none if rounding does not explain all of them."""
    right = truth.values[step]
    first, last = step.split(".")[0], step.rsplit(".", 1)[-1]
    if last == "counts":
        name = f"{truth.recipe.bases[0]}.base" if first == "pruned" else f"{first}.corrected"
        shares = truth.number(name)
        slack = truth.tolerance(name) * shares.max()
        return count_ties(array, shares, truth.model.config.linear_sizes, slack, truth.counts)
    if step == "owl.signal":  # a score on the line may fall on either side
        off = np.abs(array - right) / 100 * truth.model.config.block_sizes
        return positions(off > 0.5) if (off < 1.5).all() else ()
    if step.endswith(ROUTER):
        return router_ties(truth, step, array)
    if last == "keep":
        score, slack, rule = score_behind(truth, step, array)
        keep = unpacked(array, score.shape[1])
        if not np.array_equal(np.packbits(keep, axis=1), array):  # what fills a byte up
            return ()
        found = keep_ties(keep, score, np.minimum(slack, 1.0), rule)
        most = 2 + max(TIE_SHARE * score.size, ERROR_FACTOR * truth.own_error(step))
        return found if len(found) <= most else ()
    if first == "sparsegpt" and last == "weight":
        stored = truth.model.weights[step.removeprefix("sparsegpt.")].stored.numpy_dtype
        if EPS[stored.name] > EPS[truth.computed_in]:
            found = rounding_ties(array, right, stored, truth.tolerance(step))
            return found if len(found) <= max(2, right.size // 4) else ()
    return ()


def score_behind(truth: Truth, step: str, decided: Array) -> tuple[Array, Array, Rule]:
    """Scores [out, in] behind a decision, their relative errors, [in] or of all, and the rule.

    Scores of SparseGPT follow from the decisions before them, packed bits. An input that carries
    less than most is off by as much more of itself: the rounding of what it is made of is of the
    size of the others.
    """
    pruner, _, block, rest = step.split(".", 3)
    linear = rest.removesuffix(".keep")
    kind = "products" if pruner.startswith("sparsegpt") else "squares"
    sums = f"{pruner}.blocks.{block}.{input_of(linear)}.{kind}"
    of_scores = partial(tolerance_of, "score", np.zeros(1), dtype=truth.computed_in)
    weight = truth.model.weights[f"blocks.{block}.{linear}.weight"].read(np.float64)
    columns, width = weight.shape[1], WIDTH
    right = unpacked(truth.values[step], columns)
    rule: Rule = partial(wanda_keep, count=int((~right).sum()))
    if pruner.endswith("pattern"):
        pattern = parse_pattern(truth.recipe.pattern)
        rule, width = partial(pattern_keep, pattern=pattern), pattern.group
    elif pruner.startswith("sparsegpt"):
        rule = partial(lowest, right, WIDTH)
    elif pruner == "magnitude":
        return np.abs(weight), np.array([of_scores(own=0.0)]), partial(lowest, right, columns)
    total = truth.value(sums)
    if not pruner.startswith("sparsegpt"):
        score = wanda_score(weight, total / len(truth.ids))
        if sums in truth.given:
            return score, np.array([of_scores(own=0.0)]), rule
        slack = of_scores(own=truth.own_errors()[sums])
        size = np.sqrt(total)
        typical = np.sqrt(total.mean())
    else:
        keep = unpacked(decided, columns)
        how = keep, truth.recipe.damping, width
        score, _ = sparsegpt_scores(weight, total, len(truth.ids), *how)
        own = truth.own_errors(truth.start_of(step))[f"{FACTOR}{block}"]
        slack = tolerance_of(f"{step}score", np.zeros(1), own, truth.computed_in)
        slack += moved_by_rounding(truth.case, step, truth.computed_in)
        if width == WIDTH:
            return score, np.array([slack]), rule
        # A weight is off by what those before it in the row left of themselves: small ones by more.
        size = np.sqrt(score)
        typical = np.sqrt(score.mean(axis=1, keepdims=True))
    small = np.divide(typical, size, out=np.full(size.shape, inf), where=size > 0)
    return score, slack * np.maximum(small, 1.0), rule


def lowest(right: Keep, width: int, score: Array) -> Keep:
    """The lowest scores of every so many columns go, as many there as in the right decision."""
    parts = [slice(i, i + width) for i in range(0, right.shape[1], width)]
    return np.hstack([magnitude_keep(score[:, x], int((~right[:, x]).sum())) for x in parts])


def router_ties(truth: Truth, step: str, array: Array) -> Positions:
    """The tokens that go to other experts, if logits ``z = w x`` within rounding lead there.

    x [D] may be off by t in any direction, and scores s are rounded, too, so z by
    ``t ||w|| ||x|| / sqrt(D) + 4 eps |z| + 4 eps |s + b| / (ds / dz)``.
    """
    index = int(step.split(".")[1])
    experts = truth.model.config.experts
    assert experts is not None
    weights = truth.model.block(index, np.float64)
    norm = step.replace(ROUTER, truth.model.config.blocks[index].mlp_reads[-1])
    x = truth.value(norm)
    start, own = truth.start_of(step), 0.0
    if start != "stepwise":
        own = truth.own_errors(start)[norm]
    units = FLOOR_16 * EPS[truth.computed_in]
    logits = affine(x, weights, "router")
    w = np.linalg.norm(weights["router.weight"], axis=1)
    slack = tolerance_of(norm, x, own, truth.computed_in) / x.shape[-1] ** 0.5 * w
    slack = slack * np.linalg.norm(x, axis=-1, keepdims=True)
    slack += units * np.abs(logits)
    if experts.scoring != "sparsemixer":
        score = preferences(logits, experts, None)[1]
        correction = weights.get(BIAS)
        slope = score * (1 - score) if experts.scoring == "sigmoid" else score
        compared = score if correction is None else np.abs(score + correction)
        slack += units * compared / np.maximum(slope, EPS["float64"] * compared)
    mine = unpacked(array, experts.num_experts)
    right = unpacked(truth.values[step], experts.num_experts)
    turned = (mine != right).any(axis=-1)
    explained = route(logits + np.where(mine, 1, -1) * slack, experts, weights)[0] == mine
    most = 2 + ERROR_FACTOR * truth.own_error(step)
    return positions(turned) if explained[turned].all() and turned.sum() <= most else ()


def follows_a_choice(truth: Truth, step: str) -> bool:
    """Whether a step follows from other experts: in 16 bits from those that were not written.

    Experiments are those of the case, so they follow from its experts.
    """
    names = list(truth.case.expected)
    before = [x for x in names[: names.index(step)] if x.endswith(ROUTER)]
    mixed = truth.model.config.experts
    unsure = mixed is not None and mixed.scoring == "sparsemixer"  # whose shares have edges, too
    lacks = any(unsure or x not in truth.given for x in before)
    turned = [x for x in before if not np.array_equal(truth.value(x), truth.case.expected[x])]
    others = bool(turned) and is_experiment(step)
    return others or (lacks and EPS[truth.computed_in] > EPS["float32"])


def keep_ties(keep: Keep, score: Array, relative: float | Array, rule: Rule) -> Positions:
    """Where decisions [out, in] differ from a rule's, if it makes them of scores that near.

    Those that stay score ``score / sqrt(1 - relative)``, the others ``score sqrt(1 - relative)``.
    """
    half = np.broadcast_to(np.sqrt(1 - np.asarray(relative)), score.shape)
    high = np.divide(score, half, out=np.full(score.shape, inf), where=half > 0)
    moved = np.where(keep, high + np.finfo(float).tiny, score * half)  # equal scores of 0, too
    return positions(rule(score) != keep) if (rule(moved) == keep).all() else ()


def count_ties(counts: Array, shares: Array, sizes: Array, slack: float, rule: Rule) -> Positions:
    """Where counts [L, linears] differ from a rule's, if it makes them of sparsities that near.

    Each sparsity [L] moves towards that of the block's counts, as far as it may be off.
    """
    if not ((counts >= 0) & (counts <= sizes)).all():
        return ()
    goals = counts.sum(axis=1) / np.maximum(sizes.sum(axis=1), 1)
    explained = rule(np.clip(goals, shares - slack, shares + slack)) == counts
    return positions(rule(shares) != counts) if explained.all() else ()


def rounding_ties(
    weight: Array, truth: Array, stored: np.dtype[np.generic], allowed: float
) -> Positions:
    """Where weights [out, in] are one unit of the file's dtype off, if the rest is as allowed."""
    unit = np.abs(np.spacing(truth.astype(stored)).astype(np.float64))
    missed = np.abs(weight.astype(np.float64) - truth)
    turned = (missed > unit / 2) & (missed <= unit * 1.01)
    rest, _, _ = error_of("sparsegpt.weight", np.where(turned, truth, weight), truth)
    return positions(turned) if rest <= allowed else ()


def positions(where: Keep) -> Positions:
    """Indices of what is true, as tuples."""
    return tuple(map(tuple, np.argwhere(where).tolist()))
