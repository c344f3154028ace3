"""The algebra of allocations: the projection, the bases and the corrections, on generated input."""

from dataclasses import dataclass
from functools import partial
from math import log
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from refusals import refusal_of
from tables import cases

from refimpl.allocation.allocate import allocated
from refimpl.allocation.request import Request
from refimpl.bases.alphapruning import alphapruning
from refimpl.bases.atp import atp
from refimpl.bases.dlp import dlp
from refimpl.bases.lsa import lsa
from refimpl.bases.owl import owl
from refimpl.bases.uniform import uniform
from refimpl.method.correction import centred_log, clipped_log, correction
from refimpl.method.projection import project

Floats = npt.NDArray[np.float64]
ROUNDING = 1e-12
LIMIT = log(3)


@dataclass(frozen=True)
class Problem:
    x: Floats
    sizes: npt.NDArray[np.int64]
    sparsity: float
    lo: float
    hi: float

    @property
    def arguments(self) -> tuple[npt.NDArray[np.int64], float, float, float]:
        return self.sizes, self.sparsity, self.lo, self.hi

    def corrected(self, u: Floats, blocks: Floats, strength: float) -> Floats:
        """The allocation of units, each a linear, of these blocks in ascending order."""
        in_block = [np.flatnonzero(blocks == block) for block in range(len(u))]
        linears = [
            {f"{j}": (int(self.sizes[i]), 1) for j, i in enumerate(x)} for x in in_block
        ]
        base = np.zeros((len(u), max(map(len, in_block))))
        for row, x in zip(base, in_block, strict=True):
            row[: len(x)] = self.x[x]
        how: dict[str, Any] = {
            "max_correction": 0.1,
            "strength": strength,
            "lo": self.lo,
            "hi": self.hi,
            "sparsity": self.sparsity,
        }
        found = allocated(
            base, u, linears, Request(correct="absorption", **how)
        ).linear_sparsity
        return np.concatenate(
            [row[: len(x)] for row, x in zip(found, in_block, strict=True)]
        )

    @property
    def share(self) -> Floats:
        return self.sizes / self.sizes.sum()

    def assert_legal(self, s: Floats, lo: float, hi: float) -> None:
        assert lo <= s.min() <= s.max() <= hi
        assert self.share @ s == pytest.approx(self.sparsity, abs=ROUNDING)


@st.composite
def problems(draw: st.DrawFn, largest: int = 10**9, units: int = 8) -> Problem:
    count = draw(st.integers(1, units))
    # Coarse values too, so that breakpoints coincide and units sit exactly on the bounds.
    wish = st.one_of(st.floats(-1, 2), st.integers(-4, 8).map(lambda n: n / 4))
    fraction = st.one_of(st.floats(0, 1), st.integers(0, 4).map(lambda n: n / 4))
    lo, sparsity, hi = sorted(draw(st.tuples(fraction, fraction, fraction)))
    if draw(st.booleans()):
        lo, hi = 0.0, 1.0
    x = draw(st.lists(wish, min_size=count, max_size=count))
    sizes = draw(st.lists(st.integers(1, largest), min_size=count, max_size=count))
    return Problem(np.array(x), np.array(sizes), sparsity, lo, hi)


@given(problems())
def test_projection_meets_bounds_and_budget(p: Problem) -> None:
    p.assert_legal(project(p.x, *p.arguments), p.lo, p.hi)


@given(problems())
def test_projection_satisfies_the_optimality_conditions(p: Problem) -> None:
    s = project(p.x, *p.arguments)
    moved = s - p.x
    inside = (s > p.lo) & (s < p.hi)
    at_lo, at_hi = (s == p.lo) & (p.lo < p.hi), (s == p.hi) & (p.lo < p.hi)
    # One multiplier t: free units move by t, those at lo wanted lower, those at hi higher. With
    # bounds and budget these conditions are those of the one nearest point.
    least = max([*moved[inside], *moved[at_hi]], default=-np.inf)
    most = min([*moved[inside], *moved[at_lo]], default=np.inf)
    assert least <= most + ROUNDING


@given(problems(), st.randoms(use_true_random=False))
def test_projection_commutes_with_permuting_bit_for_bit(
    p: Problem, random: object
) -> None:
    order = np.arange(p.x.size)
    random.shuffle(order)  # type: ignore[attr-defined]
    permuted = project(p.x[order], p.sizes[order], *p.arguments[1:])
    np.testing.assert_array_equal(permuted, project(p.x, *p.arguments)[order])


@given(problems(), st.floats(0, 1), st.data())
def test_projection_is_monotone(p: Problem, rise: float, data: st.DataObject) -> None:
    unit = data.draw(st.integers(0, p.x.size - 1))
    raised = p.x.copy()
    raised[unit] += rise
    change = project(raised, *p.arguments) - project(p.x, *p.arguments)
    assert change[unit] >= 0
    assert (np.delete(change, unit) <= 0).all()


