"""Each step from the case's own values, so that an error at one is not carried to the next.

A candidate that is fed these values makes no choice that a later step depends on. The values that
each step is computed from are in docs/how-to/check.md. Everything is computed by the functions that
the commands call.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import base_allocation, linear_counts, units_of
from refimpl.method import perturbation as experiment
from refimpl.method.absorption import absorption_coefficient, nan_mean, surviving_drift
from refimpl.method.correction import centred_log, clipped_log, corrected
from refimpl.method.divergence import RunningDivergence
from refimpl.method.projection import project
from refimpl.model.experts import ROUTER
from refimpl.model.floating_point import loud
from refimpl.model.forward import INSIDE, Place, Weights, block, embed, head, places
from refimpl.model.ops import Array
from refimpl.model.statistics import SUMS, block_with_sums, input_of, inputs_of, sum_of_squares
from refimpl.oracle.case import Case
from refimpl.oracle.judging.pruner_scores import Keep, unpacked
from refimpl.oracle.rounding import RoundedArray, RoundedModel
from refimpl.oracle.steps import perplexity, signal_step
from refimpl.pruners.compensation import compensated
from refimpl.pruners.decision import Goal, Pruner, decision
from refimpl.pruners.pattern import parse_pattern
from refimpl.pruners.sparsegpt import WIDTH, hessian
from refimpl.pruners.wanda import wanda_score
from refimpl.pruning.pruned_linears import stored_weight
from refimpl.running.settings import Settings
from refimpl.scoring.dense_statistics import wanda_moments


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

    def logits(self, x: Array) -> Array:
        """The logits [N, S, V] of the states after the last block."""
        return head(x, self.case.model.head(self.dtype), self.case.model.config)

    @cached_property
    def signals(self) -> dict[str, Array]:
        """The case's signals by step."""
        return {x: self.number(x) for x in self.case.expected if x.endswith(".signal")}

    def base(self, name: str, others: Mapping[str, Array]) -> Array:
        """A base [L] or [L, linears] of the case's signals, or others, before it is projected."""
        config, recipe = self.case.model.config, self.case.recipe
        every, request = recipe.signals(self.signals | dict(others), name), recipe.request(name)
        return base_allocation(every, request, config.linears)

    def projected(self, base: Array) -> Array:
        """A base allocation, [L] or [L, linears], on the recipe's budget."""
        sizes, exists = units_of(base, self.case.model.config.linear_sizes)
        result = np.zeros(base.shape)
        result[exists] = project(base[exists], sizes, self.case.recipe.sparsity)
        return result

    def per_block(self, allocation: Array) -> Array:
        """An allocation, [L] or [L, linears], as the share of each block that goes, [L]."""
        if allocation.ndim == 1:
            return allocation
        sizes = self.case.model.config.linear_sizes
        return np.vecdot(allocation, sizes / sizes.sum(axis=1, keepdims=True))

    def corrected(self, base: Array, u: Array) -> Array:
        """A base allocation, [L] or [L, linears], corrected by clipped logarithms [L]."""
        recipe = self.case.recipe
        sizes, exists = units_of(base, self.case.model.config.linear_sizes)
        result = np.zeros(base.shape)
        result[exists] = corrected(
            base[exists], u, np.nonzero(exists)[0], sizes,
            recipe.sparsity, recipe.strength, recipe.max_correction,
        )  # fmt: skip
        return result

    def error_step(self, correct: str) -> str:
        """A step of the errors that a correction by arrival or divergence is made from."""
        return "pruned.divergence" if correct == "divergence" else "pruned.0.drift"

    def errors(self, correct: str) -> Array:
        """The errors that a correction by arrival or divergence is made from, [L]."""
        if correct == "divergence":
            return self.number("pruned.divergence")
        blocks = range(self.case.model.config.num_blocks)
        return np.array([self.number(f"pruned.{i}.drift")[-1] for i in blocks])

    def noise(self, block: int, draw: int) -> Array:
        """The case's noise after a block, [N, S, D]."""
        return self.case.inputs[f"noise.{draw}" if draw else "noise"][block]

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


