"""The whole method on one model: every array that a candidate is checked against, by name.

Names are in the order of execution, so the first that differs tells where to look. Everything is
computed by the functions that the commands call.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import allocate
from refimpl.allocation.request import Correction, Request
from refimpl.allocation.scores import Scores
from refimpl.allocation.targets import Targets, allocation_targets, pattern_targets
from refimpl.errors import RefimplError
from refimpl.evaluation.likelihood import RunningSoftmax
from refimpl.method.perturbation import Perturbation
from refimpl.model.experts import ROUTER
from refimpl.model.floating_point import loud
from refimpl.model.forward import INSIDE, block, embed, head, places
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import input_of
from refimpl.oracle.judging.pruner_scores import unpacked
from refimpl.oracle.recipe import Recipe
from refimpl.pruners.decision import Pruner
from refimpl.pruners.pattern import parse_pattern
from refimpl.pruners.wanda import wanda_keep, wanda_score
from refimpl.pruning.pruned_blocks import PrunedBlock, pruned_blocks
from refimpl.running.settings import Resources, Settings
from refimpl.scoring.dense_statistics import Moments, dense_squares, wanda_moments
from refimpl.scoring.measurements import Squares
from refimpl.scoring.score import score
from refimpl.scoring.signals import Chosen, of_moments, of_weights
from refimpl.tokens import Tokens


def steps(
    model: Model,
    ids: npt.NDArray[np.int64],
    recipe: Recipe,
    dtype: npt.DTypeLike = np.float64,
    observe: Callable[[str, PrunedBlock], None] = lambda name, block: None,
    pruning: bool = True,
    choices: Mapping[str, Array] = {},
) -> dict[str, Array]:
    """Compute every step of a recipe, as `score`, `allocate` and the pruners do.

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
        observe: Called with the name of each pruner and each of its blocks.
        pruning: Whether to compute what follows from decisions: `pruned.*` and the pruners' steps.
        choices: Steps `blocks.{l}.router.keep` with which the trace points are computed in place of
            the model's own.

    Raises:
        RefimplError: As `score`, `allocate` and `prune` raise it.

    Example:
        >>> from refimpl import read_model
        >>> arrays = steps(read_model("fixtures/llama"), np.arange(32).reshape(2, 16), Recipe())
        >>> list(arrays)[:2], arrays["perturbed.1.drift"].shape, len(arrays)
        (['embed', 'blocks.0.resid_pre'], (3,), 370)
    """
    if recipe.only:
        return _partial(model, ids, recipe, dtype, choices)
    arrays = forward_steps(model, ids, recipe, dtype, choices)
    tokens = Tokens(ids, "of the case", "ids")
    spectra = {"alphapruning", "alphapruning_linear"} & set(recipe.bases)
    request = recipe.request("alphapruning" if spectra else "owl")
    scores = score(model, tokens, recipe.perturbation, request, dtype=dtype)
    coarse = score(model, tokens, recipe.coarse_perturbation, recipe.request("owl"), dtype=dtype)
    arrays |= _experiment("", scores) | _experiment("coarse.", coarse)
    for base in ("owl", "dlp", "alphapruning"):
        if (signal := scores.signals.get(base)) is not None:
            arrays[f"{base}.signal"] = signal.main
    squares = _further_signals(model, ids, recipe, dtype, arrays)
    targets: dict[str, Targets] = {}
    for base in recipe.bases:
        of_base = replace(scores, signals=recipe.signals(arrays, base))
        allocation = allocate(of_base, recipe.request(base))
        targets[base] = allocation_targets(allocation)
        by_linear = base == "alphapruning_linear"
        arrays[f"{base}.base"] = allocation.base_sparsity
        arrays[f"{base}.corrected"] = (
            allocation.linear_sparsity if by_linear else allocation.corrected_sparsity
        )
        arrays[f"{base}.counts"] = allocation.linear_pruned
    config = model.config
    first = targets[recipe.bases[0]]
    pruners: list[tuple[str, str, Targets]] = []
    if pruning:
        arrays |= _perturbed_by_pruning(model, tokens, recipe, dtype, squares)
        pruners += [(name, name, first) for name in ("magnitude", "wanda", "sparsegpt")]
    if pruning and recipe.pattern:
        pattern = pattern_targets(parse_pattern(recipe.pattern), config.linears, "exact")
        pruners += [("pattern", "wanda", pattern), ("sparsegpt_pattern", "sparsegpt", pattern)]
    with loud(dtype):
        perplexities = {"dense.perplexity": perplexity(ids, arrays["logits"])}
        positions = np.arange(ids.shape[1])
        place_of = places(positions, config, dtype)
        for name, method, wanted in pruners:
            x = embed(ids, positions, model.embedding(), config, dtype)
            pruner = Pruner(method, recipe.damping)
            with Settings(dtype).open() as resources:
                for pruned in pruned_blocks(model, wanted, pruner, ids, resources):
                    x = block(x, pruned.weights, place_of[config.blocks[pruned.index]], config)
                    observe(name, pruned)
                    arrays |= _pruned(name, model, pruned, len(ids), recipe)
            logits = head(x, model.head(dtype), config)
            perplexities[f"{name}.perplexity"] = perplexity(ids, logits)
    return arrays | perplexities


def _partial(
    model: Model,
    ids: npt.NDArray[np.int64],
    recipe: Recipe,
    dtype: npt.DTypeLike,
    choices: Mapping[str, Array],
) -> dict[str, Array]:
    """The steps that the recipe asks for, of the forward and the experiments."""
    arrays = forward_steps(model, ids, recipe, dtype, choices)
    for prefix in ("", "coarse."):
        if recipe.perturbs(prefix, model.config.num_blocks):
            plan = recipe.coarse_perturbation if prefix else recipe.perturbation
            tokens, request = Tokens(ids, "of the case", "ids"), recipe.request("uniform")
            arrays |= _experiment(prefix, score(model, tokens, plan, request, dtype=dtype))
    return arrays


def forward_steps(
    model: Model,
    ids: npt.NDArray[np.int64],
    recipe: Recipe,
    dtype: npt.DTypeLike,
    choices: Mapping[str, Array],
) -> dict[str, Array]:
    """The trace points that the recipe asks for, block by block; `choices` as in `steps`.

    With an experiment also every state after a block, from whose errors its tolerance is made.
    """
    config, arrays, positions = model.config, dict[str, Array](), np.arange(ids.shape[1])
    perturbs = any(recipe.perturbs(x, config.num_blocks) for x in ("", "coarse."))

    def record(prefix: str, name: str, value: Array) -> Array:
        state = perturbs and name == "resid_post"
        if name == ROUTER and recipe.asks(prefix + name):
            arrays[prefix + name] = np.packbits(value, axis=-1)
        if prefix + name in choices:
            return unpacked(choices[prefix + name], value.shape[-1])
        if name not in INSIDE and "." not in name and (state or recipe.asks(prefix + name)):
            arrays[prefix + name] = np.array(recipe.sampled(value, len(positions)), subok=True)
        return value

    model.check_finite(dtype)
    place_of = places(positions, config, dtype)
    with loud(dtype):
        x = record("", "embed", embed(ids, positions, model.embedding(), config, dtype))
        for i, kind in enumerate(config.blocks):
            place = replace(place_of[kind], observe=partial(record, f"blocks.{i}."))
            x = block(x, model.block(i, dtype), place, config)
        if recipe.asks("final_norm", "logits"):
            head(x, model.head(dtype), config, partial(record, ""))
    return arrays


def _experiment(prefix: str, scores: Scores) -> dict[str, Array]:
    """What was measured of the perturbations, under names with a prefix or without."""
    (experiment,), states = scores.sweep, prefix or "perturbed."
    arrays: dict[str, Array] = {}
    for i in range(scores.num_blocks):
        arrays[f"{states}{i}.drift"] = experiment.drift[i, i:]
        arrays[f"{states}{i}.alignment"] = experiment.alignment[i, i:]
    arrays[f"{prefix}absorption_coefficient"] = experiment.coefficient
    if prefix == "coarse." and np.isfinite(experiment.stderr).all():
        arrays["coarse.stderr"] = experiment.stderr
    if experiment.divergence is not None:
        arrays[f"{prefix}divergence"] = experiment.divergence
    return arrays


def signal_step(
    model: Model, request: Request, resources: Resources, moments: Moments = ()
) -> Array:
    """The signal of a base, from Wanda's statistic if it is made of that, [L] or [L, linears]."""
    chosen = Chosen.of(request, ())
    measured = of_weights(model, chosen, 1, resources)
    return (measured or of_moments(model, chosen, moments, resources))[request.record.name].main


