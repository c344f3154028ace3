"""The whole method on one model: every array that a candidate is checked against, by name."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.evaluation.likelihood import RunningSoftmax
from refimpl.method.absorption import nan_mean
from refimpl.method.perturbation import RunningDivergence
from refimpl.model.forward import block, head
from refimpl.model.mixers.parts import Weights
from refimpl.model.model import Model, zeroed
from refimpl.model.ops import Array, within_range
from refimpl.model.state import State
from refimpl.model.stream import SUMS, block_with_sums, input_of
from refimpl.oracle import dense_steps as dense
from refimpl.oracle.dense_steps import NamedArray, NamedArrays, Starts, StepInputs
from refimpl.oracle.measures import Arrays, stage_of
from refimpl.oracle.recipe import Recipe
from refimpl.pruners.counts import parse_pattern
from refimpl.pruners.decision import PrunerOptions, decision
from refimpl.pruners.wanda import wanda_score
from refimpl.pruning.block import new_weights

METHODS = {
    "magnitude": "magnitude",
    "wanda": "wanda",
    "sparsegpt": "sparsegpt",
    "pattern": "wanda",
    "sparsegpt_pattern": "sparsegpt",
}


def _by_pruning(inputs: StepInputs) -> NamedArrays:
    """Each block pruned alone by Wanda, what that does, and the corrections by it."""
    model, config = inputs.model, inputs.config
    first, wanda = inputs.recipe.bases[0], PrunerOptions("wanda")
    inputs.missed.update({*inputs.entries} - inputs.given.keys())
    counts = inputs.counts(inputs.number(f"{first}.base"))
    yield inputs.of("pruned.counts", f"{first}.base"), counts
    goals = inputs.value("pruned.counts").tolist()
    for i, sums in enumerate(inputs.squares):
        prefix, exact = f"pruned.blocks.{i}", model.block(i, np.float64)
        for point, total in sums.items():
            yield inputs.of(f"{prefix}.{point}.squares", *inputs.entries), total
        for linear, goal in zip(config.linears[i], goals[i], strict=False):
            _require_tokens(linear, sums)
            sums_of, step = (
                f"{prefix}.{input_of(linear)}.squares",
                f"{prefix}.{linear}.keep",
            )
            total = inputs.number(sums_of)
            keep, _ = decision(
                exact[f"{linear}.weight"], total, len(inputs.ids), goal, wanda
            )
            yield inputs.of(step, sums_of, "pruned.counts"), np.packbits(keep, axis=1)

    def start(i: int, weights: Weights, _: State) -> Starts:
        changed = dict(weights)
        for linear in config.linears[i]:
            weight = changed[f"{linear}.weight"]
            keep = inputs.keep(f"pruned.blocks.{i}.{linear}.keep", weight.shape)
            changed[f"{linear}.weight"] = zeroed(weight, keep)
        before = inputs.state_at(i, "resid_pre")
        for n in range(len(before)):
            yield n, block(before.sequence(n), changed, inputs.places[i], config)

    states = dense.followed(inputs, start)
    logits = partial(head, weights=model.head(inputs.dtype), config=config)
    clean = inputs.state_at(-1, "resid_post")
    right = [logits(clean.sequence(n))[0] for n in range(len(clean))]
    ends = []
    for x in chain.from_iterable(states):
        z = right[x.sequence]
        nats = RunningDivergence.start(len(z)).add(z, logits(x.state)[0]).value
        ends.append(nan_mean(nats[x.included]))
    yield from dense.measured(inputs, "pruned.", states)
    yield (
        "pruned.divergence",
        nan_mean(np.reshape(ends, (config.num_blocks, -1)), axis=1),
    )


def _by_divergence(inputs: StepInputs) -> NamedArrays:
    """The first base, corrected by what pruning each block does."""
    step, needs = "divergence.corrected", inputs.needs(inputs.recipe.bases[0])
    yield inputs.of(step, "pruned.divergence", *needs), inputs.allocation(step)


def _by_pruners(inputs: StepInputs) -> NamedArrays:
    """Every pruner of the recipe, on the first base's counts; then perplexities, also the dense."""
    perplexities = list[NamedArray]()
    for name in METHODS:
        asked = inputs.wanted is None or any(
            x.startswith(f"{name}.") for x in inputs.wanted
        )
        if asked and (inputs.recipe.pattern or not name.endswith("pattern")):
            yield from _pruned(inputs, name, perplexities)
    yield (
        inputs.of("dense.perplexity", "logits"),
        _perplexity(inputs.ids, inputs.state("logits")),
    )
    yield from perplexities