METHODS: Mapping[str, str] = {
    "magnitude": "magnitude", "sparsegpt": "sparsegpt", "sparsegpt_pattern": "sparsegpt",
}  # fmt: skip
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
        yield from _experiment(inputs, "perturbed.", case.recipe.eta, 1)
        yield from _experiment(inputs, "coarse.", case.recipe.coarse_eta, case.recipe.draws)
        yield from _allocations(inputs)
        yield from _perturbed_by_pruning(inputs)
        counts = case.expected[f"{case.recipe.bases[0]}.counts"].tolist()
        for name in ("magnitude", "wanda", "sparsegpt"):
            yield from _pruned(inputs, name, counts)
        if case.recipe.pattern:
            pattern = parse_pattern(case.recipe.pattern)
            goals = [[pattern] * len(linears) for linears in config.linears]
            for name in ("pattern", "sparsegpt_pattern"):
                yield from _pruned(inputs, name, goals)
        last = inputs.state(f"blocks.{config.num_blocks - 1}.resid_post")
        yield "dense.perplexity", perplexity(inputs.ids, inputs.logits(last))


def _forward(inputs: StepInputs) -> NamedArrays:
    """The trace points, and the signals of what the linears read in the same passes.

    A mixture goes on with the experts that its router has chosen in the case.
    """
    model, config, dtype = inputs.case.model, inputs.case.model.config, inputs.dtype
    yield "embed", inputs.embedded
    squares: list[dict[str, Array]] = []
    for i, place in enumerate(inputs.places):
        trace: dict[str, Array] = {}

        def observe(name: str, value: Array, trace: dict[str, Array] = trace, i: int = i) -> Array:
            trace[name] = np.packbits(value, axis=-1) if name == ROUTER else value
            if name != ROUTER:
                return value
            return unpacked(inputs.case.expected[f"blocks.{i}.{name}"], value.shape[-1])

        observed = replace(place, observe=observe)
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

    recipe, moments = inputs.case.recipe, wanda_moments(squares, len(inputs.ids), config)
    for i, sums in enumerate(squares):
        yield from ((f"pruned.blocks.{i}.{point}.squares", total) for point, total in sums.items())
    with Settings(dtype).open() as resources:
        for base in ("owl", "dlp", "dlp_median"):
            if base in ("owl", "dlp", *recipe.bases):
                request = recipe.request(base)
                yield f"{base}.signal", signal_step(model, request, resources, moments)
        for base in ("alphapruning", "alphapruning_mid"):
            if f"{base}.signal" in inputs.case.expected:
                yield f"{base}.signal", signal_step(model, recipe.request(base), resources)


def _experiment(inputs: StepInputs, name: str, eta: float, draws: int) -> NamedArrays:
    """Each block's perturbation, from the case's clean states, and measured against them."""
    recipe, blocks = inputs.case.recipe, inputs.case.model.config.num_blocks
    clean = [inputs.state(f"blocks.{i}.resid_post") for i in range(blocks)]
    weights = [inputs.case.model.block(i, inputs.dtype) for i in range(blocks)]
    ratios = []
    for i, n in product(range(blocks), range(len(inputs.ids))):
        h = clean[i][n]
        kept = experiment.kept_tokens(h, recipe.sink)
        choices = recipe.noise_scale, recipe.noise_shape, recipe.noise_norm
        for draw in range(draws):
            start = experiment.perturbed(h, inputs.noise(i, draw)[n], eta, kept, *choices)
            ratios.append(list(_deviations(inputs, i, [x[n] for x in clean[i:]], start, weights)))
    yield from _measured(name, ratios, blocks, len(inputs.ids), draws)


