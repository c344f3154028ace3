"""The steps of the dense model, and what steps are computed from: earlier ones, or a case's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import base_allocation, linear_counts, units_of
from refimpl.method import perturbation
from refimpl.method import perturbation as experiment
from refimpl.method.absorption import absorption_coefficient, nan_mean, surviving_drift
from refimpl.method.correction import clipped_log, corrected
from refimpl.method.projection import project
from refimpl.model.experts import ROUTER
from refimpl.model.forward import Place, Weights, block, embed, head, places
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import inputs_of, sum_of_squares
from refimpl.oracle.judging.pruner_scores import Keep, unpacked
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.rounding import RoundedArray
from refimpl.running.settings import Settings
from refimpl.scoring.dense_statistics import wanda_moments
from refimpl.scoring.signals import Chosen, of_moments, of_weights


@dataclass(frozen=True, eq=False)
class StepInputs:
    """The values that steps are computed from.

    A chain reads what it has computed itself. Step by step, the values of a case are read: states
    are rounded once to the dtype, numbers that the method has in float64 are not.

    Args:
        dtype: Of the computation, float32 or float64.
        given: Values by step, those of a case; None for a chain.
        noises: As the inputs of a case; drawn by the recipe's seed if None.
        rounded: How numbers are rounded further; None for not at all.
        choices: Steps `blocks.{l}.router.keep` that the forward goes on with.
        values: What has been computed, by name.
        squares: By block, the sums over what the dense linears read.
        perplexities: By pruner.
    """

    model: Model
    recipe: Recipe
    ids: npt.NDArray[np.int64]
    dtype: npt.DTypeLike = np.float64
    given: Mapping[str, Array] | None = None
    noises: Mapping[str, Array] | None = None
    rounded: type[RoundedArray] | None = None
    choices: Mapping[str, Array] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    squares: list[dict[str, Array]] = field(default_factory=list)
    perplexities: dict[str, Array] = field(default_factory=dict)

    @cached_property
    def places(self) -> list[Place]:
        """The tokens' place, as each block sees it."""
        config = self.model.config
        by_kind = places(np.arange(self.ids.shape[1]), config, self.dtype)
        return [by_kind[kind] for kind in config.blocks]

    @cached_property
    def embedded(self) -> Array:
        """The states before the first block, [N, S, D]."""
        positions, config = np.arange(self.ids.shape[1]), self.model.config
        return embed(self.ids, positions, self.model.embedding(), config, self.dtype)

    def entering(self, block: int) -> Array:
        """The states before a block, [N, S, D]."""
        if self.given is not None:
            return self.state(f"blocks.{block}.resid_pre")
        return self.leaving(block - 1) if block else self.values["embed"]

    def leaving(self, block: int) -> Array:
        """The states after a block, [N, S, D]; of the last one, if -1."""
        return self.state(f"blocks.{block % self.model.config.num_blocks}.resid_post")

    def logits(self, x: Array) -> Array:
        """The logits [N, S, V] of the states after the last block."""
        return head(x, self.model.head(self.dtype), self.model.config)

    def value(self, step: str) -> Array:
        """A value as it is."""
        return self.values[step] if self.given is None else self.given[step]

    def state(self, step: str) -> Array:
        """A value that the model computes with."""
        value = self.value(step)
        if self.given is None:
            return value
        return value.astype(self.dtype) if self.rounded is None else self.rounded.of(value)

    def number(self, step: str) -> Array:
        """A value that the method has in float64 in every dtype; only float64 itself is rounded."""
        value = self.value(step)
        if self.given is None or self.rounded is None or self.rounded.held != np.float64:
            return value
        return np.asarray(self.rounded.of(value))

    def keep(self, step: str, shape: tuple[int, ...]) -> Keep:
        """A decision, [out, in], or the choice of a router, [N, S, experts]."""
        return unpacked(self.value(step), shape[-1])

    def choice(self, step: str, value: Array) -> Array:
        """What the forward goes on with at a trace point: another choice, if one is given."""
        return unpacked(self.choices[step], value.shape[-1]) if step in self.choices else value

    def noise(self, block: int, sequence: int, draw: int) -> Array:
        """The noise after a block, [S, D]."""
        if self.noises is not None:
            return self.noises[f"noise.{draw}" if draw else "noise"][block][sequence]
        shape = self.ids.shape[1], self.model.config.hidden_size
        return perturbation.noise(self.recipe.seed, sequence, block, draw, shape)

    @cached_property
    def signals(self) -> dict[str, Array]:
        """The signals by step."""
        every = self.values if self.given is None else self.given
        return {x: self.number(x) for x in every if x.endswith(".signal")}

    def base(self, name: str, others: Mapping[str, Array]) -> Array:
        """A base [L] or [L, linears] of the signals, or others, before it is projected."""
        every, request = self.recipe.signals(self.signals | dict(others), name), self.recipe.request
        return base_allocation(every, request(name), self.model.config.linears)

    def projected(self, base: Array) -> Array:
        """A base allocation, [L] or [L, linears], on the recipe's budget."""
        sizes, exists = units_of(base, self.model.config.linear_sizes)
        result = np.zeros(base.shape)
        result[exists] = project(base[exists], sizes, self.recipe.sparsity)
        return result

    def per_block(self, allocation: Array) -> Array:
        """An allocation, [L] or [L, linears], as the share of each block that goes, [L]."""
        if allocation.ndim == 1:
            return allocation
        sizes = self.model.config.linear_sizes
        return np.vecdot(allocation, sizes / sizes.sum(axis=1, keepdims=True))

    def corrected(self, base: Array, u: Array) -> Array:
        """A base allocation, [L] or [L, linears], corrected by clipped logarithms [L]."""
        recipe = self.recipe
        sizes, exists = units_of(base, self.model.config.linear_sizes)
        result = np.zeros(base.shape)
        result[exists] = corrected(
            base[exists], u, np.nonzero(exists)[0], sizes,
            recipe.sparsity, recipe.strength, recipe.max_correction,
        )  # fmt: skip
        return result

    def errors(self, correct: str) -> Array:
        """The errors that a correction by arrival or divergence is made from, [L]."""
        if correct == "divergence":
            return self.number("pruned.divergence")
        blocks = range(self.model.config.num_blocks)
        return np.array([self.number(f"pruned.{i}.drift")[-1] for i in blocks])


