"""How far each discrete choice of a case is from going the other way."""

from collections.abc import Iterator, Mapping
from math import inf

import numpy as np
import numpy.typing as npt

from refimpl.jobs.execution import Workers
from refimpl.jobs.profile import spectra
from refimpl.method.perturbation import SINK_FACTOR
from refimpl.model.checkpoint import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import INPUT_OF
from refimpl.oracle.choices import Bools, dense_scores, sparsegpt_scores
from refimpl.oracle.steps import Recipe
from refimpl.pruning.pattern import parse_pattern
from refimpl.pruning.sparsegpt import WIDTH

Named = Iterator[tuple[str, Array]]


def margins(
    model: Model, ids: npt.NDArray[np.int64], recipe: Recipe, steps: Mapping[str, Array]
) -> dict[str, Array]:
    """Compute how near each choice is: the relative change of numbers from which on it may turn.

    With L blocks, infinite where there is nothing to choose, and 0 where equal numbers are told
    apart by their place:

    - `sinks` [L], where sinks are left out: of a token's norm to the line, the nearest;
    - `owl.signal` [L]: of a score to the line, the nearest;
    - `alphapruning.signal` [L, linears]: by how much the next start's Kolmogorov-Smirnov distance
      is larger (a difference, not a ratio);
    - `{base}.counts` [1]: of the sparsities, all of them;
    - `{pruner}.keep` [L, linears]: of the scores; of SparseGPT those at the time of the decision;
    - `wanda.keep.rows`, `pattern.keep.rows` [shown blocks, rows]: the same of each row, the rows of
      all linears one after another.

    Args:
        model: From `read_model`.
        ids: Token ids, [N, S].
        recipe: What the case computes.
        steps: All its steps in float64, with scores and products of all blocks.

    Returns:
        Margins by name, float32.

    Source:
        ours (docs/how-to/check.md).

    Example:
        >>> from dataclasses import replace
        >>> from refimpl.oracle.case import read_case
        >>> from refimpl.oracle.steps import steps
        >>> case = read_case("fixtures/cases/opt")
        >>> ids, every = case.inputs["token_ids"], replace(case.recipe, shown=(0, 1, 2))
        >>> found = margins(case.model, ids, case.recipe, steps(case.model, ids, every))
        >>> found["wanda.keep"].shape, float(found["owl.counts"][0]) > 0
        ((3, 6), True)
    """
    made: dict[str, Array] = {}
    if recipe.sink == "exclude":
        made["sinks"] = np.array([_sinks(steps, i) for i in range(model.config.num_blocks)])
    m = float(recipe.request("owl").options["m"])
    lines = [np.abs(score / (m * score.mean()) - 1).min() for score in dense_scores(model, ids)]
    made["owl.signal"] = np.array(lines)
    if "alphapruning" in recipe.bases:
        options = recipe.request("alphapruning").options
        with Workers() as workers:
            laws = spectra(model, workers, str(options["fit"]), str(options["xmin"]))
        leads = [[inf if law.ks_margin is None else law.ks_margin for law in row] for row in laws]
        made["alphapruning.signal"] = np.array(leads)
    size = model.config.block_size
    for base in recipe.bases:
        counts = steps[f"{base}.counts"].sum(axis=1)
        made[f"{base}.counts"] = np.array([count_margin(steps[f"{base}.corrected"] * size, counts)])
    made |= _decisions(model, len(ids), recipe, steps)
    return {name: value.astype(np.float32) for name, value in made.items()}


def count_margin(quotas: Array, counts: Array) -> float:
    """From which relative error of quotas on the largest remainder may round them otherwise.

    ``min (1 - (q_u - n_u) + (q_v - n_v)) / (q_u + q_v)`` over units u and v: the roundings of q are
    the n of the same sum with ``max(q - n) - min(q - n) <= 1``.

    Args:
        quotas: Weights to prune of each unit before rounding, q, [U].
        counts: What they were rounded to, n, [U].

    Returns:
        The margin; infinite for one unit.

    Source:
        ours, from docs/explanation/method.md, section 5.

    Example:
        >>> round(count_margin(np.array([1.6, 2.4]), np.array([2, 2])), 12)
        0.05
    """
    missed = quotas - counts
    room = 1 - missed[:, None] + missed[None, :]
    both = quotas[:, None] + quotas[None, :]
    others = ~np.eye(len(quotas), dtype=np.bool_) & (both > 0)
    return float(np.min(room[others] / both[others], initial=inf))