def _pruned(
    inputs: StepInputs, name: str, perplexities: list[NamedArray]
) -> NamedArrays:
    """One pruner, block by block through the pruned ones before; also what is no step.

    The perplexity of what is left is added to those of others.
    """
    model, config, recipe = inputs.model, inputs.config, inputs.recipe
    pruner, sequences, x = (
        PrunerOptions(METHODS[name], recipe.damping),
        len(inputs.ids),
        inputs.embedded,
    )
    pattern = parse_pattern(recipe.pattern) if name.endswith("pattern") else None
    inputs.missed.clear()
    counts, kind = inputs.value(f"{recipe.bases[0]}.counts").tolist(), pruner.needs
    for i, place in enumerate(inputs.places):
        prefix, weights = f"{name}.blocks.{i}", model.block(i, inputs.dtype)
        sums: Arrays = {}
        if kind:
            _, sums = block_with_sums(SUMS[kind], x, weights, place, config)
        yield from (
            (f"{prefix}.{point}.{kind}", total) for point, total in sums.items()
        )
        carried = dict(weights)
        # Magnitude decides on the weights as the file holds them, in every dtype.
        exact = weights if kind else model.block(i, np.float64)
        for linear, count in zip(config.linears[i], counts[i], strict=False):
            step, point = f"{prefix}.{linear}", f"{prefix}.{input_of(linear)}.{kind}"
            weight, reads = weights[f"{linear}.weight"], [point] if kind else []
            total: Any = None
            if kind:
                _require_tokens(linear, sums)
                total = inputs.number(point)
            if kind == "squares":
                yield (
                    inputs.of(f"{step}.score", point),
                    wanda_score(weight, total / sequences),
                )
            goal = [] if pattern else [f"{recipe.bases[0]}.counts"]
            how = total, sequences, pattern or count, pruner
            keep, new = decision(exact[f"{linear}.weight"], *how)
            yield inputs.of(f"{step}.keep", *reads, *goal), np.packbits(keep, axis=1)
            right = inputs.keep(f"{step}.keep", weight.shape)
            if new is None:
                new, reads = zeroed(weight, right), []
            else:
                if f"{step}.keep" in inputs.given:
                    _, new = dense.sparsegpt_scores(
                        weight, total, sequences, right, recipe.damping
                    )
                stored_as = model.weights[
                    f"blocks.{i}.{linear}.weight"
                ].stored.numpy_dtype
                new = new_weights(new, right, stored_as).astype(weight.dtype)
            yield inputs.of(f"{step}.weight", f"{step}.keep", *reads), new
            shown = kind == "products" and f"{step}.weight" in inputs.given
            carried[f"{linear}.weight"] = (
                inputs.state(f"{step}.weight") if shown else new
            )
        x = block(x, carried, place, config)
    end = _perplexity(inputs.ids, head(x, model.head(inputs.dtype), config))
    perplexities.append((inputs.of(f"{name}.perplexity", *inputs.missed), end))


def _require_tokens(linear: str, sums: Arrays) -> None:
    """Refuse an expert without tokens."""
    if input_of(linear) not in sums:
        raise RefimplError(
            f"{linear}: no token is routed to this expert, so its decision is not Wanda's",
            "tokens of which every expert sees one, before pruning and after",
            "use more `samples`, or a longer `seq_len`",
        )


def _perplexity(ids: Array, logits: Array) -> Array:
    """``exp`` of the mean nats per predicted token, [1], from the logits of all tokens."""
    softmax = RunningSoftmax.start(ids[:, 1:].ravel())
    softmax = softmax.add(logits[:, :-1].reshape(-1, logits.shape[-1]), 0)
    return np.exp([-softmax.log_probabilities.mean()])


