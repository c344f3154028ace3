"""The steps of the experiment: a push, its way through the later blocks, and what is left of it."""

from collections.abc import Iterator

from refimpl.allocation.request import Request
from refimpl.explanation.step import Figure, Step
from refimpl.explanation.values import Values
from refimpl.method import absorption, perturbation
from refimpl.method.divergence import RunningDivergence
from refimpl.method.perturbation import Perturbation
from refimpl.model.forward import block
from refimpl.model.ops import Array
from refimpl.pruners import scores
from refimpl.scoring.score import score


def experiment_steps(plan: Perturbation, request: Request) -> list[Step]:
    """From a push to the absorption coefficients.

    Args:
        plan: The perturbation.
        request: Whether the divergence is measured.

    Returns:
        The steps.
    """
    divergence = request.correct == "divergence"
    return [
        _push(plan),
        Step(
            "drift",
            "followed through the later blocks",
            "Both states, pushed and clean, pass the same blocks. How far apart they are, relative "
            "to the clean one, and whether they still point the same way, is measured after each.",
            "h'_k = block_k(h'_{k-1})\n"
            "R_k = ||h'_k - h_k|| / ||h_k||      A_k = <h'_k, h_k> / (||h'_k|| ||h_k||)",
            (block, perturbation.deviation),
            _drift,
        ),
        Step(
            "ratio",
            "what is left of it",
            "The drift at the end over the drift where it was made: above 1 the blocks in between "
            "amplified the push, below 1 they absorbed it.",
            "R_L / R_l      per token, then the mean over tokens, draws and sequences",
            (absorption.surviving_drift, absorption.nan_mean, absorption.absorption_coefficient),
            _ratio,
        ),
        Step(
            "coefficient",
            "the same for every block",
            "Every block is pushed in turn. The last one has nothing behind it, so its r is 1.",
            "r_l = E[R_L / R_l]" + ("      E[KL(p || p')]" if divergence else ""),
            (score, absorption.absorption_coefficient, *([RunningDivergence] * divergence)),
            _coefficient,
        ),
    ]


def _push(plan: Perturbation) -> Step:
    """How the state after the block is changed."""
    if plan.kind == "pruning":
        return Step(
            "push",
            "the block itself, pruned",
            "The error of pruning this block alone, to its share of the base: no size to choose.",
            "h'_l = pruned_block_l(h_{l-1})",
            (scores.wanda_score, scores.wanda_keep, block),
            _pushed,
        )
    size = "||e_t|| = eta ||h_t||" if plan.noise_scale == "token" else "||e|| = eta ||h_l||"
    shape = "" if plan.noise_shape == "isotropic" else "      channel d times its deviation"
    return Step(
        "push",
        "the state after the block is pushed",
        "Pruning a block changes what it adds; noise of a known size stands in for that change.",
        f"h'_l = h_l + e      {size}{shape}",
        (perturbation.noise, perturbation.kept_tokens, perturbation.perturbed),
        _pushed,
    )


def _pushed(v: Values) -> Iterator[Figure]:
    h, pushed = v.leaving[0][0], v.pushed[0][0][0]
    if v.plan.kind == "gaussian":
        yield Figure("eta", v.plan.eta[0])
        yield Figure("noise", perturbation.noise(v.plan.seed, 0, v.index, 0, h.shape), "first draw")
    yield Figure("h_l", h)
    yield Figure("h'_l", pushed)
    size = perturbation.deviation(pushed, h, v.kept[0]).drift
    yield Figure("||e_t|| / ||h_t||", size, "per token, as rounded to the dtype")
    if v.plan.sink == "exclude":
        yield Figure("tokens left out", int(sum((~kept).sum() for kept in v.kept)), "sinks")


def _drift(v: Values) -> Iterator[Figure]:
    last = v.config.num_blocks - 1
    for name, x in (("R_k", v.followed.drift), ("A_k", v.followed.alignment)):
        yield Figure(name, mean_over_all(x), f"after blocks {v.index} to {last}, means")
    yield Figure("R_L", v.followed.drift[0, 0, -1], "per token, at the end")


def _ratio(v: Values) -> Iterator[Figure]:
    followed = v.followed
    share = absorption.surviving_drift(followed.drift[0, 0, -1], followed.drift[0, 0, 0])
    r, stderr = absorption.absorption_coefficient(followed.ratios)
    yield Figure("R_L / R_l", share, "per token")
    yield Figure("mean", followed.ratios, "[sequences, draws]")
    yield Figure("r_l", float(r))
    yield Figure("stderr", float(stderr), "over the sequences" if len(v.ids) > 1 else "takes two")


def _coefficient(v: Values) -> Iterator[Figure]:
    found = v.scores.sweep[0]
    yield Figure("r", found.coefficient, "per block")
    yield Figure("stderr", found.stderr)
    yield Figure("blocks that amplify", int((found.coefficient > 1).sum()))
    if found.divergence is not None:
        yield Figure("KL", found.divergence, "nats")


def mean_over_all(x: Array) -> Array:
    """Mean over tokens, then draws, then sequences, as `score` takes it.

    Args:
        x: Values, [N, R, ..., T].

    Returns:
        Means, [...].
    """
    mean = absorption.nan_mean
    return mean(mean(mean(x, axis=-1), axis=1), axis=0)
