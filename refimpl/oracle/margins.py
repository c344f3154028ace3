"""How far each discrete choice of a case is from going the other way."""

from collections.abc import Mapping
from math import inf

import numpy as np
import numpy.typing as npt

from refimpl.method.perturbation import SINK_FACTOR
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import INPUT_OF
from refimpl.oracle.judging.choices import Bools, dense_scores, sparsegpt_scores
from refimpl.oracle.steps import Recipe
from refimpl.pruners.pattern import parse_pattern
from refimpl.pruners.scores import wanda_score
from refimpl.pruners.sparsegpt import WIDTH
from refimpl.pruning.pruned_blocks import PrunedBlock
from refimpl.running.settings import Settings
from refimpl.scoring.spectra import power_laws


def margins(
    model: Model,
    ids: npt.NDArray[np.int64],
    recipe: Recipe,
    steps: Mapping[str, Array],
    decided: "Decided",
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
        steps: All its steps in float64.
        decided: Margins of the decisions, collected while they were computed.

    Returns:
        Margins by name, float32.

    Source:
        ours (docs/how-to/check.md).

    Example:
        >>> from refimpl.oracle.case import read_case
        >>> from refimpl.oracle.steps import steps
        >>> case = read_case("fixtures/cases/opt")
        >>> ids, decided = case.inputs["token_ids"], Decided(case.model, case.recipe)
        >>> found = steps(case.model, ids, case.recipe, seen=decided)
        >>> made = margins(case.model, ids, case.recipe, found, decided)
        >>> made["wanda.keep"].shape, float(made["owl.counts"][0]) > 0
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
        with Settings(np.float64).open({}) as resources:
            laws = power_laws(model, str(options["fit"]), str(options["xmin"]), resources)
        leads = [[inf if law.ks_margin is None else law.ks_margin for law in row] for row in laws]
        made["alphapruning.signal"] = np.array(leads)
    size = model.config.block_size
    for base in recipe.bases:
        counts = steps[f"{base}.counts"].sum(axis=1)
        made[f"{base}.counts"] = np.array([count_margin(steps[f"{base}.corrected"] * size, counts)])
    for pruner, keep in decided.keep.items():
        made[f"{pruner}.keep"] = np.array(keep)
        if pruner in decided.rows:
            made[f"{pruner}.keep.rows"] = np.array(decided.rows[pruner])
    return {name: value.astype(np.float32) for name, value in made.items()}


class Decided:
    """Margins of decisions, collected block by block while a model is pruned.

    Args:
        model: The model.
        recipe: What is computed.
    """

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self._model, self._recipe = model, recipe
        self.keep: dict[str, list[list[float]]] = {}
        self.rows: dict[str, list[Array]] = {}

    def __call__(self, pruner: str, block: PrunedBlock, sequences: int) -> None:
        """Take in one block.

        Args:
            pruner: "wanda", "sparsegpt" or "pattern".
            block: What became of it.
            sequences: Number of sequences that its sums were taken over.
        """
        dense = self._model.block(block.index, np.float64)
        found = [
            _rows(
                pruner,
                dense[f"{name}.weight"],
                block.sums[INPUT_OF[name]],
                linear.keep,
                sequences,
                self._recipe,
            )
            for name, linear in block.linears.items()
        ]
        self.keep.setdefault(pruner, []).append([float(rows.min()) for rows in found])
        if pruner != "sparsegpt" and block.index in self._recipe.shown:
            self.rows.setdefault(pruner, []).append(np.concatenate(found))


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


def _rows(
    pruner: str, weight: Array, total: Array, keep: Bools, sequences: int, recipe: Recipe
) -> Array:
    """Margins of each row; of n:m the smallest of its groups, of SparseGPT of each 128 columns."""
    if pruner == "sparsegpt":
        score = sparsegpt_scores(weight, total, sequences, keep, recipe.damping)
        some = [slice(start, start + WIDTH) for start in range(0, weight.shape[1], WIDTH)]
        together = [(keep[:, x].reshape(1, -1), score[:, x].reshape(1, -1)) for x in some]
        return np.array([row_margins(*one)[0] for one in together])
    score = wanda_score(weight, total / sequences)
    group = parse_pattern(recipe.pattern).group if pruner == "pattern" else score.shape[1]
    found = row_margins(keep.reshape(-1, group), score.reshape(-1, group))
    return found.reshape(len(score), -1).min(axis=1)