NamedArrays = Iterator[tuple[str, Array]]
INSIDE = ("attn_heads", "mlp_hidden")  # inputs of linears, which are no steps


def forward(inputs: StepInputs) -> NamedArrays:
    """The trace points: one pass through each block, and the head."""
    model, config, dtype = inputs.model, inputs.model.config, inputs.dtype
    yield "embed", inputs.embedded
    trace: dict[str, Array] = {}

    def observe(name: str, value: Array) -> Array:
        trace[name] = np.packbits(value, axis=-1) if name == ROUTER else value
        return inputs.choice(f"blocks.{i}.{name}", value)

    for i, place in enumerate(inputs.places):
        trace.clear()
        block(inputs.entering(i), model.block(i, dtype), replace(place, observe=observe), config)
        read = inputs_of(config.linears[i]) if not inputs.recipe.only else ()
        inputs.squares.append({x: sum_of_squares(trace[x]) for x in read if x in trace})
        for name, value in trace.items():
            if name == ROUTER or (name not in INSIDE and "." not in name):
                yield f"blocks.{i}.{name}", value
    if not inputs.recipe.asks("final_norm", "logits"):
        return  # the head of a real model is large
    trace = {}

    def read_again(name: str, value: Array) -> Array:
        trace[name] = value
        return value if inputs.given is None else inputs.state(name)

    head(inputs.leaving(-1), model.head(dtype), config, read_again)
    yield from trace.items()


def by_noise(inputs: StepInputs) -> NamedArrays:
    """Both experiments by noise, those that the recipe asks for."""
    recipe, blocks = inputs.recipe, inputs.model.config.num_blocks
    experiments = (
        ("perturbed.", "", recipe.perturbation),
        ("coarse.", "coarse.", recipe.coarse_perturbation),
    )
    for name, prefix, plan in experiments:
        if not recipe.perturbs(prefix, blocks):
            continue
        if inputs.given is None:
            experiment.require_resolved(plan, inputs.dtype)

        def start(i: int, _: Weights, clean: Array, plan: experiment.Perturbation = plan) -> Starts:
            for n, h in enumerate(clean):
                kept = experiment.kept_tokens(h, recipe.sink)
                for draw in range(plan.draws):
                    z = inputs.noise(i, n, draw)
                    how = recipe.noise_scale, recipe.noise_shape, recipe.noise_norm
                    yield n, experiment.perturbed(h, z, plan.eta[0], kept, *how)

        yield from measured(inputs, name, followed(inputs, start))