StepTable = tuple[Callable[[StepInputs], NamedArrays], ...]
TABLE: StepTable = (
    dense.forward_points,
    dense.by_noise,
    dense.signals,
    dense.allocations,
    _by_pruning,
    _by_divergence,
    _by_pruners,
)
# Of what pruners compute in every block, by its last word: the pruners where it is a step, if the
# block is shown. Outer products are large, and other weights follow from the decisions.
_SHOWN = {
    "score": ("wanda", "pattern"),
    "weight": ("wanda", "sparsegpt"),
    "products": ("sparsegpt",),
}


def steps(
    model: Model,
    ids: Array,
    recipe: Recipe,
    dtype: npt.DTypeLike = np.float64,
) -> Arrays:
    """Compute every step of a recipe, as `score`, `allocate` and `prune` do.

    Their names (docs/reference/names.md, Steps of a case) are in the order of execution. Statistics
    and scores are float64 in every dtype.

    Raises:
        RefimplError: As `score`, `allocate` and `prune` raise it.
    """
    every = every_array(StepInputs(model, recipe, ids, dtype))
    return {name: x for name, x in every.items() if is_step(name, recipe)}


def every_array(inputs: StepInputs, table: StepTable = TABLE) -> Arrays:
    """What a table computes, of all blocks and pruners; with an experiment its states, too.

    Nothing behind the last of the steps that are wanted is computed.
    """
    recipe = inputs.recipe
    config = inputs.config
    left = {*(inputs.wanted or ())}
    perturbs = any(recipe.perturbs(x, config.num_blocks) for x in ("", "coarse."))
    arrays: dict[str, Array] = {}
    shared = {x for y in dense.kv_steps(config, config.num_blocks).values() for x in y}
    inputs.model.check_finite(inputs.dtype)
    with within_range(inputs.dtype):
        for function in (x for x in table if not recipe.only or x in TABLE[:2]):
            for name, value in function(inputs):
                state = (
                    name == "embed" or name.endswith(".resid_post") or name in shared
                )
                if not recipe.only or state:  # what later steps read
                    inputs.values[name] = value
                inputs.missing.setdefault(name, frozenset(inputs.missed))
                measured = function is dense.by_noise or (
                    perturbs and name.endswith(".resid_post")
                )
                if measured or recipe.asks(name):
                    arrays[name] = value
                left.discard(name)
                if inputs.wanted is not None and not left:
                    return arrays
    return arrays


def computed_again(inputs: StepInputs, step: str) -> Array:
    """One step from given values, those of its block or stage."""
    first, *rest = step.split(".")
    stage = first if first in ("embed", "pruned", "divergence") else stage_of(step)
    arrays: NamedArrays
    if first == "blocks":
        before = inputs.state_at(int(rest[0]), "resid_pre")
        arrays = dense.points_of_block(inputs, int(rest[0]), before)
    elif stage == "forward":
        arrays = dense.points_of_head(inputs, inputs.state_at(-1, "resid_post"))
    else:
        table: Mapping[str, StepTable] = {
            "embed": (dense.forward_points,),
            "experiment": (dense.by_noise,),
            "signals": (dense.forward_points, dense.signals),
            "allocation": (dense.allocations,),
            "pruned": (dense.forward_points, _by_pruning),
            "divergence": (_by_divergence,),
        }
        arrays = chain.from_iterable(
            x(inputs) for x in table.get(stage, (_by_pruners,))
        )
    for name, value in arrays:
        if name == step:
            return value
        inputs.values[name] = value
    raise KeyError(step)


def is_step(name: str, recipe: Recipe) -> bool:
    """Whether an array of `every_array` is a step: of scores and weights, those that are shown."""
    pruner, *rest = name.split(".")
    if not rest or rest[0] != "blocks" or rest[-1] not in _SHOWN:
        return True
    return pruner in _SHOWN[rest[-1]] and int(rest[1]) in recipe.shown
