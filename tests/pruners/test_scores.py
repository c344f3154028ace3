"""Which weights stay: exactly as many as asked, and the same ones as by sorting everything."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from refusals import refusal_of
from strategies import matrices

from refimpl.arguments import Bools, Floats
from refimpl.pruners.magnitude import MAGNITUDE, magnitude_keep
from refimpl.pruners.pruner import LinearInputs
from refimpl.pruners.wanda import wanda_keep, wanda_score

scores = matrices(st.sampled_from([0.0, 1.0, 2.0]), 7, 9) | matrices(
    st.floats(0, 1e9), 7, 9
)


def keep_by_sorting(score: Floats, count: int) -> Bools:
    """The rule word for word: a stable sort of every row, then of the next candidates."""
    rows, columns = score.shape
    order = np.argsort(score, axis=1, kind="stable")
    keep = np.ones(score.shape, bool)
    base, extra = divmod(count, rows)
    for row in range(rows):
        keep[row, order[row, :base]] = False
    if base < columns:
        candidates = [(score[row, order[row, base]], row) for row in range(rows)]
        for _, row in sorted(candidates)[:extra]:
            keep[row, order[row, base]] = False
    return keep


@given(scores, st.data())
def test_wanda_is_the_stable_sort(score: Floats, data: st.DataObject) -> None:
    before = score.copy()
    for count in (0, data.draw(st.integers(0, score.size)), score.size):
        keep = wanda_keep(score, count)
        assert int((~keep).sum()) == count
        pruned = (~keep).sum(axis=1)
        assert pruned.max() - pruned.min() <= 1
        np.testing.assert_array_equal(keep, keep_by_sorting(score, count))
    np.testing.assert_array_equal(score, before)


@given(scores, st.data())
def test_magnitude_is_the_stable_sort(score: Floats, data: st.DataObject) -> None:
    before = score.copy()
    for count in (0, data.draw(st.integers(0, score.size)), score.size):
        lowest = np.argsort(score.ravel(), kind="stable")[:count]
        pruned = np.flatnonzero(~magnitude_keep(score, count))
        assert pruned.tolist() == sorted(lowest.tolist())
    np.testing.assert_array_equal(score, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_large_matrix_with_heavy_ties(dtype: type) -> None:
    score = np.random.default_rng(0).integers(0, 40, (200, 300)).astype(dtype)
    for count in (1, 199, 200, 23_457, 59_999):
        np.testing.assert_array_equal(
            wanda_keep(score, count), keep_by_sorting(score, count)
        )


@given(scores, st.data())
def test_wanda_score_is_its_formula(weight: Floats, data: st.DataObject) -> None:
    columns = weight.shape[1]
    moment = data.draw(hnp.arrays(np.float64, columns, elements=st.floats(0, 1e9)))
    score = wanda_score(-weight, moment)
    for (row, column), value in np.ndenumerate(score):
        assert value == abs(weight[row, column]) * math.sqrt(moment[column])
    assert MAGNITUDE.score is not None
    linear = LinearInputs(-weight, None, 1, 0, 0.0, 0, (0, 0))
    np.testing.assert_array_equal(MAGNITUDE.score(linear), weight)


def test_scores_are_float64_from_float32() -> None:
    weight = np.array([[-0.1, 0.3]], np.float32)
    score = wanda_score(weight, np.array([2.0, 3.0], np.float32))
    assert score.dtype == np.float64
    np.testing.assert_array_equal(
        score, np.abs(weight.astype(np.float64)) * np.sqrt([2.0, 3.0])
    )


def test_bad_input_is_named() -> None:
    refusal_of(wanda_keep, [[1.0, float("nan")]], 1, says="NaN")
    refusal_of(wanda_keep, [[1.0, 2.0]], 3, says="count 3")
    refusal_of(magnitude_keep, [[1.0, 2.0]], -1, says="count -1")
    refusal_of(wanda_score, [[1.0, 2.0]], [1.0, 2.0, 3.0], says="(3,)")
    refusal_of(wanda_score, [[1.0, 2.0]], [1.0, -2.0], says="negative")
    refusal_of(wanda_score, [[1.0, 2.0]], [1.0, float("inf")], says="not finite")