Starts = Iterator[tuple[int, Array]]
"""The number of a sequence and its perturbed state, [S, D]."""


@dataclass
class Followed:
    """A state that was perturbed after block `first`, and how far it is from the clean one."""

    first: int
    sequence: int
    state: Array
    kept: npt.NDArray[np.bool_]
    deviations: list[experiment.Deviation] = field(default_factory=list)


def followed(inputs: StepInputs, start: Callable[[int, Weights, Array], Starts]) -> list[Followed]:
    """The states that `start` perturbs after each block, through all later ones.

    One block's weights are held at a time.
    """
    config, recipe, states = inputs.model.config, inputs.recipe, list[Followed]()
    for k, place in enumerate(inputs.places):
        weights, clean = inputs.model.block(k, inputs.dtype), inputs.leaving(k)
        for x in states:
            x.state = block(x.state[None], weights, place, config)[0]
        for n, h in start(k, weights, clean):
            states.append(Followed(k, n, h, experiment.kept_tokens(clean[n], recipe.sink)))
        for x in states:
            after = experiment.deviation(x.state, clean[x.sequence], x.kept, recipe.norm)
            x.deviations.append(after)
    return states


def measured(inputs: StepInputs, name: str, states: Sequence[Followed]) -> NamedArrays:
    """An experiment's steps, from its states by block, sequence and draw."""
    blocks, sequences = inputs.model.config.num_blocks, len(inputs.ids)
    draws = len(states) // (blocks * sequences)
    ratios = np.empty((sequences, draws, blocks))
    for i in range(blocks):
        start = i * sequences * draws
        after = [x.deviations for x in states[start : start + sequences * draws]]
        for kind in ("drift", "alignment"):
            means = np.array([[nan_mean(getattr(d, kind)) for d in x] for x in after])
            of_sequences = nan_mean(means.reshape(sequences, draws, -1), axis=1)
            yield f"{name}{i}.{kind}", nan_mean(of_sequences, axis=0)
        survived = [nan_mean(surviving_drift(x[-1].drift, x[0].drift)) for x in after]
        ratios[:, :, i] = np.reshape(survived, (sequences, draws))
    coefficient, stderr = absorption_coefficient(ratios)
    yield f"{name.replace('perturbed.', '')}absorption_coefficient", coefficient
    if name == "coarse." and np.isfinite(stderr).all():
        yield "coarse.stderr", stderr


def signals(inputs: StepInputs) -> NamedArrays:
    """The signals of the bases, from the weights and what the linears read."""
    recipe, model = inputs.recipe, inputs.model
    moments = wanda_moments(inputs.squares, len(inputs.ids), model.config)
    used = {"owl", "dlp", *recipe.bases}
    used |= {"alphapruning"} if "alphapruning_linear" in used else set()
    with Settings(inputs.dtype).open() as resources:
        for base in ("owl", "dlp", "alphapruning", "dlp_median", "alphapruning_mid"):
            if base in used:
                chosen = Chosen.of(recipe.request(base), ())
                found = of_weights(model, chosen, 1, resources)
                (signal,) = (found or of_moments(model, chosen, moments, resources)).values()
                yield f"{base}.signal", signal.main


def allocations(inputs: StepInputs) -> NamedArrays:
    """Bases from signals, corrections from these and coefficients, counts from corrections."""
    recipe, u = inputs.recipe, clipped_log(inputs.number("absorption_coefficient"))
    for name in recipe.bases:
        base = inputs.base(name, {})
        yield f"{name}.base", inputs.per_block(inputs.projected(base))
        yield f"{name}.corrected", inputs.corrected(base, u)
        final = inputs.number(f"{name}.corrected")
        counts = linear_counts(final, inputs.model.config.linear_sizes, recipe.sparsity)
        yield f"{name}.counts", counts
