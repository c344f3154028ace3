"""The steps of the method: the experiment, the allocation made of it, and what one linear loses."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refimpl.allocation.allocate import allocate, base_allocation, logarithms
from refimpl.allocation.request import Noise, Perturbation, Probes, Request
from refimpl.explanation.forward_steps import Functions
from refimpl.explanation.shown_values import Figure, Step, Values
from refimpl.method import correction, equal_marginals, perturbation, projection
from refimpl.method.absorption import (
    absorption_coefficient,
    nan_mean,
    passed_on,
    surviving_drift,
)
from refimpl.model import ops, stream
from refimpl.model.forward import block
from refimpl.pruners import counts
from refimpl.pruners.decision import decision
from refimpl.pruners.wanda import WANDA, wanda_keep, wanda_score
from refimpl.scoring.base_signals import MeasuredBases
from refimpl.scoring.score import score

# Pages of the tutorial.
PERTURB, ABSORPTION, DIVERGENCE = "2-drift", "3-coefficient", "7-divergence"
_BASES, ALLOCATION, PRUNE = "4-bases", "5-correction", "6-prune"


def method_steps(plan: Perturbation, request: Request) -> list[Step]:
    """From a perturbation of the block to the weights that its first linear loses."""
    pruned: Functions = (wanda_keep, wanda_score, block)
    perturb: Functions = (
        perturbation.perturbed,
        perturbation.noise,
        perturbation.included_tokens,
    )
    if isinstance(plan, Probes):
        perturb = pruned if plan.pruner_options.record is WANDA else (decision, block)
    divergence = (
        (perturbation.RunningDivergence,) if request.correct == "divergence" else ()
    )
    ranked = [
        x
        for base, _ in MeasuredBases.of(request).bases.values()
        for x in base.formulas[:-1]
    ]
    exact, fixed = (
        request.compat == "exact",
        request.correct is not None and not request.measured,
    )
    growth = equal_marginals.equal_marginals, equal_marginals.growth
    whole = counts.counts, counts.split_count
    base = request.record.formulas[-1:] or (base_allocation,)
    move = correction.correction, _logarithm(request)
    ratio = surviving_drift, passed_on, nan_mean, absorption_coefficient
    steps = (
        Step("perturb", PERTURB, perturb, _perturbed),
        Step("drift", PERTURB, (perturbation.deviation, block), _drift),
        Step("ratio", ABSORPTION, ratio, _ratio),
        Step(
            "coefficient",
            ABSORPTION,
            (absorption_coefficient, *divergence, score),
            _coefficient,
        ),
        Step("signals", _BASES, (wanda_score, *ranked), _signals),
        Step("base", _BASES, base, _base),
        Step("growth", DIVERGENCE, growth if request.measured else (), _growth),
        Step("correction", ALLOCATION, move if exact and fixed else (), _correction),
        Step(
            "projection",
            ALLOCATION,
            (projection.project,) if exact else (),
            _projection,
        ),
        Step("counts", ALLOCATION, whole if exact else (allocate,), _counts),
        Step(WANDA.name, PRUNE, (*pruned[:2], stream.sum_of_squares), _wanda),
        Step("loss", PRUNE, (ops.linear, perturbation.deviation), _loss),
    )
    return [x for x in steps if x.functions]


def _logarithm(request: Request) -> Callable[..., Any]:
    """What makes logarithms of the numbers that a correction is made of."""
    return (
        correction.clipped_log
        if request.correct == "absorption"
        else correction.centred_log
    )


def _perturbed(v: Values) -> Iterator[Figure]:
    """The block's output on the first sequence, clean and perturbed, [S, D]."""
    h, perturbed = (
        v.leaving[0].stream[0],
        v.after(v.index + 1, v.addresses)[1][0].h.stream[0],
    )
    if isinstance(v.plan, Noise):
        yield Figure("eta", v.plan.etas[0])
        yield Figure(
            "noise",
            perturbation.noise(v.plan.seed, 0, v.index, 0, h.shape),
            "first draw",
        )
    yield Figure("h_l", h)
    yield Figure("h'_l", perturbed)
    size = perturbation.deviation(perturbed, h, v.included[0]).drift
    yield Figure("||e_t|| / ||h_t||", size, "per token, as rounded to the dtype")
    if v.plan.sink == "exclude":
        yield Figure(
            "tokens left out", int(sum((~mask).sum() for mask in v.included)), "sinks"
        )


def _drift(v: Values) -> Iterator[Figure]:
    """How far the perturbed states are from the clean ones, from this block on."""
    note = f"after blocks {v.index} to {v.config.num_blocks - 1}, means"
    states, _ = v.followed
    for name, attribute in (("R_k", "drift"), ("A_k", "alignment")):
        means = np.array(
            [[getattr(state, attribute) for state in draws] for draws in states]
        )
        yield Figure(name, nan_mean(nan_mean(means, axis=1), axis=0), note)
    yield Figure("R_L", states[0][0].last, "per token, at the end")


