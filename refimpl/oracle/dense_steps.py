"""The steps of the dense model, and what steps are computed from: earlier ones, or a case's."""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import (
    allocated,
    base_allocation,
    linear_counts,
    units_of,
)
from refimpl.allocation.request import Noise, require_resolved
from refimpl.allocation.scores import Signal
from refimpl.method.absorption import absorption_coefficient
from refimpl.method.correction import centred_log, clipped_log
from refimpl.method.projection import project
from refimpl.model.config import Config
from refimpl.model.experts import ROUTER
from refimpl.model.forward import INSIDE, block, embed, head, places
from refimpl.model.mixers.parts import Place, Weights
from refimpl.model.mixers.softmax_attention import SharedAttention
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.state import State
from refimpl.model.stream import inputs_of, sum_of_squares
from refimpl.oracle.measures import Arrays, reads_of
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.rounding import RoundedArray
from refimpl.pruners.sparsegpt import WIDTH, compensated
from refimpl.running.settings import Settings
from refimpl.scoring.base_signals import MeasuredBases, block_signals
from refimpl.scoring.measurements import Address, Moments, wanda_moments
from refimpl.scoring.state_group import PerturbedState, with_noise

RATIO = "absorption_coefficient"
EXPERIMENTS = (
    "perturbed.",
    "coarse.",
    "pruned.",
)  # beginnings, of drifts and what is made of them


Keep = npt.NDArray[np.bool_]
"""Decisions on weights, True = stays."""


def coefficient_of(experiment: str) -> str:
    """The coefficients of one of the `EXPERIMENTS`."""
    return experiment.removeprefix("perturbed.") + RATIO


def unpacked(bits: Array, width: int) -> Keep:
    """Decisions [..., width] from packed bits."""
    return np.unpackbits(bits.astype(np.uint8), axis=-1, count=width).astype(np.bool_)


def sparsegpt_scores(
    weight: Array,
    products: Array,
    sequences: int,
    keep: Keep,
    damping: float,
    group: int = WIDTH,
) -> tuple[Array, Array]:
    """SparseGPT's scores when `group` columns were decided on, and new weights, both [out, in]."""
    score = np.empty(weight.shape)

    def decide(piece: Array, start: int) -> Keep:
        columns = slice(start, start + piece.shape[1])
        score[:, columns] = piece
        return keep[:, columns]

    _, new = compensated(
        weight, products * (2 / sequences), decide, group, damping, WIDTH
    )
    return score, new


