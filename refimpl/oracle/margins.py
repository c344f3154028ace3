"""What a case has beside its steps: margins of discrete choices, and numbers of the peers' code."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import Allocation, base_only
from refimpl.errors import RefimplError
from refimpl.method.perturbation import SINK_FACTOR
from refimpl.model.experts import ROUTER, preferences
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.oracle.dense_steps import StepInputs, sums_behind
from refimpl.oracle.judging.ties import Keep, between_rows, edges, together, unpacked
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.steps import METHODS, every_array, is_step
from refimpl.pruners.decision import PrunerOptions, decision

SHIPPED = ("owl", "alphapruning", "dlp", "uniform")  # bases with code of the peers


def steps_and_margins(
    model: Model, ids: npt.NDArray[np.int64], recipe: Recipe
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Every step in float64, and the margins as the table of docs/how-to/check.md lists them."""
    inputs = StepInputs(model, recipe, ids)
    arrays = every_array(inputs)
    margins, blocks = dict[str, Array](), range(model.config.num_blocks)
    if model.config.experts:
        margins["router.keep"] = np.array([_router(inputs, i) for i in blocks])
    if recipe.sink == "exclude":
        norms = np.linalg.norm([arrays[f"blocks.{i}.resid_post"] for i in blocks], axis=-1)
        lines = SINK_FACTOR * np.median(norms, axis=-1, keepdims=True)
        margins["sinks"] = np.abs(norms / lines - 1).min(axis=(1, 2))  # of [L, N, S]
    m = float(recipe.request("owl").options["m"])
    lines = [np.abs(x / (m * x.mean()) - 1).min() for x in inputs.dense_scores()]
    margins["owl.signal"] = np.array(lines)
    if "alphapruning" in recipe.bases:
        of_tails = inputs.signal("alphapruning").values["margin"]
        margins["alphapruning.signal"] = np.nan_to_num(of_tails, nan=inf)
    for base in recipe.bases:
        counts, final = arrays[f"{base}.counts"], arrays[f"{base}.corrected"]
        sizes = model.config.linear_sizes
        if final.ndim == 1:
            counts, sizes = counts.sum(axis=1), sizes.sum(axis=1)
        exists = sizes > 0
        margin = count_margin((final * sizes)[exists], counts[exists])
        margins[f"{base}.counts"] = np.array([margin])
    for pruner in ("pruned", *METHODS):
        if recipe.pattern or not pruner.endswith("pattern"):
            by_block = _of_rows(inputs, pruner)
            least = [[float(rows.min()) for rows in by_linear] for by_linear in by_block]
            margins[f"{pruner}.keep"] = _table(least)
            if pruner in ("wanda", "pattern") and recipe.shown:
                shown = [np.concatenate(x) for i, x in enumerate(by_block) if i in recipe.shown]
                margins[f"{pruner}.keep.rows"] = _table(shown)
    arrays = {name: x for name, x in arrays.items() if is_step(name, recipe)}
    return arrays, {name: value.astype(np.float32) for name, value in margins.items()}


def _table(rows: Sequence[Sequence[float] | Array]) -> Array:
    """Numbers by block, [L, n]; infinite where a block has fewer linears, or rows, than another."""
    table = np.full((len(rows), max(map(len, rows))), inf)
    for into, row in zip(table, rows, strict=True):
        into[: len(row)] = row
    return table


def _of_rows(inputs: StepInputs, pruner: str) -> list[list[Array]]:
    """Margins of a pruner's decisions by block, linear and row, or what is decided on together."""

    def margins_of(step: str) -> Array:
        score, group = inputs.scores(step)
        keep = unpacked(inputs.values[step], score.shape[1])
        margins = np.concatenate([row_margins(*x) for x in together(group, keep, score)])
        return margins.reshape(len(score), -1).min(axis=1) if group >= 0 else margins

    linears = enumerate(inputs.model.config.linears)
    return [[margins_of(f"{pruner}.blocks.{i}.{x}.keep") for x in names] for i, names in linears]


def count_margin(quotas: Array, counts: Array) -> float:
    """Relative error of quotas [U] from which on the largest remainder may not give counts [U]."""
    missed = quotas - counts
    room = 1 - missed[:, None] + missed[None, :]
    both = quotas[:, None] + quotas[None, :]
    others = ~np.eye(len(quotas), dtype=np.bool_) & (both > 0)
    return float(np.min(room[others] / both[others], initial=inf))


def row_margins(keep: Keep, score: Array) -> Array:
    """Relative difference of scores [rows, n] from which on a row's decision may turn, [rows]."""
    lowest, highest = edges(keep, score, score)
    more, last, following = between_rows(keep, lowest, highest)
    decided = keep.any(axis=1, keepdims=True) & ~keep.all(axis=1, keepdims=True)
    margins = np.where(decided, _gap(highest, lowest), inf)
    between = np.where(more, _gap(highest, following), _gap(last, lowest))
    return (np.minimum(margins, between) if more.any() else margins)[:, 0]


def _gap(goes: Array, stays: Array) -> Array:
    """``1 - goes / stays``; 0 where both are 0."""
    positive = stays > 0
    return np.where(positive, 1 - goes / np.where(positive, stays, 1.0), 0.0)


def _router(inputs: StepInputs, block: int) -> float:
    """How near a token of a block is to another expert: ``(s - g) / (|s| + |g|)``."""
    step, experts = f"blocks.{block}.{ROUTER}", inputs.model.config.experts
    if experts is None or step not in inputs.values:
        return inf
    _, logits, chosen, weights = inputs.router(step)
    score, _ = preferences(logits, experts, weights.get("router.correction"))
    stays = np.min(np.where(chosen, score, inf), axis=-1)
    goes = np.max(np.where(chosen, -inf, score), axis=-1)
    tied = np.isfinite(goes)
    gap = (stays - goes)[tied] / (np.abs(stays) + np.abs(goes))[tied]
    return float(np.min(gap, initial=inf))


def peer_steps(
    model: Model, recipe: Recipe, expected: Mapping[str, Array], sequences: int
) -> dict[str, Array]:
    """What the peers' shipped code makes of a case's signals and statistics, if it does not fail.

    Of bases sparsities and counts, of block 0 decisions: the steps' names behind `peer.`.
    """
    config, found, allocations = model.config, dict[str, Array](), dict[str, Allocation]()
    for base in (x for x in recipe.bases if x in SHIPPED):
        request = replace(recipe.request(base), correct=None, compat="peer")
        with suppress(RefimplError):
            allocation = base_only(recipe.signals(expected, base), request, config.linears)
            allocations[base] = allocation
            found[f"peer.{base}.base"] = allocation.base_sparsity
            found[f"peer.{base}.counts"] = allocation.linear_pruned
    if 0 not in recipe.shown or recipe.bases[0] not in allocations:
        return found
    dense, goals = model.block(0, np.float64), allocations[recipe.bases[0]].linear_sparsity[0]
    for method in ("wanda", "sparsegpt"):
        pruner = PrunerOptions(method, recipe.damping)
        for name, goal in zip(config.linears[0], goals.tolist(), strict=False):
            step, weight = f"{method}.blocks.0.{name}.keep", dense[f"{name}.weight"]
            with suppress(RefimplError):
                total = expected[sums_behind(step)]
                keep, _ = decision(weight, total, sequences, goal, pruner, "peer")
                found[f"peer.{step}"] = np.packbits(keep, axis=1)
    return found
