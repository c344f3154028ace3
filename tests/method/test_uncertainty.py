"""Student's t, the jackknife, and which numbers can be told apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.method.uncertainty import jackknife, t_quantile, told_apart

# From any printed table: degrees of freedom, and the quantile at 95 and 99 % on both sides.
PRINTED = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604),
           9: (2.262, 3.250), 30: (2.042, 2.750), 120: (1.980, 2.617)}  # fmt: skip


@pytest.mark.parametrize("freedom", PRINTED)
def test_quantiles_are_those_of_a_table(freedom: int) -> None:
    found = tuple(round(t_quantile(freedom, share), 3) for share in (0.95, 0.99))
    assert found == PRINTED[freedom]


@given(st.integers(2, 9), st.integers(0, 2**32))
def test_the_jackknife_of_a_mean_is_its_standard_error(n: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, 3))
    without = (x.sum(axis=0) - x) / (n - 1)
    expected = x.std(axis=0, ddof=1) / np.sqrt(n)
    np.testing.assert_allclose(jackknife(without), expected, rtol=1e-9)


def test_one_sample_has_no_error() -> None:
    assert np.isnan(jackknife(np.ones((1, 2)))).all()
    assert told_apart(np.array([[1.0, 3.0, 2.0]])) == [[1, 2, 0]]


def test_what_all_numbers_of_a_sample_share_is_no_error_of_their_order() -> None:
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(4, 1)), 0.01 * rng.normal(size=(4, 4))
    samples = shared + own + [1.0, 2.0, 1.0, 3.0]
    groups = told_apart(samples)
    assert groups[:2] == [[3], [1]]
    assert sorted(groups[2]) == [0, 2]
    samples[:, 1] = np.nan
    assert [sorted(group) for group in told_apart(samples)] == [[3], [0, 2]]


@given(st.integers(3, 6), st.integers(0, 2**32))
def test_every_known_number_is_in_one_group(n: int, seed: int) -> None:
    samples = np.random.default_rng(seed).normal(size=(n, 7))
    groups = told_apart(samples)
    assert sorted(i for group in groups for i in group) == [*range(7)]
    firsts = samples.mean(axis=0)[[group[0] for group in groups]]
    assert (np.diff(firsts) < 0).all()
