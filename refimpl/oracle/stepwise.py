"""Each step from the case's own values, so that an error at one is not carried to the next.

A candidate that is fed these values makes no choice that a later step depends on. The values that
each step is computed from are in docs/how-to/check.md. Everything is computed by the functions that
the commands call.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import base_allocation, linear_counts
from refimpl.evaluation.likelihood import RunningSoftmax
from refimpl.method import perturbation as experiment
from refimpl.method.absorption import absorption_coefficient, nan_mean, surviving_drift
from refimpl.method.correction import clipped_log, corrected
from refimpl.method.projection import project
from refimpl.model.floating_point import loud
from refimpl.model.forward import INSIDE, Place, Weights, block, embed, head, places
from refimpl.model.ops import Array
from refimpl.model.statistics import block_with_sums, input_of, inputs_of, sum_of_squares
from refimpl.oracle.case import Case
from refimpl.oracle.judging.pruner_scores import Keep, unpacked
from refimpl.oracle.rounding import RoundedArray, RoundedModel
from refimpl.pruners.compensation import compensated
from refimpl.pruners.decision import Goal, Method, Pruner, decision
from refimpl.pruners.pattern import parse_pattern
from refimpl.pruners.scores import wanda_score
from refimpl.pruners.sparsegpt import WIDTH, hessian
from refimpl.pruning.calibration import CALIBRATED
from refimpl.pruning.pruned_linears import stored_weight
from refimpl.running.settings import Settings
from refimpl.scoring.activation_signals import activation_signals
from refimpl.scoring.dense_statistics import wanda_moments
from refimpl.scoring.spectra import power_laws


@dataclass(frozen=True, eq=False)
class StepInputs:
    """The values of a case as a computation in some dtype reads them.

    Args:
        dtype: Of the computation, float32 or float64.
        rounded: How its numbers are rounded further; None for not at all.
    """

    case: Case
    dtype: npt.DTypeLike = np.float64
    rounded: type[RoundedArray] | None = None

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """Token ids, [N, S]."""
        return self.case.inputs["token_ids"]

    @cached_property
    def places(self) -> list[Place]:
        """The tokens' place, as each block sees it."""
        config = self.case.model.config
        by_kind = places(np.arange(self.ids.shape[1]), config, self.dtype)
        return [by_kind[kind] for kind in config.blocks]

    @cached_property
    def embedded(self) -> Array:
        """The states before the first block, [N, S, D]."""
        model, positions = self.case.model, np.arange(self.ids.shape[1])
        return embed(self.ids, positions, model.embedding(), model.config, self.dtype)

    def base(self, name: str, others: Mapping[str, Array]) -> Array:
        """A base allocation [L] of the case's signals, or others, before it is projected."""
        config, recipe = self.case.model.config, self.case.recipe
        signals = {x: self.number(x) for x in self.case.expected if x.endswith(".signal")}
        every, request = recipe.signals(signals | dict(others)), recipe.request(name)
        return base_allocation(every, request, config.linears)

    def projected(self, base: Array) -> Array:
        """A base allocation [L] on the recipe's budget."""
        return project(base, self.case.model.config.block_sizes, self.case.recipe.sparsity)

    def corrected(self, base: Array, coefficients: Array) -> Array:
        """A base allocation [L], corrected by absorption coefficients [L]."""
        recipe, sizes = self.case.recipe, self.case.model.config.block_sizes
        return corrected(
            base, clipped_log(coefficients), np.arange(len(base)), sizes,
            recipe.sparsity, recipe.strength, recipe.max_correction,
        )  # fmt: skip

    def state(self, step: str) -> Array:
        """A value that the model computes with: rounded once to the dtype."""
        value = self.case.expected[step]
        return value.astype(self.dtype) if self.rounded is None else self.rounded.of(value)

    def number(self, step: str) -> Array:
        """A value that the method has in float64 in every dtype; only float64 itself is rounded."""
        value = self.case.expected[step]
        if self.rounded is None or self.rounded.held != np.float64:
            return value
        return np.asarray(self.rounded.of(value))

    def keep(self, step: str, shape: tuple[int, int]) -> Keep:
        """The case's decision, [out, in]."""
        return unpacked(self.case.expected[step], shape[1])


NamedArrays = Iterator[tuple[str, Array]]