def _further_signals(
    model: Model,
    ids: npt.NDArray[np.int64],
    recipe: Recipe,
    dtype: npt.DTypeLike,
    arrays: dict[str, Array],
) -> Squares:
    """Add the signals of other statistics and fits; the squares of what dense linears read."""
    with Settings(dtype).open() as resources:
        squares = dense_squares(model, ids, resources)
        if "dlp_median" in recipe.bases:
            moments = wanda_moments(squares, len(ids), model.config)
            request = recipe.request("dlp_median")
            arrays["dlp_median.signal"] = signal_step(model, request, resources, moments)
        if "alphapruning_mid" in recipe.bases:
            request = recipe.request("alphapruning_mid")
            arrays["alphapruning_mid.signal"] = signal_step(model, request, resources)
    return squares


def _perturbed_by_pruning(
    model: Model, tokens: Tokens, recipe: Recipe, dtype: npt.DTypeLike, squares: Squares
) -> Iterator[tuple[str, Array]]:
    """The perturbation by pruning: its decisions, what it does, and the corrections by it."""
    base, sequences = recipe.bases[0], len(tokens.ids)
    plan = Perturbation("pruning", norm=recipe.norm, sink=recipe.sink)
    scores = score(model, tokens, plan, recipe.request(base, "divergence"), dtype=dtype)
    assert scores.pruned_at is not None
    counts = scores.pruned_at.linear_pruned
    yield "pruned.counts", counts
    for i, sums in enumerate(squares):
        yield from ((f"pruned.blocks.{i}.{point}.squares", total) for point, total in sums.items())
        dense = model.block(i, np.float64)
        for linear, count in zip(model.config.linears[i], counts[i].tolist(), strict=False):
            score_of = wanda_score(dense[f"{linear}.weight"], _total(sums, linear) / sequences)
            keep = wanda_keep(score_of, count)
            yield f"pruned.blocks.{i}.{linear}.keep", np.packbits(keep, axis=1)
    yield from _experiment("pruned.", scores).items()
    corrections: tuple[Correction, ...] = ("arrival", "divergence")
    for correct in corrections:
        allocation = allocate(scores, recipe.request(base, correct))
        yield f"{correct}.corrected", allocation.corrected_sparsity


