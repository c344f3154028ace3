"""The margin of each discrete choice of a case: how near it is to turning."""

from collections.abc import Mapping, Sequence
from math import inf

import numpy as np
import numpy.typing as npt

from refimpl.method.perturbation import SINK_FACTOR
from refimpl.model.experts import ROUTER, preferences
from refimpl.model.forward import project
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.oracle.dense_steps import StepInputs
from refimpl.oracle.judging.ties import (
    Keep,
    dense_scores,
    scores_of,
    sums_behind,
    together,
    unpacked,
)
from refimpl.oracle.pruned_steps import METHODS
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.steps import every_array, is_step
from refimpl.running.settings import Settings
from refimpl.scoring.signals import Chosen, of_weights


def steps_and_margins(
    model: Model, ids: npt.NDArray[np.int64], recipe: Recipe
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Every step in float64, and the margins as the table of docs/how-to/check.md lists them."""
    arrays = every_array(StepInputs(model, recipe, ids))
    margins, blocks = dict[str, Array](), range(model.config.num_blocks)
    if model.config.experts:
        margins["router.keep"] = np.array([_router(model, arrays, i) for i in blocks])
    if recipe.sink == "exclude":
        margins["sinks"] = np.array([_sinks(arrays, i) for i in blocks])
    m = float(recipe.request("owl").options["m"])
    lines = [
        np.abs(score / (m * score.mean()) - 1).min()
        for score in dense_scores(model, arrays, len(ids))
    ]
    margins["owl.signal"] = np.array(lines)
    if "alphapruning" in recipe.bases:
        with Settings(np.float64).open() as resources:
            chosen = Chosen.of(recipe.request("alphapruning"), ())
            (signal,) = of_weights(model, chosen, resources).values()
        margins["alphapruning.signal"] = np.nan_to_num(signal.values["margin"], nan=inf)
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
            by_block = _of_rows(model, recipe, arrays, pruner, len(ids))
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


def _of_rows(
    model: Model, recipe: Recipe, arrays: Mapping[str, Array], pruner: str, sequences: int
) -> list[list[Array]]:
    """Margins of a pruner's decisions by block, linear and row, or what is decided on together."""
    how = recipe.pattern, recipe.damping

    def margins_of(prefix: str, name: str, weight: Array) -> Array:
        step = f"{prefix}.{name}.keep"
        total = None if pruner == "magnitude" else arrays[sums_behind(step)]
        score, group = scores_of(step, weight, arrays[step], total, sequences, how)
        keep = unpacked(arrays[step], weight.shape[1])
        margins = np.concatenate([row_margins(*x) for x in together(group, keep, score)])
        return margins.reshape(len(score), -1).min(axis=1) if group >= 0 else margins

    dense = [model.block(i, np.float64) for i in range(model.config.num_blocks)]
    return [
        [margins_of(f"{pruner}.blocks.{i}", x, dense[i][f"{x}.weight"]) for x in linears]
        for i, linears in enumerate(model.config.linears)
    ]


def count_margin(quotas: Array, counts: Array) -> float:
    """Relative error of quotas q [U] from which on the largest remainder may not give counts n [U].

    ``min (1 - (q_u - n_u) + (q_v - n_v)) / (q_u + q_v)`` over units u and v (`count_ties`).
    """
    missed = quotas - counts
    room = 1 - missed[:, None] + missed[None, :]
    both = quotas[:, None] + quotas[None, :]
    others = ~np.eye(len(quotas), dtype=np.bool_) & (both > 0)
    return float(np.min(room[others] / both[others], initial=inf))


def row_margins(keep: Keep, score: Array) -> Array:
    """Relative difference of scores [rows, n] from which on each row's decision may turn, [rows].

    ``1 - g / s``, g the highest score that goes, s the lowest that stays; where some rows lose one
    weight more, also of g and s of two such rows.
    """
    lowest = np.min(np.where(keep, score, inf), axis=1)
    highest = np.max(np.where(keep, 0.0, score), axis=1)
    margins = np.where(keep.any(axis=1) & ~keep.all(axis=1), _gap(highest, lowest), inf)
    stay = keep.sum(axis=1)
    more = stay < stay.max()
    if not more.any():
        return margins
    last, following = np.max(highest[more]), np.min(lowest[~more])
    between = np.where(more, _gap(highest, following), _gap(last, lowest))
    return np.minimum(margins, between)


def _gap(goes: Array, stays: Array) -> Array:
    """``1 - goes / stays``; 0 where both are 0."""
    positive = stays > 0
    return np.where(positive, 1 - goes / np.where(positive, stays, 1.0), 0.0)


def _router(model: Model, arrays: Mapping[str, Array], block: int) -> float:
    """How near a token of a block is to another expert: ``(s - g) / (|s| + |g|)``."""
    step, weights, experts = (
        f"blocks.{block}.{ROUTER}",
        model.block(block, np.float64),
        model.config.experts,
    )
    if experts is None or step not in arrays:
        return inf
    logits = project(arrays[f"blocks.{block}.mlp_norm"], weights, "router")
    score, _ = preferences(logits, experts, weights.get("router.correction"))
    chosen = unpacked(arrays[step], experts.num_experts)
    stays = np.min(np.where(chosen, score, inf), axis=-1)
    goes = np.max(np.where(chosen, -inf, score), axis=-1)
    tied = np.isfinite(goes)
    gap = (stays - goes)[tied] / (np.abs(stays) + np.abs(goes))[tied]
    return float(np.min(gap, initial=inf))


def _sinks(arrays: Mapping[str, Array], block: int) -> float:
    """How near a token's norm is to the line of sinks."""
    norms = np.linalg.norm(arrays[f"blocks.{block}.resid_post"], axis=-1)
    line = SINK_FACTOR * np.median(norms, axis=-1, keepdims=True)
    return float(np.abs(norms / line - 1).min())
