"""A candidate checked against a case, step by step; where it differs, if rounding explains that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, Literal

import numpy as np

from refimpl.arguments import checked
from refimpl.errors import RefimplError
from refimpl.model.experts import ROUTER, preferences, route
from refimpl.model.mixers.parts import affine
from refimpl.model.ops import Array
from refimpl.model.stream import input_of
from refimpl.oracle import measures
from refimpl.oracle.case import FACTOR, Case
from refimpl.oracle.case_folders import FACTS, NEXT, matching
from refimpl.oracle.dense_steps import Keep, sparsegpt_scores, unpacked
from refimpl.oracle.diagnosis import diagnosis
from refimpl.oracle.measures import (
    EPS,
    ERROR_FACTOR,
    Positions,
    StepResult,
    kind_of,
    tolerance_of,
)
from refimpl.oracle.truth import (
    Truth,
    is_experiment,
    moved_by_rounding,
    own_errors,
    truth_of,
)
from refimpl.pruners.counts import parse_pattern, pattern_keep
from refimpl.pruners.magnitude import magnitude_keep
from refimpl.pruners.sparsegpt import WIDTH
from refimpl.pruners.wanda import wanda_keep, wanda_score

Verdict = Literal["pass", "fail", "not judged"]
TIE_SHARE = (
    1e-3  # largest share of a linear's decisions that may be near ties, and two more
)
Rule = Callable[[Array], Array]
"""A decision [out, in] on scores, or counts [L, linears] of sparsities."""
EXIT: Mapping[Verdict, int] = {"pass": 0, "fail": 1, "not judged": 3}


@dataclass(frozen=True)
class Report:
    """The judgement on each step that was asked for, in the order of execution.

    `unknown` are the candidate's names that are no step, `uncovered` steps that its names do not
    cover. `options` are those of the command that read it.
    """

    case: Case
    dtype: str
    steps: tuple[StepResult, ...]
    unknown: tuple[str, ...]
    uncovered: tuple[str, ...] = ()
    options: str = ""

    @property
    def first(self) -> StepResult | None:
        """The first divergent step: where to look, as later ones may only follow it."""
        return next((step for step in self.steps if step.status == "divergent"), None)

    @property
    def verdict(self) -> Verdict:
        """Whether all steps that the dtype resolves agree, and of each kind one at least."""
        if self.first is not None:
            return "fail"
        right = all(step.status in ("pass", "unresolved") for step in self.steps)
        return "pass" if right and not self.unjudged_kinds else "not judged"

    @property
    def unjudged_kinds(self) -> list[str]:
        """Kinds of which no step was judged, of blocks with one mixer, or MLPs alike."""

        def of(step: str) -> tuple[str, Any]:
            parts = step.split(".")
            block = (
                parts[0] == "blocks" and self.case.model.config.blocks[int(parts[1])]
            )
            alike = block and (
                block.mixture if parts[2] == "mlp_out" else type(block.mixer)
            )
            return kind_of(step), alike

        judged = {of(x.step) for x in self.steps if x.status in ("pass", "divergent")}
        left = (x.step for x in self.steps if of(x.step) not in judged)
        return list(dict.fromkeys(map(kind_of, left)))


@checked
def check(
    case: Case,
    actual: Mapping[str, Any],
    only: tuple[str, ...] = ("*",),
    dtype: str | None = None,
) -> Report:
    """Check a candidate's arrays against a case, each step on what it wrote for earlier ones.

    Args:
        case: From `read_case`.
        actual: The candidate's arrays, or torch tensors, by the names of the steps.
        only: Steps that are asked for, as shell patterns; every one that matches must be there.
        dtype: The candidate's dtype; the coarsest of its float arrays if None.

    Raises:
        RefimplError: No step asked for, or a dtype that is not compared.

    Example:
        >>> from refimpl.oracle.case import read_case
        >>> case = read_case("fixtures/cases/llama")
        >>> actual = {**case.expected, "blocks.2.v": -case.expected["blocks.2.v"]}
        >>> check(case, case.expected).verdict, check(case, actual).first.step
        ('pass', 'blocks.2.v')
    """
    wanted = matching(case.expected, only)
    if not wanted:
        raise RefimplError(
            f"`only={' '.join(only)}`: no step of the case matches",
            f"names such as {', '.join([*case.expected][:3])}, or patterns such as 'blocks.*'",
            f"choose from the steps in the case's {FACTS}",
        )
    actual = {name: measures.array_of(x) for name, x in actual.items()}
    dtype = dtype or measures.coarsest(actual)
    if dtype not in EPS:
        problem = (
            f"dtype {dtype} is not supported"
            if dtype
            else "the candidate has no float array"
        )
        step = "add `dtype`, or write the results in the dtype of their computation"
        raise RefimplError(problem, f"arrays of {', '.join(EPS)}", step)
    narrow = dtype in measures.NARROW  # in which the forward alone is judged
    some = [
        name for name in wanted if not narrow or measures.stage_of(name) == "forward"
    ]
    truth = truth_of(
        case, actual, dtype, some if len(some) < len(case.expected) else None
    )
    if unknown := [x for x in some if x not in truth.values]:
        raise RefimplError(
            f"{case.folder}: its recipe does not compute the step {unknown[0]}",
            f"the steps of the recipe in {FACTS}",
            NEXT,
        )
    results = list[StepResult]()
    for name in wanted:
        numbers = (
            (truth.own_error(name), truth.tolerance(name))
            if name in some
            else (inf, inf)
        )
        right = truth.values[name] if name in some else case.expected[name]
        result = measures.step_result(name, actual, right, *numbers)
        wrong = result.status == "divergent"
        if wrong and not result.fault and (near := ties_of(truth, name, actual[name])):
            result = replace(result, status="pass", near_ties=near)
        elif name in truth.given and follows_a_choice(truth, name, wrong):
            fault = "a token at a router's edge may have gone to another expert"
            result = replace(result, status="conditional", fault=fault)
        if result.status == "divergent" and all(
            x.status != "divergent" for x in results
        ):
            result = replace(result, diagnose=partial(diagnosis, truth, result))
        results.append(result)
    return Report(
        case, dtype, tuple(results), tuple(sorted(actual.keys() - case.expected.keys()))
    )


def ties_of(truth: Truth, step: str, array: Array) -> Positions:
    """Where a discrete step differs; none if rounding does not explain all of them."""
    right = truth.values[step]
    first, last = step.split(".")[0], step.rsplit(".", 1)[-1]
    if last == "counts":
        name = (
            f"{truth.recipe.bases[0]}.base"
            if first == "pruned"
            else f"{first}.corrected"
        )
        shares = truth.number(name)
        slack = truth.tolerance(name) * shares.max()
        return count_ties(array, shares, truth.config.linear_sizes, slack, truth.counts)
    if step == "owl.signal":  # a score on the line may fall on either side
        off = np.abs(array - right) / 100 * truth.config.block_sizes
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


def score_behind(
    truth: Truth, step: str, decided: Array
) -> tuple[Array, float | Array, Rule]:
    """Scores [out, in] behind a decision, their relative errors, [in] or of all, and the rule.

    Scores of SparseGPT follow from the decisions before them, packed bits. An input that carries
    less than most is off by as much more of itself: the rounding of what it is made of is of the
    size of the others.
    """
    pruner, _, block, rest = step.split(".", 3)
    linear = rest.removesuffix(".keep")
    kind = "products" if pruner.startswith("sparsegpt") else "squares"
    sums = f"{pruner}.blocks.{block}.{input_of(linear)}.{kind}"
    of_scores = partial(
        tolerance_of, f"{step}score", np.zeros(1), dtype=truth.computed_in
    )
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
        return np.abs(weight), of_scores(own=0.0), partial(lowest, right, columns)
    total = truth.value(sums)
    if not pruner.startswith("sparsegpt"):
        score = wanda_score(weight, total / len(truth.ids))
        if sums in truth.given:
            return score, of_scores(own=0.0), rule
        slack = of_scores(own=own_errors(truth.case, truth.computed_in)[sums])
        size = np.sqrt(total)
        typical = np.sqrt(total.mean())
    else:
        keep = unpacked(decided, columns)
        how = len(truth.ids), keep, truth.recipe.damping, width
        score, _ = sparsegpt_scores(weight, total, *how)
        own = own_errors(truth.case, truth.computed_in, truth.start_of(step))
        slack = of_scores(own=own[f"{FACTOR}{block}"])
        slack += moved_by_rounding(truth.case, step, truth.computed_in)
        if width == WIDTH:
            return score, slack, rule
        # A weight is off by what those before it in the row left of themselves: small ones by more.
        size = np.sqrt(score)
        typical = np.sqrt(score.mean(axis=1, keepdims=True))
    small = np.divide(typical, size, out=np.full(size.shape, inf), where=size > 0)
    return score, slack * np.maximum(small, 1.0), rule


def lowest(right: Keep, width: int, score: Array) -> Keep:
    """The lowest scores of every so many columns go, as many there as in the right decision."""
    parts = [slice(i, i + width) for i in range(0, right.shape[1], width)]
    return np.hstack(
        [magnitude_keep(score[:, x], int((~right[:, x]).sum())) for x in parts]
    )


def router_ties(truth: Truth, step: str, array: Array) -> Positions:
    """The tokens that go to other experts, if logits ``z = w x`` within rounding lead there.

    x [D] may be off by t in any direction, and scores s are rounded, too, so z by
    ``t ||w|| ||x|| / sqrt(D) + 4 eps |z| + 4 eps |s + b| / (ds / dz)``.
    """
    index = int(step.split(".")[1])
    experts = truth.config.experts
    assert experts is not None
    weights = truth.model.block(index, np.float64)
    norm = step.replace(ROUTER, truth.config.blocks[index].mlp_reads[-1])
    x = truth.value(norm)
    start, dtype = truth.start_of(step), truth.computed_in
    own = 0.0 if start == "stepwise" else own_errors(truth.case, dtype, start)[norm]
    units = measures.FLOOR_16 * EPS[dtype]
    logits = affine(x, weights, "router")
    w = np.linalg.norm(weights["router.weight"], axis=1)
    slack = tolerance_of(norm, x, own, dtype) / x.shape[-1] ** 0.5 * w
    slack = slack * np.linalg.norm(x, axis=-1, keepdims=True)
    slack += units * np.abs(logits)
    if experts.scoring != "sparsemixer":
        score = preferences(logits, experts, None)[1]
        correction = weights.get("router.correction")
        slope = score * (1 - score) if experts.scoring == "sigmoid" else score
        compared = score if correction is None else np.abs(score + correction)
        slack += units * compared / np.maximum(slope, EPS["float64"] * compared)
    mine = unpacked(array, experts.num_experts)
    right = unpacked(truth.values[step], experts.num_experts)
    turned = (mine != right).any(axis=-1)
    explained = (
        route(logits + np.where(mine, 1, -1) * slack, experts, weights)[0] == mine
    )
    most = 2 + ERROR_FACTOR * truth.own_error(step)
    return positions(turned) if explained[turned].all() and turned.sum() <= most else ()


def follows_a_choice(truth: Truth, step: str, wrong: bool) -> bool:
    """Whether a step follows from other experts: in 16 bits, from those that were not written.

    A wrong one may also follow from shares with edges. Experiments are those of the case, so they
    follow from its experts.
    """
    behind = truth.behind(step)
    mixed = truth.config.experts
    if truth.computed_in in measures.NARROW:
        unsure = wrong and mixed is not None and mixed.scoring == "sparsemixer"
        unsure = unsure and any(x.endswith("mlp_out") for x in {step, *behind})
        return unsure or any(x.endswith(ROUTER) for x in behind)
    expected = truth.case.expected if wrong and is_experiment(step) else {}
    routers = (x for x in expected if x.endswith(ROUTER))
    return any(not np.array_equal(truth.value(x), expected[x]) for x in routers)


def keep_ties(
    keep: Keep, score: Array, relative: float | Array, rule: Rule
) -> Positions:
    """Where decisions [out, in] differ from a rule's, if it makes them of scores that near.

    Those that stay score ``score / sqrt(1 - relative)``, the others ``score sqrt(1 - relative)``.
    """
    half = np.broadcast_to(np.sqrt(1 - np.asarray(relative)), score.shape)
    high = np.divide(score, half, out=np.full(score.shape, inf), where=half > 0)
    moved = np.where(
        keep, high + np.finfo(float).tiny, score * half
    )  # equal scores of 0, too
    return positions(rule(score) != keep) if (rule(moved) == keep).all() else ()


def count_ties(
    counts: Array, shares: Array, sizes: Array, slack: float, rule: Rule
) -> Positions:
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
    rest, _, _ = measures.error_of(
        "sparsegpt.weight", np.where(turned, truth, weight), truth
    )
    return positions(turned) if rest <= allowed else ()


def positions(where: Keep) -> Positions:
    """Indices of what is true, as tuples."""
    return tuple(map(tuple, np.argwhere(where).tolist()))