@given(problems(), st.floats(1e-320, 1e300))
def test_projection_is_exact_at_any_scale(p: Problem, scale: float) -> None:
    # Units a world apart, bounds closer than rounding: still within bounds and on budget.
    x = np.where(np.arange(p.x.size) % 2, p.x, scale)
    for lo, hi in ((p.lo, p.hi), (p.sparsity, np.nextafter(p.sparsity, 1)), (0.0, 1.0)):
        p.assert_legal(project(x, p.sizes, p.sparsity, lo, hi), lo, hi)


def test_projection_at_the_ends_is_exact() -> None:
    np.testing.assert_array_equal(project([0.2, 0.9], [3, 7], 0.0), [0.0, 0.0])
    np.testing.assert_array_equal(project([0.2, 0.9], [3, 7], 1.0), [1.0, 1.0])
    np.testing.assert_array_equal(
        project([0.2, 0.9], [3, 7], 0.3, 0.3, 0.3), [0.3, 0.3]
    )


def test_each_unit_may_have_a_limit_of_its_own() -> None:
    for sparsity, expected in (
        (0.5, [0.2, 0.8]),
        (0.6, [0.4, 0.8]),
        (0.4, [0.05, 0.75]),
    ):
        found = project([0.2, 0.9], [1, 1], sparsity, 0.0, [0.4, 0.8])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    refusal_of(project, [0.2, 0.9], [1, 1], 0.61, 0.0, [0.4, 0.8], says="in [0, 0.6]")


@pytest.mark.parametrize(("changes", "names"), cases("allocation", "projections"))
def test_projection_refuses(changes: dict[str, object], names: str) -> None:
    good: dict[str, object] = {"x": [0.5, 0.6], "sizes": [3, 4], "sparsity": 0.5}
    refusal_of(project, **{**good, "lo": 0.1, "hi": 0.9, **changes}, says=names)


signals = st.lists(st.floats(0, 100), min_size=2, max_size=9)
flat_signals = st.tuples(st.floats(0.1, 100), st.integers(1, 9)).map(
    lambda t: [t[0]] * t[1]
)
inner = st.floats(0.01, 0.99)


@given(signals, inner, st.floats(0, 0.3))
def test_three_bases_spread_around_the_target(
    x: list[float], sparsity: float, a: float
) -> None:
    assume(max(x) - min(x) > 1e-3)
    for s, rank in (
        (owl(x, sparsity, a), -1),
        (dlp(x, sparsity, a), 1),
        (lsa(x, sparsity, a), 1),
    ):
        assert s.max() - s.min() == pytest.approx(2 * a, abs=1e-9)
        assert s.mean() == pytest.approx(sparsity, abs=1e-9)
        assert (np.diff(s[np.argsort(x, kind="stable")]) * rank >= -1e-9).all()


@given(signals, inner, st.floats(0, 1), st.data())
def test_alphapruning_meets_the_weighted_budget(
    x: list[float], sparsity: float, epsilon: float, data: st.DataObject
) -> None:
    assume(max(x) - min(x) > 1e-3)
    sizes = np.array([data.draw(st.integers(1, 10**9)) for _ in x])
    s = alphapruning(x, sizes, sparsity, epsilon)
    assert sizes @ s / sizes.sum() == pytest.approx(sparsity, rel=1e-12)
    assert s.min() * (1 + epsilon) == pytest.approx(s.max() * (1 - epsilon), abs=1e-9)
    assert (np.diff(s[np.argsort(x, kind="stable")]) >= -1e-12).all()


@given(flat_signals, st.floats(0, 1))
def test_equal_signals_are_uniform_here_and_nan_in_the_peers(
    x: list[float], s: float
) -> None:
    np.testing.assert_array_equal(uniform(len(x), s), np.full(len(x), s))
    for base in (owl, dlp, lsa, partial(alphapruning, sizes=[5] * len(x))):
        np.testing.assert_array_equal(base(x, sparsity=s), np.full(len(x), s))
        refusal_of(base, x, sparsity=s, compat="peer", says="NaN")


def test_dlp_scores_of_zero_are_uniform() -> None:
    np.testing.assert_array_equal(dlp([0.0, 0.0], 0.6), [0.6, 0.6])


def test_the_peers_clamp_and_do_not_restore() -> None:
    for base in (owl, dlp):
        exact, peer = base([1, 2, 9], 0.05), base([1, 2, 9], 0.05, compat="peer")
        assert exact.min() < 0
        np.testing.assert_array_equal(peer, np.where(exact <= 0, 0.01, exact))
    assert alphapruning([1, 2, 9], [1, 1, 1], 0.9, compat="peer").max() > 1
    assert lsa([1, 2, 9], 0.9, compat="peer").max() > 1
    refusal_of(
        lsa, [1, 2, 9], 0.05, compat="peer", says="sparsity of -0", remedy="exact"
    )
    assert owl([0, 1], 0.5, lam=0.5, compat="peer").tolist() == [1.0, 0.01]
    assert owl([0, 1], 0.515, lam=0.5, compat="peer").min() == pytest.approx(0.015)