Deviations = list[tuple[Array, Array, Array]]
"""Drift, alignment and state of a perturbed sequence, after its block and every later one."""


def _measured(
    name: str, states: Sequence[Deviations], blocks: int, sequences: int, draws: int
) -> NamedArrays:
    """An experiment's steps, from its states by block, sequence and draw."""
    ratios = np.empty((sequences, draws, blocks))
    for i in range(blocks):
        after = [states[(i * sequences + n) * draws :][:draws] for n in range(sequences)]
        for j, kind in enumerate(("drift", "alignment")):
            means = [[[nan_mean(k[j]) for k in x] for x in of_draws] for of_draws in after]
            yield f"{name}{i}.{kind}", nan_mean(nan_mean(np.array(means), axis=1), axis=0)
        ratios[:, :, i] = [
            [nan_mean(surviving_drift(x[-1][0], x[0][0])) for x in of_draws] for of_draws in after
        ]
    coefficient, stderr = absorption_coefficient(ratios)
    prefix = name.replace("perturbed.", "")
    yield f"{prefix}absorption_coefficient", coefficient
    yield f"{prefix}stderr", stderr


def _perturbed_by_pruning(inputs: StepInputs) -> NamedArrays:
    """Each block pruned alone by the case's decisions, and the corrections by what that does."""
    case, config = inputs.case, inputs.case.model.config
    recipe, first, sequences = case.recipe, case.recipe.bases[0], len(inputs.ids)
    base = inputs.base(first, {})
    shares = inputs.projected(base) if base.ndim == 2 else inputs.number(f"{first}.base")
    counts = linear_counts(shares, config.linear_sizes, recipe.sparsity)
    yield "pruned.counts", counts
    goals = case.expected["pruned.counts"].tolist()
    clean = [inputs.state(f"blocks.{i}.resid_post") for i in range(config.num_blocks)]
    weights = [case.model.block(i, inputs.dtype) for i in range(config.num_blocks)]
    top = case.model.head(inputs.dtype)
    states, divergences = list[Deviations](), list[list[Array]]()
    for i, dense in enumerate(weights):
        exact, changed = case.model.block(i, np.float64), dict(dense)
        for linear, goal in zip(config.linears[i], goals[i], strict=False):
            step, weight = f"pruned.blocks.{i}.{linear}", f"{linear}.weight"
            total = inputs.number(f"pruned.blocks.{i}.{input_of(linear)}.squares")
            keep, _ = decision(exact[weight], total, sequences, goal, Pruner("wanda"))
            yield f"{step}.keep", np.packbits(keep, axis=1)
            right = inputs.keep(f"{step}.keep", keep.shape)
            changed[weight] = np.where(right, dense[weight], np.zeros((), inputs.dtype))
        ends = []
        for n, before in enumerate(inputs.state(f"blocks.{i}.resid_pre")):
            h = block(before[None], changed, inputs.places[i], config)[0]
            kept = experiment.kept_tokens(clean[i][n], recipe.sink)
            start = np.where(kept[:, None], h, clean[i][n])
            after = list(_deviations(inputs, i, [x[n] for x in clean[i:]], start, weights))
            states.append(after)
            z, other = (head(x[None], top, config)[0] for x in (clean[-1][n], after[-1][2]))
            ends.append(nan_mean(RunningDivergence.start(len(z)).add(z, other).value[kept]))
        divergences.append(ends)
    yield from _measured("pruned.", states, config.num_blocks, sequences, 1)
    yield "pruned.divergence", nan_mean(np.array(divergences), axis=1)
    for correct in ("arrival", "divergence"):
        u = centred_log(inputs.errors(correct))
        yield f"{correct}.corrected", inputs.per_block(inputs.corrected(base, u))


