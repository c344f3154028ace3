"""Student's t, and the jackknife."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.method.absorption import jackknife, t_quantile

# From any printed table: degrees of freedom, and the quantile at 95 and 99 % on both sides.
PRINTED = {
    1: (12.706, 63.657),
    2: (4.303, 9.925),
    3: (3.182, 5.841),
    4: (2.776, 4.604),
    9: (2.262, 3.250),
    30: (2.042, 2.750),
    120: (1.980, 2.617),
}


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
