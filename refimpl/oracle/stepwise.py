"""Each step from the case's own values, so that what goes wrong at one is not carried to the next.

A candidate that is fed these values makes no choice that a later step depends on. What it is fed
for which step is in docs/how-to/check.md. Everything is computed by the functions that the
commands call.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import base_allocation, linear_counts
from refimpl.evaluation.likelihood import RunningSoftmax
from refimpl.method import perturbation as push
from refimpl.method.absorption import absorption_coefficient, known_mean, surviving_drift
from refimpl.method.correction import clipped_log, corrected
from refimpl.method.projection import project
from refimpl.model.floating_point import loud
from refimpl.model.forward import INSIDE, Weights, block, head
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import INPUT_OF, block_with_sums, sum_of_squares
from refimpl.oracle.case import Case
from refimpl.oracle.fed import Fed
from refimpl.oracle.rounding import Rounded, RoundedModel
from refimpl.pruners.compensation import compensated
from refimpl.pruners.decision import Bools, Goal, Method, Pruner, decision
from refimpl.pruners.pattern import parse_pattern
from refimpl.pruners.scores import wanda_score
from refimpl.pruners.sparsegpt import WIDTH, hessian
from refimpl.pruning.pruned_blocks import CALIBRATED
from refimpl.pruning.pruned_files import PrunedLinear, stored_weight
from refimpl.running.threads import Workers
from refimpl.scoring.dense_statistics import profile, spectra

Named = Iterator[tuple[str, Array]]


def stepwise_steps(case: Case, dtype: npt.DTypeLike = np.float64) -> dict[str, Array]:
    """Compute every step of a case from the case's own values.

    Args:
        case: From `read_case`.
        dtype: Of the computation, float32 or float64; statistics and scores are float64.

    Returns:
        Arrays by name, as `steps` returns them; scores and products of all blocks.

    Source:
        ours (docs/how-to/check.md says what each step is fed).

    Example:
        >>> from refimpl.oracle.case import read_case
        >>> case = read_case("fixtures/cases/llama")
        >>> made = stepwise_steps(case)
        >>> bool((made["owl.counts"] == case.expected["owl.counts"]).all())
        True
    """
    return dict(_steps(Fed(case, case.model, dtype, None)))


def rounded_stepwise_steps(case: Case, kind: type[Rounded]) -> dict[str, Array]:
    """Compute every step of a case from the case's own values, rounded.

    Args:
        case: From `read_case`.
        kind: How numbers are rounded, as in `rounded_steps`.

    Returns:
        Plain arrays by name, as `stepwise_steps` returns them.

    Source:
        ours.
    """
    known = {field.name: getattr(case.model, field.name) for field in fields(Model)}
    fed = Fed(case, RoundedModel(**known, kind=kind), kind.held, kind)
    return {name: np.asarray(value) for name, value in _steps(fed)}


def _steps(fed: Fed) -> Named:
    """All of them, each as soon as it is known."""
    recipe, config = fed.case.recipe, fed.model.config
    fed.model.check_finite(fed.dtype)
    with loud(fed.dtype):
        yield from _forward(fed)
        yield from _experiment(fed)
        yield from _allocations(fed)
        counts = fed.case.expected[f"{recipe.bases[0]}.counts"].tolist()
        for name in ("wanda", "sparsegpt"):
            yield from _pruned(fed, name, counts)
        if recipe.pattern:
            goals = [[parse_pattern(recipe.pattern)] * len(config.linear_shapes)]
            yield from _pruned(fed, "pattern", goals * config.num_blocks)
        last = fed.state(f"blocks.{config.num_blocks - 1}.resid_post")
        yield "dense.perplexity", _perplexity(fed, last)


def _forward(fed: Fed) -> Named:
    """The trace points, and the signals of what the linears read on the way."""
    model, config = fed.model, fed.model.config
    yield "embed", fed.embedded()
    squares: list[dict[str, Array]] = []
    for i, place in enumerate(fed.places):
        found: dict[str, Array] = {}

        def observe(name: str, value: Array, found: dict[str, Array] = found) -> Array:
            return found.setdefault(name, value)

        x, weights = fed.state(f"blocks.{i}.resid_pre"), model.block(i, fed.dtype)
        block(x, weights, replace(place, observe=observe), config)
        squares.append({x: sum_of_squares(found[x]) for x in dict.fromkeys(INPUT_OF.values())})
        yield from ((f"blocks.{i}.{x}", y) for x, y in found.items() if x not in INSIDE)

    ended: dict[str, Array] = {}

    def next_one(name: str, value: Array) -> Array:
        ended[name] = value
        return fed.state(name)

    last = fed.state(f"blocks.{config.num_blocks - 1}.resid_post")
    head(last, model.head(fed.dtype), config, next_one)
    yield from ended.items()

    m, statistic, fit, xmin = fed.options
    with Workers() as workers:
        dense = profile(model, squares, len(fed.ids), workers, fed.dtype, m, statistic)
        yield "owl.signal", dense.owl_outlier_percent
        yield "dlp.signal", dense.dlp_score
        if "alphapruning" in fed.case.recipe.bases:
            laws = spectra(model, workers, fit, xmin)
            yield "alphapruning.signal", np.array([[law.alpha for law in row] for row in laws])


def _experiment(fed: Fed) -> Named:
    """Each block's push, on its way from the case's clean states, and measured against them."""
    config = fed.model.config
    clean = [fed.state(f"blocks.{i}.resid_post") for i in range(config.num_blocks)]
    weights = [fed.model.block(i, fed.dtype) for i in range(config.num_blocks)]
    ratios = []
    for i, noise in enumerate(fed.case.inputs["noise"]):
        ways = [
            list(_followed(fed, i, [x[n] for x in clean[i:]], noise[n], weights))
            for n in range(len(fed.ids))
        ]
        for j, name in enumerate(("drift", "alignment")):
            found = [[known_mean(point[j]) for point in way] for way in ways]
            yield f"perturbed.{i}.{name}", known_mean(np.array(found), axis=0)
        ratios.append([known_mean(surviving_drift(way[-1][0], way[0][0])) for way in ways])
    coefficient, _ = absorption_coefficient(np.array(ratios).T[:, None])
    yield "absorption_coefficient", coefficient


def _followed(
    fed: Fed, first: int, clean: Sequence[Array], noise: Array, weights: Sequence[Weights]
) -> Iterator[tuple[Array, Array]]:
    """Drift and alignment of one pushed sequence, after the block and every later one."""
    recipe = fed.case.recipe
    kept = push.kept_tokens(clean[0], recipe.sink)
    h = push.perturbed(clean[0], noise, recipe.eta, kept, recipe.noise_scale, recipe.noise_shape)
    for k, state in enumerate(clean, first):
        if k > first:
            h = block(h[None], weights[k], fed.places[k], fed.model.config)[0]
        found = push.deviation(h, state, kept, recipe.norm)
        yield found.drift, found.alignment


def _allocations(fed: Fed) -> Named:
    """Bases from signals, corrections from these and coefficients, counts from corrections."""
    config, recipe, blocks = fed.model.config, fed.case.recipe, fed.model.config.num_blocks
    signals = fed.signals({})
    whole, linears = np.full(blocks, fed.sizes.sum()), tuple(config.linear_shapes)
    logarithms = clipped_log(fed.number("absorption_coefficient"))
    for name in recipe.bases:
        base = base_allocation(signals, recipe.request(name), blocks, linears, fed.sizes)
        yield f"{name}.base", project(base, whole, recipe.sparsity)
        yield (
            f"{name}.corrected",
            corrected(
                base, logarithms, np.arange(blocks), whole, recipe.sparsity,
                recipe.strength, recipe.max_correction,
            ),
        )  # fmt: skip
        final = fed.number(f"{name}.corrected")
        yield f"{name}.counts", linear_counts(final, fed.sizes, recipe.sparsity)


def _pruned(fed: Fed, name: str, goals: Sequence[Sequence[Goal]]) -> Named:
    """One pruner, block by block: the blocks before carry the case's decisions."""
    model, config = fed.model, fed.model.config
    method: Method = "sparsegpt" if name == "sparsegpt" else "wanda"
    kind = "products" if method == "sparsegpt" else "squares"
    pruner, sequences = Pruner(method, fed.case.recipe.damping), len(fed.ids)
    x = fed.embedded()
    for i, place in enumerate(fed.places):
        prefix, weights = f"{name}.blocks.{i}", model.block(i, fed.dtype)
        _, sums = block_with_sums(CALIBRATED[method], x, weights, place, config)
        yield from ((f"{prefix}.{point}.{kind}", total) for point, total in sums.items())
        carried = dict(weights)
        for linear, goal in zip(config.linear_shapes, goals[i], strict=True):
            step, point = f"{prefix}.{linear}", f"{prefix}.{INPUT_OF[linear]}.{kind}"
            dense, total = weights[f"{linear}.weight"], sums[INPUT_OF[linear]]
            if point in fed.case.expected:
                total = fed.number(point)
            if method == "wanda":
                yield f"{step}.score", wanda_score(dense, total / sequences)
            keep, _ = decision(dense, total, sequences, goal, pruner)
            yield f"{step}.keep", np.packbits(keep, axis=1)
            right = fed.keep(f"{step}.keep", dense.shape)
            new = _rewritten(fed, name, i, linear, dense, right, total)
            yield f"{step}.weight", new
            shown = method == "sparsegpt" and f"{step}.weight" in fed.case.expected
            carried[f"{linear}.weight"] = fed.state(f"{step}.weight") if shown else new
        x = block(x, carried, place, config)
    yield f"{name}.perplexity", _perplexity(fed, x)


def _rewritten(
    fed: Fed, name: str, index: int, linear: str, dense: Array, keep: Bools, total: Array
) -> Array:
    """A linear's weights once it is decided which of them stay, in the dtype of the computation."""
    if name != "sparsegpt":
        return np.where(keep, dense, np.zeros((), dense.dtype))

    def decide(score: Array, start: int) -> Bools:
        return keep[:, start : start + score.shape[1]]

    damping, h = fed.case.recipe.damping, hessian(total, len(fed.ids))
    new = compensated(dense, h, decide, WIDTH, damping, WIDTH).weight
    return stored_weight(fed.model, index, linear, PrunedLinear(keep, new)).astype(dense.dtype)


def _perplexity(fed: Fed, x: Array) -> Array:
    """``exp`` of the mean nats per predicted token, from the states after the last block, [1]."""
    logits = head(x, fed.model.head(fed.dtype), fed.model.config)[:, :-1]
    found = RunningSoftmax.start(fed.ids[:, 1:].ravel())
    found = found.add(logits.reshape(-1, logits.shape[-1]), 0)
    return np.exp([-found.log_probabilities.mean()])