def row_margins(keep: Bools, score: Array) -> Array:
    """From which relative difference of scores on each row's decision may turn.

    ``1 - g / s``, g the highest score that goes, s the lowest that stays. Where some rows lose one
    weight more, those whose next candidate scores lowest, also that of a row's candidate to those
    of the rows that lose another number.

    Args:
        keep: Decisions, [rows, n].
        score: Scores that are compared with each other, row by row, [rows, n], at least 0.

    Returns:
        Margins, [rows].

    Source:
        ours.

    Example:
        >>> keep = np.array([[True, False, True], [True, True, True]])
        >>> row_margins(keep, np.array([[4.0, 1.0, 2.0], [1.25, 3.0, 2.0]])).round(12).tolist()
        [0.2, 0.2]
    """
    lowest = np.min(np.where(keep, score, inf), axis=1)
    highest = np.max(np.where(keep, 0.0, score), axis=1)
    found = np.where(keep.any(axis=1) & ~keep.all(axis=1), _gap(highest, lowest), inf)
    stay = keep.sum(axis=1)
    more = stay < stay.max()
    if not more.any():
        return found
    last, following = np.max(highest[more]), np.min(lowest[~more])
    between = np.where(more, _gap(highest, following), _gap(last, lowest))
    return np.minimum(found, between)


def _gap(goes: Array, stays: Array) -> Array:
    """``1 - goes / stays``; 0 where both are 0."""
    known = stays > 0
    return np.where(known, 1 - goes / np.where(known, stays, 1.0), 0.0)


def _sinks(steps: Mapping[str, Array], block: int) -> float:
    """How near a token's norm is to where it counts as a sink."""
    norms = np.linalg.norm(steps[f"blocks.{block}.resid_post"], axis=-1)
    line = SINK_FACTOR * np.median(norms, axis=-1, keepdims=True)
    return float(np.abs(norms / line - 1).min())


def _decisions(model: Model, sequences: int, recipe: Recipe, steps: Mapping[str, Array]) -> Named:
    """Of every pruner, linear by linear and row by row."""
    blocks, names = range(model.config.num_blocks), tuple(model.config.linear_shapes)
    groups = {"wanda": 0}
    if recipe.pattern:
        groups["pattern"] = parse_pattern(recipe.pattern).group
    for pruner, group in groups.items():
        rows = [[_rows(steps, f"{pruner}.blocks.{i}.{x}", group) for x in names] for i in blocks]
        yield f"{pruner}.keep", np.array([[row.min() for row in block] for block in rows])
        yield f"{pruner}.keep.rows", np.array([np.concatenate(rows[i]) for i in recipe.shown])
    found = []
    for i in blocks:
        dense = model.block(i, np.float64)
        for name in names:
            weight, prefix = dense[f"{name}.weight"], f"sparsegpt.blocks.{i}"
            keep = _keep(steps[f"{prefix}.{name}.keep"], weight.shape[1])
            products = steps[f"{prefix}.{INPUT_OF[name]}.products"]
            score = sparsegpt_scores(weight, products, sequences, keep, recipe.damping)
            some = [slice(start, start + WIDTH) for start in range(0, weight.shape[1], WIDTH)]
            together = [(keep[:, x].reshape(1, -1), score[:, x].reshape(1, -1)) for x in some]
            found.append(min(float(row_margins(*one)[0]) for one in together))
    yield "sparsegpt.keep", np.array(found).reshape(len(blocks), len(names))


def _keep(bits: Array, width: int) -> Bools:
    return np.unpackbits(bits, axis=1, count=width).astype(np.bool_)


def _rows(steps: Mapping[str, Array], linear: str, group: int) -> Array:
    """Margins of each row; of n:m the smallest of its groups."""
    score = steps[f"{linear}.score"]
    shape, keep = (-1, group or score.shape[1]), _keep(steps[f"{linear}.keep"], score.shape[1])
    found = row_margins(keep.reshape(shape), score.reshape(shape))
    return found.reshape(len(score), -1).min(axis=1)
