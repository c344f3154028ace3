"""The whole method on one model: every array that a candidate is checked against, by name."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from refimpl.model.floating_point import loud
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.oracle.dense_steps import (
    NamedArrays,
    StepInputs,
    allocations,
    by_noise,
    forward,
    kept_steps,
    signals,
)
from refimpl.oracle.pruned_steps import by_pruners, by_pruning, perplexities
from refimpl.oracle.recipe import Recipe

StepTable = tuple[Callable[[StepInputs], NamedArrays], ...]
TABLE: StepTable = (forward, by_noise, signals, allocations, by_pruning, by_pruners, perplexities)
# Of what pruners compute in every block, by its last word: the pruners where it is a step, if the
# block is shown. Outer products are large, and other weights follow from the decisions.
SHOWN = {
    "score": ("wanda", "pattern"),
    "weight": ("wanda", "sparsegpt"),
    "products": ("sparsegpt",),
}


def steps(
    model: Model,
    ids: npt.NDArray[np.int64],
    recipe: Recipe,
    dtype: npt.DTypeLike = np.float64,
    choices: Mapping[str, Array] = {},
) -> dict[str, Array]:
    """Compute every step of a recipe, as `score`, `allocate` and `prune` do.

    Their names (docs/reference/names.md, Steps of a case) are in the order of execution. Statistics
    and scores are float64 in every dtype; `choices` are steps `blocks.{l}.router.keep` with which
    the trace points are computed in place of the model's own.

    Raises:
        RefimplError: As `score`, `allocate` and `prune` raise it.

    Example:
        >>> from refimpl import read_model
        >>> arrays = steps(read_model("fixtures/llama"), np.arange(32).reshape(2, 16), Recipe())
        >>> list(arrays)[:2], arrays["perturbed.1.drift"].shape, len(arrays)
        (['embed', 'blocks.0.resid_pre'], (3,), 366)
    """
    every = every_array(StepInputs(model, recipe, ids, dtype, choices))
    return {name: x for name, x in every.items() if is_step(name, recipe)}


def every_array(inputs: StepInputs, table: StepTable = TABLE) -> dict[str, Array]:
    """What a table computes, of all blocks and pruners; with an experiment its states, too."""
    recipe, tokens = inputs.recipe, inputs.ids.shape[1]
    perturbs = any(recipe.perturbs(x, inputs.model.config.num_blocks) for x in ("", "coarse."))
    arrays: dict[str, Array] = {}
    kept = kept_steps(inputs.model.config, inputs.model.config.num_blocks)
    inputs.model.check_finite(inputs.dtype)
    with loud(inputs.dtype):
        for function in table[:2] if recipe.only else table:
            for name, value in function(inputs):
                state = name == "embed" or name.endswith(".resid_post") or name in kept
                if not recipe.only or state:  # what later steps read
                    inputs.values[name] = value
                inputs.missing.setdefault(name, frozenset(inputs.missed))
                measured = function is by_noise or (perturbs and name.endswith(".resid_post"))
                if measured or recipe.asks(name):
                    if function is forward and value.dtype.kind == "f":
                        value = np.array(recipe.sampled(value, tokens), subok=True)
                    arrays[name] = value
    return arrays


def is_step(name: str, recipe: Recipe) -> bool:
    """Whether an array of `every_array` is a step: of scores and weights, those that are shown."""
    pruner, *rest = name.split(".")
    if not rest or rest[0] != "blocks" or rest[-1] not in SHOWN:
        return True
    return pruner in SHOWN[rest[-1]] and int(rest[1]) in recipe.shown
