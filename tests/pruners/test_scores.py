"""Which weights stay: exactly as many as asked, and the same ones as by sorting everything."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refimpl.errors import RefimplError
from refimpl.pruners.scores import magnitude_keep, magnitude_score, wanda_keep, wanda_score

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

shapes = st.tuples(st.integers(1, 7), st.integers(1, 9))
tied = shapes.flatmap(
    lambda shape: hnp.arrays(np.float64, shape, elements=st.sampled_from([0.0, 1.0, 2.0]))
)
spread = shapes.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=st.floats(0, 1e9)))
matrices = st.one_of(tied, spread)


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


@given(matrices, st.data())
def test_wanda_is_the_stable_sort(score: Floats, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, score.size))
    keep = wanda_keep(score, count)
    assert int((~keep).sum()) == count
    np.testing.assert_array_equal(keep, keep_by_sorting(score, count))


@given(matrices, st.data())
def test_magnitude_is_the_stable_sort(score: Floats, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, score.size))
    keep = magnitude_keep(score, count)
    lowest = np.argsort(score.ravel(), kind="stable")[:count]
    assert np.flatnonzero(~keep.ravel()).tolist() == sorted(lowest.tolist())


@given(matrices, st.data())
def test_rows_differ_by_at_most_one_weight(score: Floats, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, score.size))
    pruned = (~wanda_keep(score, count)).sum(axis=1)
    assert pruned.max() - pruned.min() <= 1


@given(matrices)
def test_nothing_and_everything(score: Floats) -> None:
    before = score.copy()
    assert wanda_keep(score, 0).all()
    assert magnitude_keep(score, 0).all()
    assert not wanda_keep(score, score.size).any()
    assert not magnitude_keep(score, score.size).any()
    np.testing.assert_array_equal(score, before)


def test_ties_across_rows_and_columns() -> None:
    keep = wanda_keep(np.zeros((3, 3)), 5)
    np.testing.assert_array_equal(~keep, [[1, 1, 0], [1, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_large_matrix_with_heavy_ties(dtype: type) -> None:
    score = np.random.default_rng(0).integers(0, 40, (200, 300)).astype(dtype)
    for count in (1, 199, 200, 23_457, 59_999):
        np.testing.assert_array_equal(wanda_keep(score, count), keep_by_sorting(score, count))


@given(matrices, st.data())
def test_wanda_score_is_its_formula(weight: Floats, data: st.DataObject) -> None:
    columns = weight.shape[1]
    moment = data.draw(hnp.arrays(np.float64, columns, elements=st.floats(0, 1e9)))
    score = wanda_score(-weight, moment)
    for (row, column), value in np.ndenumerate(score):
        assert value == abs(weight[row, column]) * math.sqrt(moment[column])
    np.testing.assert_array_equal(magnitude_score(-weight), weight)


def test_scores_are_float64_from_float32() -> None:
    weight = np.array([[-0.1, 0.3]], np.float32)
    score = wanda_score(weight, np.array([2.0, 3.0], np.float32))
    assert score.dtype == np.float64
    np.testing.assert_array_equal(score, np.abs(weight.astype(np.float64)) * np.sqrt([2.0, 3.0]))


def test_bad_input_is_named() -> None:
    with pytest.raises(RefimplError, match="NaN"):
        wanda_keep([[1.0, float("nan")]], 1)
    with pytest.raises(RefimplError, match="3 weights to prune of 2"):
        wanda_keep([[1.0, 2.0]], 3)
    with pytest.raises(RefimplError, match="-1 weights"):
        magnitude_keep([[1.0, 2.0]], -1)
    with pytest.raises(RefimplError, match=r"\(3,\)"):
        wanda_score([[1.0, 2.0]], [1.0, 2.0, 3.0])
    with pytest.raises(RefimplError, match="negative"):
        wanda_score([[1.0, 2.0]], [1.0, -2.0])
    with pytest.raises(RefimplError, match="not finite"):
        wanda_score([[1.0, 2.0]], [1.0, float("inf")])