def _deviations(
    inputs: StepInputs, first: int, clean: Sequence[Array], h: Array, weights: Sequence[Weights]
) -> Iterator[tuple[Array, Array, Array]]:
    """Drift and alignment of one perturbed sequence, after the block and every later one."""
    recipe, config = inputs.case.recipe, inputs.case.model.config
    kept = experiment.kept_tokens(clean[0], recipe.sink)
    for k, state in enumerate(clean, first):
        if k > first:
            h = block(h[None], weights[k], inputs.places[k], config)[0]
        deviation = experiment.deviation(h, state, kept, recipe.norm)
        yield deviation.drift, deviation.alignment, h


def _allocations(inputs: StepInputs) -> NamedArrays:
    """Bases from signals, corrections from these and coefficients, counts from corrections."""
    recipe, u = inputs.case.recipe, clipped_log(inputs.number("absorption_coefficient"))
    sizes = inputs.case.model.config.linear_sizes
    for name in recipe.bases:
        base = inputs.base(name, {})
        yield f"{name}.base", inputs.per_block(inputs.projected(base))
        yield f"{name}.corrected", inputs.corrected(base, u)
        final = inputs.number(f"{name}.corrected")
        yield f"{name}.counts", linear_counts(final, sizes, recipe.sparsity)


def _pruned(inputs: StepInputs, name: str, goals: Sequence[Sequence[Goal]]) -> NamedArrays:
    """One pruner, block by block: the blocks before carry the case's decisions."""
    case, config, sequences = inputs.case, inputs.case.model.config, len(inputs.ids)
    method = METHODS.get(name, "wanda")
    kind = "products" if method == "sparsegpt" else "squares"
    pruner, x = Pruner(method, case.recipe.damping), inputs.embedded
    for i, place in enumerate(inputs.places):
        prefix, weights = f"{name}.blocks.{i}", case.model.block(i, inputs.dtype)
        sums: dict[str, Array] = {}
        if method != "magnitude":
            _, sums = block_with_sums(SUMS[kind], x, weights, place, config)
        yield from ((f"{prefix}.{point}.{kind}", total) for point, total in sums.items())
        carried = dict(weights)
        for linear, goal in zip(config.linears[i], goals[i], strict=False):
            step, point = f"{prefix}.{linear}", f"{prefix}.{input_of(linear)}.{kind}"
            dense, total = weights[f"{linear}.weight"], sums.get(input_of(linear))
            if method == "magnitude":  # of what the file holds, in every dtype
                dense = case.model.block(i, np.float64)[f"{linear}.weight"]
            if point in case.expected:
                total = inputs.number(point)
            if method == "wanda" and total is not None:
                yield f"{step}.score", wanda_score(dense, total / sequences)
            keep, _ = decision(dense, total, sequences, goal, pruner)
            yield f"{step}.keep", np.packbits(keep, axis=1)
            right = inputs.keep(f"{step}.keep", dense.shape)
            dense = weights[f"{linear}.weight"]
            if method == "sparsegpt" and total is not None:
                new = _compensated(inputs, i, linear, dense, right, total)
            else:
                new = np.where(right, dense, np.zeros((), dense.dtype))
            yield f"{step}.weight", new
            shown = method == "sparsegpt" and f"{step}.weight" in case.expected
            carried[f"{linear}.weight"] = inputs.state(f"{step}.weight") if shown else new
        x = block(x, carried, place, config)
    yield f"{name}.perplexity", perplexity(inputs.ids, inputs.logits(x))


def _compensated(
    inputs: StepInputs, index: int, linear: str, dense: Array, keep: Keep, total: Array
) -> Array:
    """A linear's weights behind SparseGPT's compensation for these decisions, [out, in]."""

    def decide(score: Array, start: int) -> Keep:
        return keep[:, start : start + score.shape[1]]

    damping, h = inputs.case.recipe.damping, hessian(total, len(inputs.ids))
    new = compensated(dense, h, decide, WIDTH, damping, WIDTH).weight
    return stored_weight(inputs.case.model, index, linear, keep, new).astype(dense.dtype)
