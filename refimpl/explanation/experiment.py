"""The steps of the experiment: a perturbation, its drift through the later blocks, its ratio."""

from collections.abc import Iterator

import numpy as np

from refimpl.allocation.request import Request
from refimpl.explanation.shown_values import Values
from refimpl.explanation.step import Figure, Step
from refimpl.method import perturbation
from refimpl.method.absorption import absorption_coefficient, nan_mean, surviving_drift
from refimpl.method.divergence import RunningDivergence
from refimpl.method.perturbation import Perturbation
from refimpl.model.forward import block
from refimpl.pruners import scores
from refimpl.scoring.score import score


def experiment_steps(plan: Perturbation, request: Request) -> list[Step]:
    """The steps from a perturbation to the absorption coefficients."""
    divergence = request.correct == "divergence"
    return [
        _perturbation(plan),
        Step(
            "drift",
            "followed through the later blocks",
            "Both states, perturbed and clean, pass the same blocks. After each block, we measure "
            "how far apart they are, relative to the clean one, and whether they point the same "
            "way.",
            "h'_k = block_k(h'_{k-1})\n"
            "R_k = ||h'_k - h_k|| / ||h_k||      A_k = <h'_k, h_k> / (||h'_k|| ||h_k||)",
            (block, perturbation.deviation),
            _drift,
        ),
        Step(
            "ratio",
            "what is left of it",
            "The drift at the end divided by the drift at the perturbed block: above 1 the blocks "
            "in between amplified the perturbation, below 1 they absorbed it.",
            "R_L / R_l      per token, then the mean over tokens, draws and sequences",
            (surviving_drift, nan_mean, absorption_coefficient),
            _ratio,
        ),
        Step(
            "coefficient",
            "the same for every block",
            "Every block is perturbed, one after the other. No block follows the last, so its r is "
            "1.",
            "r_l = E[R_L / R_l]" + ("      E[KL(p || p')]" if divergence else ""),
            (score, absorption_coefficient, *([RunningDivergence] * divergence)),
            _coefficient,
        ),
    ]


def _perturbation(plan: Perturbation) -> Step:
    """How the state after the block is changed."""
    if plan.kind == "pruning":
        return Step(
            "push",
            "the block itself, pruned",
            "The error of pruning this block alone, to its share of the base: no size to choose.",
            "h'_l = pruned_block_l(h_{l-1})",
            (scores.wanda_score, scores.wanda_keep, block),
            _perturbed,
        )
    size = "||e_t|| = eta ||h_t||" if plan.noise_scale == "token" else "||e|| = eta ||h_l||"
    size = size if plan.noise_norm == "exact" else f"{size} in expectation"
    shape = "" if plan.noise_shape == "isotropic" else "      channel d times its deviation"
    return Step(
        "push",
        "the state after the block is perturbed",
        "Pruning a block changes what it adds; noise of a known size stands in for that change.",
        f"h'_l = h_l + e      {size}{shape}",
        (perturbation.noise, perturbation.kept_tokens, perturbation.perturbed),
        _perturbed,
    )


def _perturbed(v: Values) -> Iterator[Figure]:
    h, perturbed = v.leaving[0][0], v.started(0, 0).h[0]
    if v.plan.kind == "gaussian":
        yield Figure("eta", v.plan.eta[0])
        yield Figure("noise", perturbation.noise(v.plan.seed, 0, v.index, 0, h.shape), "first draw")
    yield Figure("h_l", h)
    yield Figure("h'_l", perturbed)
    size = perturbation.deviation(perturbed, h, v.kept[0]).drift
    yield Figure("||e_t|| / ||h_t||", size, "per token, as rounded to the dtype")
    if v.plan.sink == "exclude":
        yield Figure("tokens left out", int(sum((~kept).sum() for kept in v.kept)), "sinks")


def _drift(v: Values) -> Iterator[Figure]:
    note = f"after blocks {v.index} to {v.config.num_blocks - 1}, means"
    states, _ = v.followed
    for name, attribute in (("R_k", "drift"), ("A_k", "alignment")):
        means = np.array([[getattr(state, attribute) for state in draws] for draws in states])
        yield Figure(name, nan_mean(nan_mean(means, axis=1), axis=0), note)
    yield Figure("R_L", states[0][0].last, "per token, at the end")


def _ratio(v: Values) -> Iterator[Figure]:
    states, _ = v.followed
    ratios = np.array([[state.measures().ratio for state in draws] for draws in states])
    r, stderr = absorption_coefficient(ratios)
    yield Figure("R_L / R_l", surviving_drift(states[0][0].last, states[0][0].first), "per token")
    yield Figure("mean", ratios, "[sequences, draws]")
    yield Figure("r_l", float(r))
    yield Figure("stderr", float(stderr), "over the sequences" if len(v.ids) > 1 else "takes two")


def _coefficient(v: Values) -> Iterator[Figure]:
    result = v.scores.sweep[0]
    yield Figure("r", result.coefficient, "per block")
    yield Figure("stderr", result.stderr)
    yield Figure("blocks that amplify", int((result.coefficient > 1).sum()))
    if result.divergence is not None:
        yield Figure("KL", result.divergence, "nats")