@dataclass(frozen=True, eq=False)
class StepInputs:
    """The values that steps are computed from: those `given`, else those computed before, `values`.

    Experiments compare with `clean` states, if there are any; `squares` are sums over what the
    dense linears of each block read; `missed` are steps that were read and not given, `missing`
    those of each step. All steps are `wanted` if it is None.
    """

    model: Model
    recipe: Recipe
    ids: Array
    dtype: npt.DTypeLike = np.float64
    given: Arrays = field(default_factory=dict)
    rounded: type[RoundedArray] | None = None
    clean: Arrays = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    squares: list[dict[str, Array]] = field(default_factory=list)
    missed: set[str] = field(default_factory=set)
    missing: dict[str, frozenset[str]] = field(default_factory=dict)
    wanted: Collection[str] | None = None

    @property
    def config(self) -> Config:
        """The model's facts."""
        return self.model.config

    @cached_property
    def places(self) -> list[Place]:
        """The tokens' place, as each block sees it."""
        by_kind = places(np.arange(self.ids.shape[1]), self.config, self.dtype)
        return [by_kind[kind] for kind in self.config.blocks]

    @cached_property
    def embedded(self) -> State:
        """The state before the first block."""
        positions = np.arange(self.ids.shape[1])
        return embed(
            self.ids, positions, self.model.embedding(), self.config, self.dtype
        )

    def state_at(self, block: int, point: str) -> State:
        """The clean state of an experiment before or after a block (the last, -1)."""
        index = block % self.config.num_blocks

        def array(step: str) -> Array:
            return self.clean[step] if step in self.clean else self.state(step)

        until = index + (point == "resid_post")
        shared = {
            i: (array(k), array(v))
            for i, (k, v) in kv_steps(self.config, until).items()
        }
        return State(array(f"blocks.{index}.{point}"), self.ids, shared)

    def value(self, step: str) -> Array:
        """A value as it is."""
        if step in self.given:
            return self.given[step]
        self.missed.add(step)
        return self.values[step]

    def state(self, step: str) -> Array:
        """A value that the model computes with."""
        value = self.value(step)
        return (
            value if step not in self.given else self.written(value.astype(self.dtype))
        )

    def written(self, value: Array) -> Array:
        """A value as one kernel writes it, and the next one reads it."""
        kind = self.rounded
        return value if kind is None or value.dtype != kind.held else kind.of(value)

    def number(self, step: str) -> Array:
        """A value that the method has in float64 in every dtype; only float64 itself is rounded."""
        value = self.value(step)
        if (
            step in self.given
            and self.rounded is not None
            and self.rounded.held == np.float64
        ):
            return np.asarray(self.rounded.of(value))
        return value.astype(np.float64) if value.dtype.kind == "f" else value

    def of(self, step: str, *reads: str) -> str:
        """A step that is computed from these, and from nothing that was read before."""
        self.missing[step] = frozenset(reads) - self.given.keys()
        return step

    @property
    def entries(self) -> list[str]:
        """What the inputs of linears are computed from: states before each block, and experts."""
        return [x for x in self.values if x.endswith((".resid_pre", ROUTER))]

    def keep(self, step: str, shape: tuple[int, ...]) -> Keep:
        """A decision, [out, in], or the choice of a router, [N, S, experts]."""
        return unpacked(self.value(step), shape[-1])

    def needs(self, base: str) -> list[str]:
        """The signal of a base, if it has one."""
        return [f"{base}.signal"] * (self.recipe.request(base).record.needs is not None)

    def base(self, name: str, signal: Array | None = None) -> Array:
        """A base [L] of its signal, or of another one, before it is projected."""
        request, every = self.recipe.request(name), {}
        for step in self.needs(name):
            values = {"signal": self.number(step) if signal is None else signal}
            options = request.record.of_signal(request.options)
            every[request.record.name] = Signal(options, values)
        return base_allocation(every, request, self.config.linears)

    def allocation(
        self, step: str, base: Array | None = None, errors: Array | None = None
    ) -> Array:
        """A base on the budget, or a corrected one, [L]; of another base, or of other errors."""
        first, _, last = step.partition(".")
        name = first if first in self.recipe.bases else self.recipe.bases[0]
        how = self.config.linears, self.recipe.request(name)
        base = self.base(name) if base is None else base
        if last == "base":
            return allocated(base, None, *how).base_sparsity
        by, log = self.corrected_by(first)
        u = log(self.number(by) if errors is None else errors)
        return allocated(base, u, *how).corrected_sparsity

    def corrected_by(self, name: str) -> tuple[str, Callable[[Array], Array]]:
        """The step that corrects an allocation, and how logarithms are made of it."""
        return (
            ("pruned.divergence", centred_log)
            if name == "divergence"
            else (RATIO, clipped_log)
        )

    def counts(self, sparsity: Array) -> Array:
        """Counts of sparsities, which are given in few bits if they do not sum to the budget."""
        sizes, target = self.config.linear_sizes, self.recipe.sparsity
        units, exists = units_of(sparsity, sizes)
        if abs(sparsity[exists] @ units - target * units.sum()) > 0.5:
            sparsity = sparsity.copy()
            sparsity[exists] = project(sparsity[exists], units, target)
        return linear_counts(sparsity, sizes, target)


NamedArray = tuple[str, Array]
NamedArrays = Iterator[NamedArray]


def kv_steps(config: Config, until: int) -> dict[int, tuple[str, str]]:
    """Steps of the keys and values that later blocks read, of the blocks before one, by number."""
    blocks = (
        i for i, kind in enumerate(config.blocks[:until]) if kind.mixer.shared_kv_size
    )
    return {i: (f"blocks.{i}.k", f"blocks.{i}.v") for i in blocks}


def forward_points(inputs: StepInputs) -> NamedArrays:
    """The trace points: one pass through each block, and the head."""
    x = inputs.embedded
    yield "embed", x.stream
    if "embed" in inputs.given:
        x = x.with_stream(inputs.state("embed"))
    for i in range(len(inputs.places)):
        x = yield from points_of_block(inputs, i, x)
    if inputs.recipe.asks("final_norm", "logits"):  # the head of a real model is large
        yield from points_of_head(inputs, x)


def points_of_block(
    inputs: StepInputs, i: int, x: State
) -> Generator[NamedArray, None, State]:
    """The trace points of one block; it continues with those that are given."""
    config, place, prefix = inputs.config, inputs.places[i], f"blocks.{i}."
    trace, read = dict[str, Array](), dict[str, Array]()  # by what follows

    def observe(name: str, value: Array) -> Array:
        value = inputs.written(value)
        trace[name] = np.packbits(value, axis=-1) if name == ROUTER else value
        if (step := prefix + name) in inputs.given:
            value = (
                inputs.keep(step, value.shape) if name == ROUTER else inputs.state(step)
            )
        read[name] = value
        return value

    x = block(
        x, inputs.model.block(i, inputs.dtype), replace(place, observe=observe), config
    )
    points = inputs_of(config.linears[i]) if not inputs.recipe.only else ()
    inputs.squares.append(
        {point: sum_of_squares(read[point]) for point in points if point in read}
    )
    named = {ROUTER, *(x.removeprefix(prefix) for x in inputs.recipe.only)}
    for name, value in trace.items():
        if name in named or (name not in INSIDE and "." not in name):
            reads = [f"{prefix}{x}" for x in reads_of(prefix + name) if x in trace]
            if name in ("k", "v") and isinstance(place.mixer, SharedAttention):
                reads = [f"blocks.{place.mixer.source}.{name}"]
            if name == "resid_pre":
                reads = [f"blocks.{i - 1}.resid_post" if i else "embed"]
            yield inputs.of(prefix + name, *reads), value
    return x


