"""The steps of the dense model: its forward, what noise does to it, signals and allocations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import linear_counts
from refimpl.allocation.request import Request
from refimpl.method import perturbation as experiment
from refimpl.method.absorption import absorption_coefficient, nan_mean, surviving_drift
from refimpl.method.correction import clipped_log
from refimpl.model.experts import ROUTER
from refimpl.model.forward import Weights, block, head
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import inputs_of, sum_of_squares
from refimpl.oracle.table.inputs import StepInputs
from refimpl.running.settings import Resources, Settings
from refimpl.scoring.dense_statistics import Moments, wanda_moments
from refimpl.scoring.signals import Chosen, of_moments, of_weights

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
                request = recipe.request(base)
                yield f"{base}.signal", signal_step(model, request, resources, moments)


def signal_step(
    model: Model, request: Request, resources: Resources, moments: Moments = ()
) -> Array:
    """The signal of a base, from Wanda's statistic if it is made of that, [L] or [L, linears]."""
    chosen = Chosen.of(request, ())
    found = of_weights(model, chosen, 1, resources)
    return (found or of_moments(model, chosen, moments, resources))[request.record.name].main


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