def _ratio(v: Values) -> Iterator[Figure]:
    """The share of the drift that is left at the end: per token, and its means."""
    states, _ = v.followed
    ratios = np.array(
        [[state.measures().ratios for state in draws] for draws in states]
    )
    (r, growth, passed), (stderr, _, _) = absorption_coefficient(ratios)
    yield Figure(
        "R_L / R_l", surviving_drift(states[0][0].last, states[0][0].first), "per token"
    )
    yield Figure("mean", ratios[..., 0], "[sequences, draws]")
    yield Figure("r_l", float(r))
    yield Figure(
        "stderr", float(stderr), "over the sequences" if len(v.ids) > 1 else "takes two"
    )
    yield Figure("g_l", float(growth), "growth of the error itself, ||e_L|| / ||e_l||")
    yield Figure(
        "p_l", float(passed), "if later blocks passed it on, ||h_l|| / ||h_L||"
    )


def _coefficient(v: Values) -> Iterator[Figure]:
    """The coefficients of all blocks, [L], and the divergences if they are measured."""
    result = v.scores.sweep[0]
    yield Figure("r", result.coefficient, "per block")
    yield Figure("stderr", result.stderr)
    yield Figure(
        "g", result.error_growth, "growth of the error itself; r is the mean of g p"
    )
    yield Figure("p", result.passed_on, "if later blocks passed the error on unchanged")
    if result.divergence is not None:
        yield Figure("KL", result.divergence, "nats")


def _signals(v: Values) -> Iterator[Figure]:
    """Wanda's scores in this block, and what each base ranks the blocks by."""
    means = [
        wanda_score(v.weights[f"{name}.weight"], c).mean()
        for name, c in v.moments.items()
    ]
    yield Figure("mean M", np.array(means), f"per linear of block {v.index}")
    for base, options in MeasuredBases.of(v.request).bases.values():
        if (signal := v.scores.signals.get(base.name)) is not None:
            yield Figure(base.symbol, signal.main, base.unit.format(**options))


def _base(v: Values) -> Iterator[Figure]:
    """The base allocation, before it is projected on the budget."""
    base = base_allocation(v.scores.signals, v.request, v.config.linears)
    yield Figure("S", v.request.sparsity)
    yield Figure("base", base, "per block" if base.ndim == 1 else "[blocks, linears]")


def _correction(v: Values) -> Iterator[Figure]:
    """What a fixed strength makes of the coefficients or divergences, [L]."""
    request, result = v.request, v.scores.sweep[0]
    u, strength = logarithms(result, request.correct), request.fixed_strength
    delta, c = correction.correction(u, strength, request.max_correction)
    yield Figure("u", u)
    yield Figure("Delta", delta)
    yield Figure("c", c, f"strength {strength:g}, at most {request.max_correction:g}")


def _growth(v: Values) -> Iterator[Figure]:
    """What measured strength makes of the probes, [L]."""
    grows = v.allocation.growth
    assert grows is not None  # the strength is measured
    probed = int(np.isfinite(grows.rate).sum())
    yield Figure(
        "a", grows.level, f"{v.request.correct} at the base's sparsity, per block"
    )
    yield Figure(
        "kappa", grows.rate, "per probed block; the allocation uses the median"
    )
    yield Figure("residual", grows.residual, "of ln D at the base's sparsity")
    yield Figure("fits", int(grows.fits.sum()), f"of {probed} probed blocks")


def _projection(v: Values) -> Iterator[Figure]:
    """The allocation on its budget."""
    result = v.allocation
    yield Figure("base", result.base_sparsity, "projected alone")
    yield Figure("s", result.corrected_sparsity, "per block")
    spent = float(
        (result.linear_sparsity * v.scores.linear_sizes).sum() / result.total_weights
    )
    yield Figure("sum N_l s_l / N", spent, f"asked for {v.request.sparsity:g}")


def _counts(v: Values) -> Iterator[Figure]:
    """The allocation in whole weights."""
    result = v.allocation
    yield Figure("n_l", result.num_pruned, "per block")
    yield Figure("n_j", result.linear_pruned[v.index], f"per linear of block {v.index}")
    yield Figure("Z", result.total_pruned, f"of {result.total_weights:,}")


def _wanda(v: Values) -> Iterator[Figure]:
    """The first linear's scores and the decision on its weights, [out, in]."""
    yield Figure("c", v.moments[v.linear], "per input")
    yield Figure("M", wanda_score(v.weight, v.moments[v.linear]))
    yield Figure("keep", v.keep.astype(np.int64), "1 stays, 0 goes")
    yield Figure("pruned", int((~v.keep).sum()), f"of {v.keep.size:,}")


def _loss(v: Values) -> Iterator[Figure]:
    """What the decision changes in the linear's output, and what the scores predict."""
    x = v.points[stream.input_of(v.linear)]
    x = np.reshape(x, (1, -1, x.shape[-1]))  # an expert's tokens are in one row
    y, left = (ops.linear(x, w)[0] for w in (v.weight, np.where(v.keep, v.weight, 0)))
    everyone = np.ones(len(y), np.bool_)
    yield Figure("R", perturbation.deviation(left, y, everyone).drift, "per token")
    error = float(np.square(left - y, dtype=np.float64).sum())
    alone = wanda_score(v.weight, stream.sum_of_squares(x))
    yield Figure("squared error", error, "over the tokens of the first sequence")
    predicted = float(np.square(alone[~v.keep]).sum())
    yield Figure("predicted", predicted, "sum of M^2 of removed weights, same tokens")