def _pruned(
    name: str, model: Model, block: PrunedBlock, sequences: int, recipe: Recipe
) -> Iterator[tuple[str, Array]]:
    """One block of a pruner: the sums over its linears' inputs, scores, decisions and weights."""
    prefix, shown = f"{name}.blocks.{block.index}", block.index in recipe.shown
    kind = "products" if name.startswith("sparsegpt") else "squares"
    for point, total in block.sums.items():
        if kind == "squares" or shown:  # outer products are large
            yield f"{prefix}.{point}.{kind}", total
    dense = model.block(block.index, np.float64) if shown else {}
    for linear, pruned in block.linears.items():
        if pruned.method is not None:
            _total(block.sums, linear)
        if shown and name in ("wanda", "pattern"):
            moment = _total(block.sums, linear) / sequences
            yield f"{prefix}.{linear}.score", wanda_score(dense[f"{linear}.weight"], moment)
        yield f"{prefix}.{linear}.keep", np.packbits(pruned.keep, axis=1)
        if shown and name in ("wanda", "sparsegpt"):  # of the others it follows from keep
            yield f"{prefix}.{linear}.weight", block.weights[f"{linear}.weight"]


def _total(sums: Mapping[str, Array], linear: str) -> Array:
    """The sum of what a linear reads; an expert without tokens is refused."""
    total = sums.get(input_of(linear))
    if total is None:
        raise RefimplError(
            f"{linear}: no token is routed to this expert, so its decision is not Wanda's",
            "tokens of which every expert sees one, before pruning and after",
            "use more --samples, or a longer --seq-len",
        )
    return total


def perplexity(ids: npt.NDArray[np.int64], logits: Array) -> Array:
    """``exp`` of the mean nats per predicted token, [1], from the logits of all tokens.

    The last token is an input, too: where rotary tables depend on the length, as in the forward.
    """
    softmax = RunningSoftmax.start(ids[:, 1:].ravel())
    softmax = softmax.add(logits[:, :-1].reshape(-1, logits.shape[-1]), 0)
    return np.exp([-softmax.log_probabilities.mean()])