def stepwise_steps(
    case: Case, dtype: npt.DTypeLike = np.float64, rounded: type[RoundedArray] | None = None
) -> dict[str, Array]:
    """Compute every step of a case from the case's own values, as docs/how-to/check.md says.

    Arrays are by name as of `steps`, with scores and products of all blocks; numbers are `rounded`
    in place of the dtype, if that is not None.
    """
    if rounded is not None:
        case, dtype = replace(case, model=RoundedModel.of(case.model, rounded)), rounded.held
    inputs = StepInputs(case, dtype, rounded)
    return {name: np.asarray(value) for name, value in _steps(inputs)}


def _steps(inputs: StepInputs) -> NamedArrays:
    """All of them, each as soon as it is computed."""
    case, config = inputs.case, inputs.case.model.config
    case.model.check_finite(inputs.dtype)
    with loud(inputs.dtype):
        yield from _forward(inputs)
        yield from _experiment(inputs)
        yield from _allocations(inputs)
        counts = case.expected[f"{case.recipe.bases[0]}.counts"].tolist()
        for name in ("wanda", "sparsegpt"):
            yield from _pruned(inputs, name, counts)
        if case.recipe.pattern:
            pattern = parse_pattern(case.recipe.pattern)
            goals = [[pattern] * len(linears) for linears in config.linears]
            yield from _pruned(inputs, "pattern", goals)
        last = inputs.state(f"blocks.{config.num_blocks - 1}.resid_post")
        yield "dense.perplexity", _perplexity(inputs, last)


def _forward(inputs: StepInputs) -> NamedArrays:
    """The trace points, and the signals of what the linears read in the same passes."""
    model, config, dtype = inputs.case.model, inputs.case.model.config, inputs.dtype
    yield "embed", inputs.embedded
    squares: list[dict[str, Array]] = []
    for i, place in enumerate(inputs.places):
        trace: dict[str, Array] = {}
        observed = replace(place, observe=trace.setdefault)
        block(inputs.state(f"blocks.{i}.resid_pre"), model.block(i, dtype), observed, config)
        squares.append({x: sum_of_squares(trace[x]) for x in inputs_of(config.linears[i])})
        yield from ((f"blocks.{i}.{x}", y) for x, y in trace.items() if x not in INSIDE)

    trace = {}

    def case_value(name: str, value: Array) -> Array:
        trace[name] = value
        return inputs.state(name)

    last = inputs.state(f"blocks.{config.num_blocks - 1}.resid_post")
    head(last, model.head(dtype), config, case_value)
    yield from trace.items()

    m, statistic, fit, xmin = inputs.case.recipe.signal_options
    moments = wanda_moments(squares, len(inputs.ids), config)
    with Settings(dtype).open({}) as resources:
        owl, dlp = activation_signals(model, moments, m, statistic, resources)
        yield from (("owl.signal", owl), ("dlp.signal", dlp))
        if "alphapruning" in inputs.case.recipe.bases:
            laws = power_laws(model, fit, xmin, resources)
            yield "alphapruning.signal", np.array([[law.alpha for law in row] for row in laws])


def _experiment(inputs: StepInputs) -> NamedArrays:
    """Each block's perturbation, from the case's clean states, and measured against them."""
    model, blocks = inputs.case.model, inputs.case.model.config.num_blocks
    clean = [inputs.state(f"blocks.{i}.resid_post") for i in range(blocks)]
    weights = [model.block(i, inputs.dtype) for i in range(blocks)]
    ratios = []
    for i, noise in enumerate(inputs.case.inputs["noise"]):
        sequences = [
            list(_deviations(inputs, i, [x[n] for x in clean[i:]], noise[n], weights))
            for n in range(len(inputs.ids))
        ]
        for j, name in enumerate(("drift", "alignment")):
            means = [[nan_mean(after[j]) for after in sequence] for sequence in sequences]
            yield f"perturbed.{i}.{name}", nan_mean(np.array(means), axis=0)
        ratios.append([nan_mean(surviving_drift(x[-1][0], x[0][0])) for x in sequences])
    coefficient, _ = absorption_coefficient(np.array(ratios).T[:, None])
    yield "absorption_coefficient", coefficient