@given(st.integers(1, 20), inner, st.floats(-0.5, 0.5))
def test_atp_is_a_line_or_refused(
    num_blocks: int, sparsity: float, beta: float
) -> None:
    reach = abs(beta) * (num_blocks - 1) / 2
    legal = reach <= min(sparsity, 1 - sparsity)
    assume(abs(reach - min(sparsity, 1 - sparsity)) > 1e-12)
    if not legal:
        refusal_of(atp, num_blocks, sparsity, beta, says="beta")
        return
    line = atp(num_blocks, sparsity, beta)
    assert line.mean() == pytest.approx(sparsity)
    np.testing.assert_allclose(np.diff(line), beta, rtol=0, atol=1e-12)
    assert line.min() >= 0
    assert line.max() <= 1


ratio = st.floats(1e-6, 1e6) | st.sampled_from([0.0, float("nan")])
ratios = st.lists(ratio, min_size=1, max_size=9)
logarithm = st.floats(-LIMIT, LIMIT) | st.sampled_from([-LIMIT, 0.0, LIMIT])
logs = st.lists(logarithm, min_size=1, max_size=9)
strengths = st.floats(0, 2)


@given(ratios)
def test_clipped_log_is_its_formula(r: list[float]) -> None:
    u = clipped_log(r)
    for value, result in zip(r, u, strict=True):
        if np.isnan(value):
            assert result == 0
        elif 1 / 3.0001 < value < 3.0001:
            assert result == pytest.approx(log(value), abs=1e-15)
        else:
            assert result == (LIMIT if value > 1 else -LIMIT)


@given(ratios)
def test_centred_log_leaves_out_what_is_zero_or_unknown(a: list[float]) -> None:
    u = centred_log(a)
    least = 1e-12 * max((value for value in a if value > 0), default=0.0)
    known = [value for value in a if value > least]
    mean = sum(map(log, known)) / len(known) if known else 0.0
    for value, result in zip(a, u, strict=True):
        expected = min(max(log(value) - mean, -LIMIT), LIMIT) if value > least else 0.0
        assert result == pytest.approx(expected, abs=1e-13)


def test_an_error_that_is_rounding_is_zero() -> None:
    """It would drive all other blocks to the clip."""
    zero = centred_log([0.1, 0.2, 0.4, 0.0])
    assert np.array_equal(centred_log([0.1, 0.2, 0.4, 1e-30]), zero)
    assert np.abs(zero).max() < LIMIT
    for unit in (1e-15, 1.0, 1e15):
        known = centred_log(
            unit * np.array([0.1, 0.2, 0.4, 1e-9])
        )  # it is known to be small
        assert (np.abs(known) == LIMIT).all()


@given(logs, strengths, st.floats(0, 1))
def test_correction_by_formula(u: list[float], strength: float, most: float) -> None:
    delta, c = correction(u, strength, most)
    assert delta.mean() == pytest.approx(0, abs=1e-14)
    expected = -(np.array(u) - sum(u) / len(u))
    np.testing.assert_allclose(delta, expected, rtol=0, atol=1e-14)
    if max(u) == min(u):
        assert not delta.any()
    np.testing.assert_array_equal(c, np.clip(strength * delta, -most, most))


@given(problems(), strengths, st.data())
def test_linears_of_a_block_move_alike(
    p: Problem, strength: float, data: st.DataObject
) -> None:
    num_blocks = data.draw(st.integers(1, min(4, p.x.size)))
    u = np.array([data.draw(st.floats(-LIMIT, LIMIT)) for _ in range(num_blocks)])
    more = [data.draw(st.integers(0, num_blocks - 1)) for _ in p.x[num_blocks:]]
    blocks = np.array(sorted([*range(num_blocks), *more]))
    s = p.corrected(u, blocks, strength)
    mean = sum(u) / num_blocks  # over blocks, however many linears each has
    c = np.array(
        [min(max(-strength * (u[block] - mean), -0.1), 0.1) for block in blocks]
    )
    np.testing.assert_allclose(s, project(p.x + c, *p.arguments), rtol=0, atol=1e-12)


def test_equal_logs_correct_nothing() -> None:
    u = clipped_log(
        [5.0] * 3
    )  # three times log 3, whose mean in float64 may miss log 3
    np.testing.assert_array_equal(correction(u, 0.03, 0.1)[1], np.zeros(3))


@pytest.mark.parametrize(("call", "names"), cases("allocation", "calls"))
def test_bases_and_corrections_refuse(call: str, names: str) -> None:
    refusal_of(lambda: eval(call), says=names)
