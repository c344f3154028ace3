"""Equal marginal errors: the fit, and the exact minimiser of what it fits, on generated input."""

from dataclasses import dataclass, replace
from math import exp, log

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from refusals import refusal_of
from tables import cases

from refimpl.method.correction import centred_log, correction
from refimpl.method.equal_marginals import (
    RESIDUAL_BOUND,
    Growth,
    equal_marginals,
    growth,
    own_rate_error,
)
from refimpl.method.projection import project

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Surrogate:
    """What is minimised: units that grow, and the budget."""

    level: Floats
    rate: Floats
    base: Floats
    sizes: npt.NDArray[np.int64]
    sparsity: float
    lo: float
    hi: Floats  # of each unit

    def solved(self) -> Floats:
        bounds = self.sparsity, self.lo, self.hi
        return equal_marginals(self.level, self.rate, self.base, self.sizes, *bounds)

    def errors(self, s: Floats) -> Floats:
        return np.asarray(self.level * np.exp(self.rate * (s - self.base)))


@st.composite
def surrogates(draw: st.DrawFn, units: int = 7) -> Surrogate:
    count = draw(st.integers(1, units))

    def some(low: float, high: float) -> Floats:
        return np.array(
            draw(st.lists(st.floats(low, high), min_size=count, max_size=count))
        )

    sizes = draw(st.lists(st.integers(1, 10**7), min_size=count, max_size=count))
    lo, sparsity = sorted(draw(st.tuples(*[st.floats(0.01, 0.99)] * 2)))
    hi = (
        some(sparsity, 0.99)
        if draw(st.booleans())
        else np.full(count, some(sparsity, 0.99)[0])
    )
    level = np.exp(some(-9, 2))
    return Surrogate(
        level, some(0.5, 30), some(0, 1), np.array(sizes), sparsity, lo, hi
    )


@given(surrogates())
def test_budget_and_bounds(p: Surrogate) -> None:
    s = p.solved()
    assert p.lo <= s.min()
    assert (s <= p.hi).all()
    assert p.sizes @ s / p.sizes.sum() == pytest.approx(p.sparsity, abs=1e-12)


@given(surrogates())
def test_one_more_weight_costs_the_same_everywhere(p: Surrogate) -> None:
    s = p.solved()
    cost = np.log(p.rate * p.level / p.sizes) + p.rate * (s - p.base)
    inside = (s > p.lo + 1e-9) & (s < p.hi - 1e-9)
    if inside.any():
        price = cost[inside].mean()
        np.testing.assert_allclose(cost[inside], price, rtol=0, atol=1e-8)
        # At the lowest sparsity a unit costs more than the price, at the highest less.
        assert (cost[s <= p.lo] >= price - 1e-8).all()
        assert (cost[s >= p.hi] <= price + 1e-8).all()


@given(st.lists(st.floats(0.5, 1), min_size=2, max_size=9), st.floats(4, 12))
def test_of_equal_units_it_is_the_correction_by_divergence(
    levels: list[float], k: float
) -> None:
    count = len(levels)
    base, sizes = np.full(count, 0.6), np.full(count, 7)
    best = equal_marginals(levels, np.full(count, k), base, sizes, 0.6)
    u = centred_log(levels)  # within its clip
    same = project(base + correction(u, 1 / k, 1.0)[1], sizes, 0.6)
    np.testing.assert_allclose(best, same, rtol=0, atol=1e-12)


def test_an_unknown_level_does_not_move_its_unit() -> None:
    known = equal_marginals([0.1, 0.3], [6, 6], [0.6, 0.6], [5, 5], 0.6)
    with_unknown = equal_marginals([0.1, np.nan, 0.3], [6] * 3, [0.6] * 3, [5] * 3, 0.6)
    np.testing.assert_allclose(
        with_unknown, [known[0], 0.6, known[1]], rtol=0, atol=1e-12
    )


@given(st.floats(-12, 2), st.floats(0.1, 40), st.floats(0.01, 0.2), st.floats(-2, 2))
def test_the_fit_is_exact_for_what_grows_so(
    a: float, k: float, delta: float, bend: float
) -> None:
    s = np.array([[0.6 - delta], [0.6], [0.6 + delta]])
    d = np.exp(a + k * (s - 0.6))
    found = growth(d * [[1], [exp(bend)], [1]], s)
    assert found.rate[0] == pytest.approx(k, rel=1e-9)
    assert found.level[0] == pytest.approx(exp(a + bend), rel=1e-12)
    assert found.residual[0] == pytest.approx(bend, abs=1e-9)
    assume(abs(abs(bend) - RESIDUAL_BOUND) > 1e-6)
    assert bool(found.fits[0]) == (abs(bend) < RESIDUAL_BOUND)


def test_what_does_not_grow_does_not_fit() -> None:
    error = [
        [0.1, 0.2, 0.0, np.nan, 0.1, 0.1],
        [0.2, 0.15, 0.1, 0.1, 0.0, 0.1],
        [0.4, 0.1] + 4 * [0.4],
    ]
    sparsity = np.tile([[0.5], [0.6], [0.7]], 6)
    sparsity[:, 5] = 1.0
    found = growth(error, sparsity)
    assert found.fits.tolist() == [True, False, False, False, False, False]
    assert found.common_rate == pytest.approx(log(4) / 0.2)
    assert np.isnan(found.level).tolist() == [False] * 4 + [True, False]
    nothing = growth(np.zeros((3, 2)), np.full((3, 2), 0.5))
    assert nothing.common_rate is None


@pytest.mark.parametrize(("call", "problem"), cases("method", "calls"))
def test_refused(call: str, problem: str) -> None:
    refusal_of(lambda: eval(call), says=problem)


@given(st.floats(0.05, 0.95), st.floats(2, 12), st.floats(0.01, 0.1))
def test_the_error_of_a_common_rate_is_the_change_by_an_own_rate(
    s: float, k: float, sd: float
) -> None:
    """Of the closed form at one price, differentiated by finite differences."""
    base, small = 0.6, 1e-6

    def solved(rate: float) -> float:
        return base + (log(k) + k * (s - base) - log(rate)) / rate  # at k, it is s

    slope = (solved(k + small) - solved(k - small)) / (2 * small)
    rates = np.array([k - sd, k + sd])
    grows = Growth(
        *[rates] * 4, np.array([True, True]), k, float(np.std(rates, ddof=1))
    )
    found = own_rate_error(grows, np.array([base]), np.array([s]))
    assert found[0] == pytest.approx(abs(slope) * grows.rate_spread, rel=1e-4, abs=1e-7)
    assert (
        own_rate_error(
            replace(grows, rate_spread=None), np.array([base]), np.array([s])
        )
        == 0
    )