def _deviations(
    inputs: StepInputs, first: int, clean: Sequence[Array], noise: Array, weights: Sequence[Weights]
) -> Iterator[tuple[Array, Array]]:
    """Drift and alignment of one perturbed sequence, after the block and every later one."""
    recipe, config = inputs.case.recipe, inputs.case.model.config
    kept = experiment.kept_tokens(clean[0], recipe.sink)
    h = experiment.perturbed(
        clean[0], noise, recipe.eta, kept, recipe.noise_scale, recipe.noise_shape
    )
    for k, state in enumerate(clean, first):
        if k > first:
            h = block(h[None], weights[k], inputs.places[k], config)[0]
        deviation = experiment.deviation(h, state, kept, recipe.norm)
        yield deviation.drift, deviation.alignment


def _allocations(inputs: StepInputs) -> NamedArrays:
    """Bases from signals, corrections from these and coefficients, counts from corrections."""
    recipe, coefficients = inputs.case.recipe, inputs.number("absorption_coefficient")
    sizes = inputs.case.model.config.linear_sizes
    for name in recipe.bases:
        base = inputs.base(name, {})
        yield f"{name}.base", inputs.projected(base)
        yield f"{name}.corrected", inputs.corrected(base, coefficients)
        final = inputs.number(f"{name}.corrected")
        yield (
            f"{name}.counts",
            linear_counts(final, sizes, recipe.sparsity),
        )


def _pruned(inputs: StepInputs, name: str, goals: Sequence[Sequence[Goal]]) -> NamedArrays:
    """One pruner, block by block: the blocks before carry the case's decisions."""
    case, config, sequences = inputs.case, inputs.case.model.config, len(inputs.ids)
    method: Method = "sparsegpt" if name == "sparsegpt" else "wanda"
    kind = "products" if method == "sparsegpt" else "squares"
    pruner, x = Pruner(method, case.recipe.damping), inputs.embedded
    for i, place in enumerate(inputs.places):
        prefix, weights = f"{name}.blocks.{i}", case.model.block(i, inputs.dtype)
        _, sums = block_with_sums(CALIBRATED[method], x, weights, place, config)
        yield from ((f"{prefix}.{point}.{kind}", total) for point, total in sums.items())
        carried = dict(weights)
        for linear, goal in zip(config.linears[i], goals[i], strict=False):
            step, point = f"{prefix}.{linear}", f"{prefix}.{input_of(linear)}.{kind}"
            dense, total = weights[f"{linear}.weight"], sums[input_of(linear)]
            if point in case.expected:
                total = inputs.number(point)
            if method == "wanda":
                yield f"{step}.score", wanda_score(dense, total / sequences)
            keep, _ = decision(dense, total, sequences, goal, pruner)
            yield f"{step}.keep", np.packbits(keep, axis=1)
            right = inputs.keep(f"{step}.keep", dense.shape)
            if method == "wanda":
                new = np.where(right, dense, np.zeros((), dense.dtype))
            else:
                new = _compensated(inputs, i, linear, dense, right, total)
            yield f"{step}.weight", new
            shown = method == "sparsegpt" and f"{step}.weight" in case.expected
            carried[f"{linear}.weight"] = inputs.state(f"{step}.weight") if shown else new
        x = block(x, carried, place, config)
    yield f"{name}.perplexity", _perplexity(inputs, x)


def _compensated(
    inputs: StepInputs, index: int, linear: str, dense: Array, keep: Keep, total: Array
) -> Array:
    """A linear's weights behind SparseGPT's compensation for these decisions, [out, in]."""

    def decide(score: Array, start: int) -> Keep:
        return keep[:, start : start + score.shape[1]]

    damping, h = inputs.case.recipe.damping, hessian(total, len(inputs.ids))
    new = compensated(dense, h, decide, WIDTH, damping, WIDTH).weight
    return stored_weight(inputs.case.model, index, linear, keep, new).astype(dense.dtype)


def _perplexity(inputs: StepInputs, x: Array) -> Array:
    """``exp`` of the mean nats per predicted token, from the states after the last block, [1]."""
    model = inputs.case.model
    logits = head(x, model.head(inputs.dtype), model.config)[:, :-1]
    softmax = RunningSoftmax.start(inputs.ids[:, 1:].ravel())
    softmax = softmax.add(logits.reshape(-1, logits.shape[-1]), 0)
    return np.exp([-softmax.log_probabilities.mean()])
