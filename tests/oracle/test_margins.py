"""Margins of a case's choices: against brute force, and against choices that are made to turn."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from candidates import CASE_NAMES
from gates import case_of, model_of

from refimpl.model.ops import Array
from refimpl.model.statistics import input_of
from refimpl.oracle.case import case_inputs, computed_case
from refimpl.oracle.judging.ties import sparsegpt_scores, unpacked
from refimpl.oracle.margins import count_margin, row_margins
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.steps import TABLE, every_array, steps
from refimpl.pruners.counts import apportion
from refimpl.pruners.pattern import parse_pattern, pattern_keep
from refimpl.pruners.wanda import wanda_keep
from refimpl.tokens import random_tokens

NEAR, FAR = 0.999, 1.001  # times a margin: on either side of it


@cache
def every(name: str) -> dict[str, Array]:
    """All steps, with scores and products of all blocks."""
    case = case_of(name)
    blocks = tuple(range(case.model.config.num_blocks))
    return steps(case.model, case.inputs["token_ids"], replace(case.recipe, shown=blocks))


def test_margins_are_small_files_of_numbers_that_are_not_negative() -> None:
    """The script that makes the cases makes these margins, too: see test_oracle.py."""
    for case in map(case_of, CASE_NAMES):
        assert all((x.dtype, (x >= 0).all()) == (np.float32, True) for x in case.margins.values())
        assert (case.folder / "margins.safetensors").stat().st_size < 8 * 1024


def linears(name: str, pruner: str) -> list[tuple[int, int, str, Array, Array]]:
    """Block, number, name, decision and scores of every linear."""
    case, arrays = case_of(name), every(name)
    entries = []
    for i in range(case.model.config.num_blocks):
        weights = case.model.block(i, np.float64)
        for j, linear in enumerate(case.model.config.linears[i]):
            prefix, weight = f"{pruner}.blocks.{i}.{linear}", weights[f"{linear}.weight"]
            keep = unpacked(arrays[f"{prefix}.keep"], weight.shape[1])
            if pruner == "sparsegpt":
                total = arrays[f"{pruner}.blocks.{i}.{input_of(linear)}.products"]
                count, damping = len(case.inputs["token_ids"]), case.recipe.damping
                score, _ = sparsegpt_scores(weight, total, count, keep, damping)
            else:
                score = arrays[f"{prefix}.score"]
            entries.append((i, j, linear, keep, score))
    return entries


def pairs(keep: list[bool], score: list[float]) -> float:
    """The smallest difference of a score that goes and one that stays, by looking at all pairs."""
    return min(
        (1 - g / s for g, a in zip(score, keep, strict=True) if not a
         for s, b in zip(score, keep, strict=True) if b),
        default=np.inf,
    )  # fmt: skip


def by_pairs(keep: Array, score: Array) -> list[float]:
    """Of each row; and of the rows that lose one more, against those that do not."""
    margins = [pairs(*row) for row in zip(keep.tolist(), score.tolist(), strict=True)]
    lost = (~keep).sum(axis=1).tolist()
    for r, s in product(range(len(keep)), repeat=2):
        if lost[r] > lost[s]:
            candidates = max(score[r][~keep[r]]), min(score[s][keep[s]])
            gap = 1 - candidates[0] / candidates[1]
            margins[r], margins[s] = min(margins[r], gap), min(margins[s], gap)
    return margins


@pytest.mark.parametrize("pruner", ["wanda", "pattern", "sparsegpt"])
def test_decisions_by_brute_force(pruner: str) -> None:
    case, shown = case_of("gemma2"), dict[int, list[float]]()
    for i, j, _, keep, score in linears("gemma2", pruner):
        if pruner == "wanda":
            rows = by_pairs(keep, score)
        elif pruner == "pattern":
            groups = [by_pairs(k.reshape(-1, 4), s.reshape(-1, 4)) for k, s in
                      zip(keep, score, strict=True)]  # fmt: skip
            rows = [min(group) for group in groups]
        else:  # the linears of this case have fewer than 128 columns
            rows = [pairs(keep.ravel().tolist(), score.ravel().tolist())]
        assert min(rows) == pytest.approx(float(case.margins[f"{pruner}.keep"][i, j]), rel=1e-5)
        shown.setdefault(i, []).extend(rows)
    if pruner != "sparsegpt":
        right = np.array([shown[i] for i in case.recipe.shown])
        np.testing.assert_allclose(case.margins[f"{pruner}.keep.rows"], right, rtol=1e-5)


@pytest.mark.parametrize("pruner", ["wanda", "pattern"])
def test_a_decision_turns_at_its_margin(pruner: str) -> None:
    """Lower what stays by a little more than the margin: it goes; by a little less: it stays."""
    case, pattern = case_of("llama"), parse_pattern("2:4")
    decide: Callable[[Array, int], Array] = (
        wanda_keep if pruner == "wanda" else lambda score, _: pattern_keep(score, pattern)
    )
    for i, j, linear, keep, score in linears("llama", pruner):
        margin, count = float(case.margins[f"{pruner}.keep"][i, j]), int((~keep).sum())
        turned = []
        for share in (NEAR, FAR):
            lowered = score * np.where(keep, 1 - share * margin, 1)
            turned.append(not np.array_equal(decide(lowered, count), keep))
        assert turned == [False, True], (i, linear)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_counts_turn_at_their_margin(name: str) -> None:
    """Change each sparsity, up or down, by the same share: all choices of signs are tried.

    What that adds to the budget is taken from all blocks alike, which changes no remainder's rank.
    """
    case, size = case_of(name), case_of(name).model.config.block_sizes[0]
    for base in case.recipe.bases:
        if case.expected[f"{base}.corrected"].ndim == 2:
            continue  # 28 units, with too many choices of signs
        quotas = case.expected[f"{base}.corrected"] * size
        right = case.expected[f"{base}.counts"].sum(axis=1)
        (margin,) = case.margins[f"{base}.counts"].tolist()
        turned = {}
        for share in (NEAR, FAR):
            rounded = []
            for signs in product((-1, 1), repeat=len(quotas)):
                moved = quotas * (1 + share * margin * np.array(signs))
                moved += (right.sum() - moved.sum()) / len(moved)
                rounded.append(apportion(moved, np.full(len(moved), size), int(right.sum())))
            turned[share] = any((counts != right).any() for counts in rounded)
        assert turned == {NEAR: False, FAR: True}, base


def test_outliers_turn_at_their_margin() -> None:
    case = case_of("phi3")
    every_array(inputs := case_inputs(case), TABLE[:1])
    scores = list(inputs.dense_scores())
    for score, margin in zip(scores, case.margins["owl.signal"].tolist(), strict=True):
        line = 5 * score.mean()
        right = np.sum(score > line)
        for share, same in ((NEAR, True), (FAR, False)):
            moved = [np.sum(score > line * (1 + x * share * margin)) for x in (1, -1)]
            assert (moved == [right, right]) == same


def test_sinks_turn_at_their_margin() -> None:
    case = case_of("gemma2")
    for i, margin in enumerate(case.margins["sinks"].tolist()):
        norms = np.linalg.norm(case.expected[f"blocks.{i}.resid_post"], axis=-1)
        lines = 20 * np.median(norms, axis=1)
        near = [abs(x / line - 1) for row, line in zip(norms, lines, strict=True) for x in row]
        assert margin == pytest.approx(min(near), rel=1e-6)
    assert {name for name in CASE_NAMES if "sinks" in case_of(name).margins} == {"gemma2"}


def test_tails_by_brute_force() -> None:
    """Kolmogorov-Smirnov distances of all starts, one after another."""
    case = case_of("qwen3")
    for i in range(case.model.config.num_blocks):
        weights = case.model.block(i, np.float64)
        for j, name in enumerate(case.model.config.linears[i]):
            values = np.sort(np.linalg.svd(weights[f"{name}.weight"], compute_uv=False) ** 2)
            logs = np.log10(values)
            heights, edges = np.histogram(logs, 100)
            left = 10 ** edges[np.argmax(heights)]
            distances = []
            for start in range(len(values) - 1):
                tail = values[start:]
                alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
                share = np.arange(len(tail)) / len(tail)
                distance = np.abs(1 - (tail / tail[0]) ** (1 - alpha) - share).max()
                if np.log10(0.95 * left) <= tail[0] <= 1.5 * left:
                    distances.append(distance)
            least, *others = sorted(distances)
            right = others[0] - least if others else np.inf
            assert case.margins["alphapruning.signal"][i, j] == pytest.approx(right, rel=1e-4)


def test_margins_are_infinite_without_a_choice() -> None:
    all_stay, all_go = np.ones((2, 3), bool), np.zeros((2, 3), bool)
    score = np.arange(6.0).reshape(2, 3)
    assert np.isinf(row_margins(all_stay, score)).all()
    assert np.isinf(row_margins(all_go, score)).all()
    assert np.isinf(count_margin(np.array([3.0]), np.array([3])))


def test_blocks_of_other_linears_have_rows_of_their_own() -> None:
    """A dense block before sparse ones has fewer rows; there is no choice behind its last one."""
    model = model_of("ernie4_5_moe")
    sizes = [
        sum(len(model.block(i, np.float64)[f"{x}.weight"]) for x in model.config.linears[i])
        for i in (0, 1)
    ]
    recipe = Recipe(bases=("owl",), draws=1, shown=(0, 1))
    margins = computed_case(model, random_tokens(model.config.vocab_size, 2, 16), recipe).margins
    for rows in (margins["wanda.keep.rows"], margins["pattern.keep.rows"]):
        assert sizes[0] < sizes[1] == rows.shape[1]
        assert np.isinf(rows[0, sizes[0] :]).all()
        assert np.isfinite(rows[0, : sizes[0]]).any()


def test_equal_numbers_have_no_margin() -> None:
    keep = np.array([[False, True, True], [False, True, True]])
    score = np.array([[0.0, 0.0, 1.0], [2.0, 2.0, 3.0]])
    assert row_margins(keep, score).tolist() == [0.0, 0.0]
    assert count_margin(np.array([1.5, 1.5]), np.array([2, 1])) == 0
