"""The whole method on one model: every array that a candidate is checked against, by name.

Names are in the order of execution, so the first that differs tells where to look. `TABLE` has the
functions that compute them, by the method's own; a chain calls one after the other.
"""

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

    With L blocks, N sequences of S tokens, in this order:

    - the trace points, [N, S, ...]; of a mixture also `blocks.{l}.router.keep`, bits,
      [N, S, experts / 8]: which experts each token goes to;
    - `perturbed.{l}.drift` and `.alignment`, after block l and every later one, [L - l];
    - `absorption_coefficient` [L];
    - `coarse.*`, the same at `coarse_eta` with several draws, and `coarse.stderr` [L], the standard
      error of the coefficient (with n - 1), if there are two sequences or more;
    - `owl.signal`, `dlp.signal`, `dlp_median.signal` [L], and `alphapruning.signal`,
      `alphapruning_mid.signal` [L, linears];
    - `{base}.base` and `{base}.corrected`, sparsities, [L]; `{base}.counts` [L, linears]; of
      `alphapruning_linear`, `.corrected` is [L, linears];
    - `pruned.*`, the perturbation by pruning at the first base: the dense `.squares`, `.counts` and
      `.keep`, named as below; `.drift` and `.alignment`; the `absorption_coefficient`, and
      `pruned.divergence` [L], nats; `arrival.corrected` and `divergence.corrected` [L], the first
      base so corrected;
    - for each of `magnitude`, `wanda`, `sparsegpt`, `pattern` (Wanda's n:m) and
      `sparsegpt_pattern`, block by block through the pruned ones before:
      `{pruner}.blocks.3.mlp_norm.squares` [in] (`.products` [in, in] for sparsegpt, of the shown
      blocks), sums over the tokens of what linears read; `{pruner}.blocks.3.q_proj.keep`, bits,
      [out, in / 8]; of the shown blocks `.score` (not of sparsegpt, where scores change as columns
      go) and `.weight` (of wanda and sparsegpt), [out, in]; of magnitude and sparsegpt_pattern only
      `.keep`;
    - `dense.perplexity` and `{pruner}.perplexity` [1].

    Args:
        model: From `read_model`.
        ids: Token ids, [N, S].
        recipe: The computation.
        dtype: Of the computation, float32 or float64; statistics and scores are float64.
        choices: Steps `blocks.{l}.router.keep` with which the trace points are computed in place of
            the model's own.

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
    """What a table computes, with scores, products and weights of all blocks and pruners.

    Of a recipe of some steps, these of the forward and the experiments by noise; with an experiment
    also the states after each block, from whose errors its tolerance is made.
    """
    recipe, tokens = inputs.recipe, inputs.ids.shape[1]
    perturbs = any(recipe.perturbs(x, inputs.model.config.num_blocks) for x in ("", "coarse."))
    arrays: dict[str, Array] = {}
    inputs.model.check_finite(inputs.dtype)
    with loud(inputs.dtype):
        for function in table[:2] if recipe.only else table:
            for name, value in function(inputs):
                state = name == "embed" or name.endswith(".resid_post")
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
