"""The steps from signals to an allocation, and to the weights that one linear loses."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refimpl.allocation.allocate import allocate, base_allocation
from refimpl.allocation.request import Request
from refimpl.explanation.shown_values import Values
from refimpl.explanation.step import Figure, Step
from refimpl.method import (
    allocation,
    correction,
    equal_marginals,
    perturbation,
    projection,
    signals,
)
from refimpl.model import ops, statistics
from refimpl.pruners import counts, scores
from refimpl.scoring.activation_signals import BlockScores

BASES: dict[str, tuple[str, Callable[..., Any]]] = {
    "uniform": ("s_l = S", allocation.uniform),
    "owl": (
        "d_l = 2 lam (D_l - min D) / (max D - min D)      s_l = S - d_l + mean d",
        allocation.owl,
    ),
    "dlp": (
        "imp = 1 - u / sum u      d = 2 a (imp - min) / (max - min)      s_l = S - d_l + mean d",
        allocation.dlp,
    ),
    "alphapruning": (
        "phi = (q - min) / (max - min) 2 eps + 1 - eps      s_l = phi_l S N / sum(N_l phi_l)",
        allocation.alphapruning,
    ),
    "lsa": (
        "imp = 1 - E / sum E      d = 2 beta (imp - min) / (max - min)      s_l = S - d_l + mean d",
        allocation.lsa,
    ),
    "atp": ("s_i = S - beta (L - 1) / 2 + i beta      i = 0..L-1", allocation.atp),
}
"""Formula and function of the base allocations."""

LOGARITHMS: dict[str, tuple[str, Callable[..., Any]]] = {
    "absorption": ("u_l = clip(log r_l, -log 3, log 3)", correction.clipped_log),
    "arrival": (
        "u_l = clip(log a_l - mean log a, -log 3, log 3)      a_l = E[R_L]",
        correction.centred_log,
    ),
    "divergence": (
        "u_l = clip(log a_l - mean log a, -log 3, log 3)      a_l = E[KL(p || p')]",
        correction.centred_log,
    ),
}
"""Formula and function of the logarithms that corrections are made from."""


def allocation_steps(request: Request) -> list[Step]:
    """From signals to whole numbers of weights."""
    asked: tuple[Callable[..., Any], ...] = ()
    more = ""
    if request.base == "alphapruning":
        asked = (signals.esd, signals.alphapruning_alpha)
        more = "\nalpha: tail exponent of the squared singular values"
    if request.base == "lsa":
        asked = (statistics.sum_of_outer_products, signals.lsa_error)
        more = "\nE: mean of sum over rows of ||X w||^2, w the half of a row that LSA takes"
    formula, function = BASES.get(request.base, ("s_u from the file", base_allocation))
    steps = [
        Step(
            "signals",
            "how important each block looks",
            "Published methods rank blocks by their weights and inputs alone, and ignore what "
            "later blocks do with the damage.",
            "M = |W| sqrt(c)\n"
            "D_l = 100 #{M > m mean M} / #M      u_l = mean M (OWL and DLP)" + more,
            (scores.wanda_score, signals.owl_outlier_percent, signals.dlp_score, *asked),
            _signals,
        ),
        Step(
            "base",
            f"the allocation to start from, {request.base}",
            "How much each block (or linear) loses, before absorption is taken into account.",
            formula,
            (function,),
            _base,
        ),
    ]
    if request.measured:
        steps.append(
            Step(
                "growth",
                "equal marginal errors",
                "Each block is pruned alone at three sparsities. Sparsity moves until one more "
                "weight costs the same error in every block.",
                "kappa_l = (ln D_l(s + delta) - ln D_l(s - delta)) / 2 delta      "
                "a_l = D_l(s)\n"
                "s_l = clip(s + (t - ln(kappa a_l / N_l)) / kappa, lo, min(hi, s + 2 delta))",
                (equal_marginals.growth, equal_marginals.equal_marginals),
                _growth,
            )
        )
    elif request.compat == "exact" and request.correct is not None:
        logarithm, function = LOGARITHMS[request.correct]
        steps.append(
            Step(
                "correction",
                "what is amplified is protected",
                "Sparsity moves from blocks whose damage grows to blocks whose damage fades, by a "
                "limited amount.",
                f"{logarithm}\nDelta_l = -(u_l - mean u)      "
                "c_l = clip(strength Delta_l, -max_correction, max_correction)",
                (function, correction.correction),
                _correction,
            )
        )
    if request.compat == "exact":
        steps.append(
            Step(
                "projection",
                "back onto the budget",
                "A correction may not change the total. The nearest allocation that meets the "
                "budget is a shift by one t, clipped.",
                "s_u = clip(base_u + c_u + t, lo, hi)      sum N_u s_u = S N",
                (projection.project, correction.corrected),
                _projection,
            )
        )
    why = (
        "Fractions become counts that add up to the weight: whole parts first, then one more for "
        "the largest remainders, over blocks and then over the linears of each."
    )
    rounded = "Z = round(S N)      n_l: s_l N_l, rounded      n_j: n_l N_j / N_l, rounded"
    functions: tuple[Callable[..., Any], ...] = (counts.counts, counts.split_count)
    if request.compat == "peer":
        why, rounded = "Rounded down row by row, as the peers do.", "int(C s) of each row"
        functions = (allocate,)
    return [*steps, Step("counts", "whole numbers of weights", why, rounded, functions, _counts)]


def pruning_steps(linear: str) -> list[Step]:
    """From a count to what one linear loses."""
    return [
        Step(
            "wanda",
            f"which weights of {linear} go",
            "A weight matters if it is large and if the input that it multiplies is large. Rows "
            "are outputs: each loses its lowest scores. (prune does the same after pruned blocks.)",
            "M = |W| sqrt(c)      c_j = sum over the tokens of x_j^2, per sequence",
            (statistics.sum_of_squares, scores.wanda_score, scores.wanda_keep, counts.row_count),
            _wanda,
        ),
        Step(
            "loss",
            f"what {linear} loses by it",
            "The same input through the remaining weights. If the inputs were uncorrelated, the "
            "squared error would be the sum of the squared scores of the pruned weights.",
            "y = W x      y' = (W * keep) x      R = ||y' - y|| / ||y||",
            (ops.linear, perturbation.deviation),
            _loss,
        ),
    ]


def _signals(v: Values) -> Iterator[Figure]:
    values, m = v.scores.signals, BlockScores(v.weights, v.moments)
    means = [float(one.mean()) for one in m]
    yield Figure("mean M", np.array(means), f"per linear of block {v.index}")
    yield Figure("D", values.owl_outlier_percent, f"percent per block, m {values.owl_m:g}")
    yield Figure("u", values.dlp_score, f"per block, {values.dlp_statistic}")
    if values.alpha is not None:
        yield Figure("alpha", values.alpha, "[blocks, linears]")
    if values.lsa_error is not None:
        yield Figure("E", values.lsa_error, f"per block, {values.lsa_block} columns at a time")


def _base(v: Values) -> Iterator[Figure]:
    base = base_allocation(v.scores.signals, v.request, v.config.linears)
    yield Figure("S", v.request.sparsity)
    yield Figure("base", base, "per block" if base.ndim == 1 else "[blocks, linears]")


def _correction(v: Values) -> Iterator[Figure]:
    request, result = v.request, v.scores.sweep[0]
    made_of = {
        "absorption": result.coefficient,
        "arrival": result.arrival,
        "divergence": result.divergence,
    }
    u = LOGARITHMS[str(request.correct)][1](made_of[str(request.correct)])
    scale = request.correction_scale
    strength = request.fixed_strength
    delta, c = correction.correction(u, strength, request.max_correction, scale)
    yield Figure("u", u)
    yield Figure("Delta", delta)
    yield Figure("c", c, f"strength {strength:g}, at most {request.max_correction:g}")
    yield Figure("at the clip", int(correction.at_clip(u).sum()), f"of {len(u)} blocks")


def _growth(v: Values) -> Iterator[Figure]:
    grows = v.allocation.growth
    assert grows is not None  # the strength is measured
    unit, number = "block", len(grows.fits)
    if grows.fits.ndim == 2:
        unit, number = "linear", int((v.scores.linear_sizes > 0).sum())
    used = "the median"
    if v.request.kappa == "own":
        used = f"that of each {unit} if it fits, else the median"
    yield Figure("a", grows.level, f"{v.request.correct} at the base's sparsity, per {unit}")
    yield Figure("kappa", grows.rate, f"per {unit}; the allocation uses {used}")
    yield Figure("residual", grows.residual, "of ln D at the base's sparsity")
    yield Figure("fits", int(grows.fits.sum()), f"of {number} {unit}s")


def _projection(v: Values) -> Iterator[Figure]:
    result = v.allocation
    yield Figure("base", result.base_sparsity, "projected alone")
    yield Figure("s", result.corrected_sparsity, "per block")
    spent = float((result.linear_sparsity * v.scores.linear_sizes).sum() / result.total_weights)
    yield Figure("sum N_l s_l / N", spent, f"asked for {v.request.sparsity:g}")


def _counts(v: Values) -> Iterator[Figure]:
    result = v.allocation
    yield Figure("n_l", result.num_pruned, "per block")
    yield Figure("n_j", result.linear_pruned[v.index], f"per linear of block {v.index}")
    yield Figure("Z", result.total_pruned, f"of {result.total_weights:,}")


def _wanda(v: Values) -> Iterator[Figure]:
    yield Figure("c", v.moments[v.linear], "per input")
    yield Figure("M", v.linear_score)
    yield Figure("keep", v.keep.astype(np.int64), "1 stays, 0 goes")
    yield Figure("pruned", int((~v.keep).sum()), f"of {v.keep.size:,}")
    magnitude = scores.magnitude_keep(scores.magnitude_score(v.weight), int((~v.keep).sum()))
    yield Figure("decided otherwise", int((magnitude != v.keep).sum()), "by magnitude alone")


def _loss(v: Values) -> Iterator[Figure]:
    x = v.points["attn_norm"]
    y, left = (ops.linear(x, w)[0] for w in (v.weight, np.where(v.keep, v.weight, 0)))
    everyone = np.ones(len(y), np.bool_)
    yield Figure("R", perturbation.deviation(left, y, everyone).drift, "per token")
    error = float(np.square(left - y, dtype=np.float64).sum())
    alone = scores.wanda_score(v.weight, statistics.sum_of_squares(x))
    yield Figure("squared error", error, "over the tokens of the first sequence")
    yield Figure(
        "foretold", float(np.square(alone[~v.keep]).sum()), "sum of M^2 of what went, same tokens"
    )