def points_of_head(inputs: StepInputs, x: State) -> NamedArrays:
    """The last norm and the logits."""
    trace = dict[str, Array]()

    def observe(name: str, value: Array) -> Array:
        trace[name] = inputs.written(value)
        return inputs.state(name) if name in inputs.given else trace[name]

    head(x, inputs.model.head(inputs.dtype), inputs.config, observe)
    last = f"blocks.{len(inputs.places) - 1}.resid_post"
    yield inputs.of("final_norm", last), trace["final_norm"]
    yield inputs.of("logits", "final_norm"), trace["logits"]


def by_noise(inputs: StepInputs) -> NamedArrays:
    """Both experiments by noise, those that the recipe asks for."""
    recipe = inputs.recipe
    for prefix in ("", "coarse."):
        if not recipe.perturbs(prefix, inputs.config.num_blocks):
            continue
        plan = recipe.coarse_perturbation if prefix else recipe.perturbation
        if not inputs.given:
            require_resolved(plan, inputs.dtype)

        def start(i: int, _: Weights, clean: State, plan: Noise = plan) -> Starts:
            for n in range(len(clean)):
                for draw in range(plan.draws):
                    yield n, with_noise(clean.sequence(n), Address(n, draw, 0, i), plan)

        yield from measured(inputs, prefix or "perturbed.", followed(inputs, start))


Starts = Iterator[tuple[int, State]]  # numbers of sequences, and their perturbed states


class Followed(PerturbedState):
    """A perturbed state of a sequence on its way, and what is measured of it."""

    sequence: int
    state: State


def followed(
    inputs: StepInputs, start: Callable[[int, Weights, State], Starts]
) -> list[list[Followed]]:
    """The states that `start` perturbs after each block, through all later ones, by block."""
    config, plan, states = (
        inputs.config,
        inputs.recipe.perturbation,
        list[list[Followed]](),
    )
    for k, place in enumerate(inputs.places):
        weights, clean = (
            inputs.model.block(k, inputs.dtype),
            inputs.state_at(k, "resid_post"),
        )
        for x in chain.from_iterable(states):
            x.state = block(x.state, weights, place, config)
            x.measure(x.state, clean.sequence(x.sequence))
        states.append([])
        for n, changed in start(k, weights, clean):
            x = Followed()
            x.sequence, x.state = n, x.start(changed, clean.sequence(n), plan)
            states[k].append(x)
    return states


def measured(
    inputs: StepInputs, name: str, states: Sequence[Sequence[Followed]]
) -> NamedArrays:
    """An experiment's steps, from its states by block, and then by sequence and draw."""
    blocks, sequences = len(states), len(inputs.ids)
    for i, of_block in enumerate(states):
        for kind in ("drift", "alignment"):
            after = np.reshape(
                [getattr(x, kind) for x in of_block], (sequences, -1, blocks - i)
            )
            yield f"{name}{i}.{kind}", absorption_coefficient(after)[0]
    ratios = np.reshape(
        [[x.measures().ratios[0] for x in y] for y in states], (blocks, sequences, -1)
    )
    coefficient, stderr = absorption_coefficient(
        np.ascontiguousarray(np.moveaxis(ratios, 0, -1))
    )
    yield coefficient_of(name), coefficient
    if name == "coarse." and np.isfinite(stderr).all():
        yield "coarse.stderr", stderr


def signals(inputs: StepInputs) -> NamedArrays:
    """The signals of the bases, from the weights and what the linears read."""
    every = dict.fromkeys(("owl", "dlp", *inputs.recipe.bases))
    for step in (step for base in every for step in inputs.needs(base)):
        request, moments = inputs.recipe.request(step.partition(".")[0]), Moments()
        if (needs := request.record.needs or "weights") == "squares":
            moments = wanda_moments(inputs.squares, len(inputs.ids), inputs.config)
        with Settings(inputs.dtype).open() as resources:
            how = inputs.model, MeasuredBases.of(request, ()), needs, resources
            (found,) = block_signals(*how, moments=moments).values()
        yield inputs.of(step, *inputs.entries * (needs == "squares")), found.main


def allocations(inputs: StepInputs) -> NamedArrays:
    """Bases from signals, corrections from these and coefficients, counts from corrections."""
    for name in inputs.recipe.bases:
        signal, final = inputs.needs(name), f"{name}.corrected"
        yield inputs.of(f"{name}.base", *signal), inputs.allocation(f"{name}.base")
        yield inputs.of(final, RATIO, *signal), inputs.allocation(final)
        yield inputs.of(f"{name}.counts", final), inputs.counts(inputs.number(final))
